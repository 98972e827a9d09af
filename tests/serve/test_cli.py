"""`pangu serve` itself: a checkpoint from the command line to SIGTERM, and mistakes in one line."""

import importlib.util
import os
import signal
import socket
import threading

import httpx
import pytest

from pangu_ms.cli.main import main
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.serve import open as opener
from pangu_ms.serve.open import open_model
from tests.serve.checkpoint import SEQ_LENGTH
from tests.serve.common import wait_for


def test_from_a_checkpoint_to_sigterm(checkpoint, decoder, tmp_path, capfd, monkeypatch):
    """The prompt is in no log. The graph is the one that other tests have compiled."""
    loaded = []
    monkeypatch.setattr(opener, "load_decoder", lambda *arguments, **options: loaded.append(arguments) or decoder)
    (tmp_path / "keys").write_bytes(b"secret\r\n")
    (tmp_path / "keys").chmod(0o644)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, answers = f"http://127.0.0.1:{port}", []

    def ask():
        def ready():
            try:
                return httpx.get(f"{url}/ready").status_code == 200
            except httpx.TransportError:
                return False

        try:
            assert wait_for(ready, 400)  # the first use of a checkout builds the CPU kernels
            with httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=60) as client:
                body = {"model": "tiny", "prompt": "def alpha", "max_tokens": 5}
                answers.append(client.post("/v1/completions", json=body))
                answers.append(client.get("/v1/models"))
            answers.append(httpx.get(f"{url}/v1/models"))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    options = ["--name", "tiny", "--port", str(port), "--slots", "2", "--chunk", "8", "--max-length", "40"]
    assert main(["serve", str(checkpoint), *options, "--api-key-file", str(tmp_path / "keys"), "--access-log"]) == 0
    asking.join()
    ((opened, shape, _, weights),) = loaded
    assert (opened.path.parent, shape, weights) == (checkpoint, GraphShape(2, 8, 40, SEQ_LENGTH), "")
    assert [answer.status_code for answer in answers] == [200, 200, 401]
    assert answers[0].json()["usage"]["completion_tokens"] == 5
    assert answers[1].json()["data"][0]["max_model_len"] == 40
    out, err = capfd.readouterr()
    assert f"{url}: ready with tiny (2 slots of 40 tokens)" in out
    assert err.count("keys: other users can read it; chmod 600 it\n") == 1
    assert "def alpha" not in out + err and "secret" not in out + err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--port", "-1"], "--port -1"),
        (["--port", "99999"], "--port 99999"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--slots", "0"], "--slots 0: must be at least 1"),
        (["--max-length", "1"], "--max-length 1: must be at least 2"),
        (["--model", "other"], "--model other: must be NAME=PATH"),
        (["--model", "m=x", "--name", "m"], "--model m=x: another model has this name"),
        (["--model", "m=/nothing/here"], "/nothing/here: "),
        (["--queue", "-1"], "--queue -1: must be at least 0"),
        (["--queue-timeout", "nan"], "--queue-timeout nan: must be at least 0.001"),
        (["--chat-template", "/nothing/here"], "--chat-template /nothing/here: cannot be read"),
        (["--api-key-file", "/nothing/here"], "--api-key-file /nothing/here: cannot be read"),
        (["--root-path", "llm"], "--root-path llm: must begin with /"),
        (["--length-predictor", "x"], "--scheduler fcfs does not use lengths"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(checkpoint, options, said, capsys):
    assert main(["serve", str(checkpoint), *options]) == 2
    line = capsys.readouterr().err
    assert line.startswith("pangu serve: ") and said in line and line.count("\n") == 1


@pytest.mark.parametrize("options", [["--slots", "4"], ["--weights", "int8"], ["model.seq_length=8"]], ids=str)
def test_options_of_checkpoints_with_a_package(tmp_path, options, capsys):
    (tmp_path / "run.pyz").touch()
    assert main(["serve", str(tmp_path), *options]) == 2
    assert f"{' '.join(options)}: is fixed in a package" in capsys.readouterr().err


def test_a_length_beyond_the_context_is_told(checkpoint, capsys):
    model = open_model("m", checkpoint, 2, 8, 1000, [], "", None, "auto")
    assert model.shape.max_length == SEQ_LENGTH
    assert (
        capsys.readouterr().err
        == f"--max-length 1000: the model's context has {SEQ_LENGTH} tokens, which is the length\n"
    )


def test_without_its_packages(checkpoint, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", str(checkpoint)]) == 2
    assert capsys.readouterr().err == "pangu serve: uvicorn: not installed; pip install pangu-ms[serve]\n"
