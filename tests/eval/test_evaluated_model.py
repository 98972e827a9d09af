"""The model of commands that evaluate: a path or a URL, and options that are for one of them."""

import sys

import pytest

from pangu_ms.cli.main import main

URL = "http://127.0.0.1:9"


def told(capsys, *words):
    assert main(["harness", "run", *words, "--tasks", "x", "--include-path", "."]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.fixture(autouse=True)
def any_task(monkeypatch):
    run = pytest.importorskip("pangu_ms.eval.harness_run", exc_type=ImportError)
    monkeypatch.setattr(run, "task_manager", lambda names, path: run.Tasks(include_defaults=False))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--model-name", "x"], "--model-name: is for a server, run is a path"),
        (["run", "--api-key-file", "key"], "--api-key-file: is for a server"),
        ([URL, "runtime.device=CPU"], "section.field=value: is for a checkpoint"),
        ([URL, "--weights", "int8"], "--weights: is for a checkpoint"),
        ([URL, "--domain", "zh"], "--domain: is for a checkpoint"),
        ([URL, "--api-key-file", "/nowhere/key"], "--api-key-file /nowhere/key: cannot be read"),
        ([URL], f"{URL}/v1/models: "),
    ],
)
def test_options_and_models_that_do_not_go_together(capsys, words, message):
    assert message in told(capsys, *words)


def test_a_url_needs_httpx(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "pangu_ms.eval.remote", raising=False)
    assert 'pip install "pangu-ms[eval]"' in told(capsys, URL)
