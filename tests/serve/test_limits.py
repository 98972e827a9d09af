"""What protects the server: queue, times, sizes, keys. Clients that leave; errors of the model; the server's end."""

import contextlib
import copy
import json
import logging
import os
import signal
import socket
import threading
import time

import httpx
import numpy as np
import pytest

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.policies import POLICIES
from pangu_ms.infer.scheduling.policies import Settings as PolicySettings
from pangu_ms.serve.api_keys import read_api_keys
from pangu_ms.serve.app import Settings
from pangu_ms.serve.models import Models
from pangu_ms.serve.run import OncePer, listen, run
from pangu_ms.serve.settings import Limits
from tests.serve.common import SHAPE, Toy, head_of, running, wait_for
from tests.serve.models import model_of


@pytest.fixture
def toy(tokenizer):
    return Toy(tokenizer.vocab_size)


@pytest.fixture
def serve(toy, tokenizer):
    """Starts a server of the toy with some limits."""

    def start(send_buffer=0, **limits):
        others = {name: limits.pop(name) for name in ("api_keys", "cors_origins", "root_path") if name in limits}
        settings = Settings(Limits(**limits), **others)
        return running(model_of(toy, tokenizer), settings=settings, send_buffer=send_buffer)

    return start


def error_of(answer):
    """The error of an answer, which has OpenAI's form."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def in_background(call):
    """Call in a thread; returns a list that gets the result, and the thread."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    return result, thread


def test_a_full_queue_answers_429(toy, serve):
    with serve(queue=1) as server:
        toy.gate.clear()
        jobs = [in_background(lambda: server.post(prompt="def", max_tokens=3)) for _ in range(3)]
        assert wait_for(lambda: server.thread.live["toy"] == 3)
        refused = server.post(prompt="def")
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        toy.gate.set()
        for result, thread in jobs:
            thread.join()
            assert result[0].status_code == 200
        assert server.post(prompt="def", max_tokens=1).status_code == 200
        impossible = server.post(prompt="def", n=4)
        assert impossible.status_code == 400 and error_of(impossible)["param"] == "n"
        assert 'pangu_rejected_total{code="rate_limit_exceeded"} 1.0' in server.client.get("/metrics").text


def test_who_waits_too_long_gets_503(toy, serve):
    toy.delay = 0.02
    with serve(queue_timeout=0.2) as server:
        long = [in_background(lambda: server.post(prompt="def", max_tokens=90)) for _ in range(2)]
        assert wait_for(lambda: all(server.busy()))
        late = server.post(prompt="def", max_tokens=1)
        assert late.status_code == 503 and error_of(late)["code"] == "queue_timeout"
        for result, thread in long:
            thread.join()
            assert result[0].json()["usage"]["completion_tokens"] == 90


def test_a_form_that_cannot_be_spelt_is_the_request_s_fault(toy, tokenizer, monkeypatch):
    """Also where it is found only behind the first token."""
    spell = tokenizer.text_bytes
    monkeypatch.setattr(
        tokenizer, "text_bytes", lambda i: b"" if len(spell(i)) == 1 and spell(i)[0] > 127 else spell(i)
    )
    with running(model_of(toy, tokenizer)) as server:
        body = {"prompt": "def", "guided_regex": "[<>]\U0001f600"}
        answer = server.post(**body)
        assert answer.status_code == 400 and "cannot be followed" in error_of(answer)["message"]
        events = server.post(**body, stream=True).text.split("\n\n")
        error = json.loads(events[-3].removeprefix("data: "))["error"]
        assert error["type"] == "invalid_request_error" and "cannot be followed" in error["message"]
        assert server.idle()


def test_lines_of_the_log_that_clients_could_fill_it_with(serve, caplog):
    with serve() as server:
        for _ in range(20):
            server.raw(b"\x16\x03\x01 no HTTP\r\n\r\n").recv(100)
    assert [one.getMessage() for one in caplog.records].count("Invalid HTTP request received.") <= 1
    few, record = OncePer(0.05), logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "Invalid", None, None)
    assert [few.filter(copy.copy(record)) for _ in range(3)] == [True, False, False]
    time.sleep(0.06)
    again = copy.copy(record)
    assert few.filter(again) and again.msg.startswith("Invalid (2 more in the last 0 s)")


def test_a_model_without_logprobs_of_prompts(serve):
    with serve() as server:
        answer = server.post(prompt="def", echo=True, logprobs=1, max_tokens=1)
        assert answer.status_code == 400 and "no log-probabilities of prompts" in error_of(answer)["message"]
        assert server.post(prompt="def", echo=True, max_tokens=0).json()["choices"][0]["text"] == "def"
        assert server.idle()


def test_tokens_that_come_fast_come_together(serve):
    with serve(stream_interval=30) as server:
        body = {"prompt": "def", "max_tokens": 60, "temperature": 0}
        whole = server.post(**body).json()["choices"][0]["text"]
        lines = server.post(**body, stream=True).text.split("\n\n")
        events = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
        assert lines[-2] == "data: [DONE]" and 2 <= len(events) <= 3  # the first token, perhaps a second, and the rest
        assert "".join(event["text"] for event in events) == whole and events[-1]["finish_reason"] == "length"


def test_a_long_generation_ends_with_what_it_has(toy, serve):
    toy.delay = 0.02
    with serve(generation_timeout=0.3) as server:
        answer = server.post(prompt="def", max_tokens=90).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 1 <= answer["usage"]["completion_tokens"] < 90
        assert server.idle()


def test_prompts_that_do_not_fit(serve, tokenizer):
    with serve() as server:
        for body in ({"prompt": "def alpha" * 100}, {"prompt": "def", "max_tokens": 96}, {"prompt": "x" * 500_000}):
            answer = server.post(**body)
            error = error_of(answer)
            assert (answer.status_code, error["param"], error["code"]) == (400, "prompt", "context_length_exceeded")
            assert "maximum context length is 96 tokens" in error["message"]
        chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "def alpha" * 100}])
        assert error_of(chat)["param"] == "messages" and error_of(chat)["code"] == "context_length_exceeded"
        # As long as it goes: what fits exactly.
        length = len(tokenizer.encode_prompt("def"))
        full = server.post(prompt="def", max_tokens=SHAPE.max_length - length)
        assert full.json()["usage"]["total_tokens"] == 96
        chat = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}]).json()
        assert chat["usage"]["total_tokens"] == 96 or chat["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_within_two_steps(toy, serve, stream):
    toy.delay = 0.2
    with serve() as server:
        body = json.dumps({"model": "toy", "prompt": "def", "stream": stream, "max_tokens": 90}).encode()
        connection = server.raw(head_of(len(body)) + body)
        assert wait_for(lambda: any(server.busy()) and server.steps() > 1)
        before = server.steps()
        connection.close()
        assert wait_for(lambda: not any(server.busy()))
        # The step that was computed when the news came, and one more.
        assert server.steps() - before <= 3 and not server.thread.answers
        assert 'pangu_disconnects_total{model="toy"} 1.0' in server.client.get("/metrics").text


def test_a_client_that_leaves_the_queue(toy, serve):
    with serve() as server:
        toy.gate.clear()
        jobs = [in_background(lambda: server.post(prompt="def", max_tokens=3)) for _ in range(2)]
        assert wait_for(lambda: server.thread.live["toy"] == 2)
        waits = server.open_stream()
        assert wait_for(lambda: server.thread.live["toy"] == 3)
        waits.close()
        assert wait_for(lambda: server.thread.live["toy"] == 2)
        toy.gate.set()
        for _, thread in jobs:
            thread.join()
        assert server.idle()


def test_a_client_that_does_not_read(serve):
    """The buffers between the two get full; then the server gives the connection up, and its slots are free."""
    with serve(send_buffer=4096, send_timeout=0.3, queue=200) as server:
        options = {"max_tokens": 90, "logprobs": 20, "n": 8, "min_tokens": 90}
        body = json.dumps({"model": "toy", "prompt": "def", "stream": True, **options}).encode()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        connection.sendall(head_of(len(body)) + body)
        port = connection.getsockname()[1]

        def is_open():
            return any(one.client[1] == port for one in server.connections)

        assert wait_for(is_open) and wait_for(lambda: not is_open(), 10)
        assert server.idle() and server.post(prompt="def", max_tokens=1).status_code == 200
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while got := connection.recv(1 << 20):
                assert b"[DONE]" not in got
        connection.close()


def test_bodies_that_are_too_large_or_slow(serve):
    with serve(body_mib=0.01, body_timeout=2) as server:
        short = server.raw(head_of(100) + b'{"model":')  # promises more than it sends
        half_open, silent = server.raw(b"POST /v1/comp"), server.raw()
        large = server.post(prompt="x" * 11_000)
        assert large.status_code == 413 and error_of(large)["code"] == "request_too_large"
        # Chunks have no Content-Length.
        chunked = server.client.post("/v1/completions", content=(b"x" * 1000 for _ in range(12)), headers=_JSON)
        assert chunked.status_code == 413 and error_of(chunked)["code"] == "request_too_large"
        assert short.recv(100).startswith(b"HTTP/1.1 408")
        assert half_open.recv(100) == silent.recv(100) == b""


_JSON = {"Content-Type": "application/json"}


def test_api_keys(serve, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nsecret-1\n\nsecret-2\n")
    keys = read_api_keys(file)
    assert keys == ["secret-1", "secret-2"]
    with serve(api_keys=keys) as server:
        get = server.client.get
        assert get("/health").status_code == get("/ready").status_code == 200
        for path in ("/health", "/ready"):
            head = server.client.head(path)
            assert head.status_code == 200 and not head.content
        for given in ({}, {"Authorization": "Bearer secret-3"}, {"Authorization": "Basic secret-1"}):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                answer = get(path, headers=given)
                assert answer.status_code == 401 and error_of(answer)["code"] == "invalid_api_key"
        for key in keys:
            assert get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    for content, said in (("\n# none\n", "holds no key"), ("a b\n", "keys:1: is no key"), (None, "cannot be read")):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        with pytest.raises(GenerationError, match=said):
            read_api_keys(file)


def test_other_origins_and_a_prefix(serve):
    with serve(cors_origins=["https://a.example"], root_path="/llm", api_keys=["k"]) as server:
        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization,content-type"
        allowed = server.client.options("/v1/completions", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = server.client.options("/v1/completions", headers=asked | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        assert server.client.get("/ready").status_code == 200
        document = server.client.get("/openapi.json", headers={"Authorization": "Bearer k"}).json()
        assert document["servers"] == [{"url": "/llm"}]


def test_logits_that_are_not_numbers(toy, serve, tokenizer):
    """Its request fails, others go on, and its slot serves the next one."""
    bad = tokenizer.encode_prompt("print")

    def fault(logits, held):
        for slot, ids in enumerate(held):
            if ids[1 : 1 + len(bad)] == bad and len(ids) > 1 + len(bad):
                logits[slot] = np.nan

    with serve() as server:
        good = server.post(prompt="def", max_tokens=40, temperature=0).json()
        toy.fault = fault
        toy.delay = 0.005
        result, thread = in_background(lambda: server.post(prompt="def", max_tokens=40, temperature=0).json())
        answer = server.post(prompt="print", max_tokens=40, temperature=0)
        assert answer.status_code == 500
        error = error_of(answer)
        assert error["type"] == "server_error" and "must be numbers" in error["message"]
        events = server.post(prompt="print", max_tokens=40, temperature=0, stream=True).text.split("\n\n")
        assert "must be numbers" in json.loads(events[-3].removeprefix("data: "))["error"]["message"]
        thread.join()
        assert result[0]["choices"] == good["choices"]
        assert server.idle()


def test_an_error_of_the_server_shows_no_stack(toy, serve, monkeypatch):
    with serve() as server:
        monkeypatch.setattr(
            "pangu_ms.serve.models.ServedModel.encode", lambda *_: (_ for _ in ()).throw(OSError("/etc/x"))
        )
        answer = server.post(prompt="def")
        assert answer.status_code == 500 and error_of(answer)["code"] == "internal_error"
        assert "/etc" not in answer.text and "Trace" not in answer.text


def serve_in_main_thread(toy, tokenizer, during, **limits):
    """The exit code of `run`, while `during(url)` runs in a thread; and what that returns."""
    result, threads = [], []

    def on_ready(url):
        threads.append(threading.Thread(target=lambda: result.append(during(url))))
        threads[0].start()

    with listen("127.0.0.1", 0) as bound:
        code = run(Models([model_of(toy, tokenizer)]), Settings(Limits(**limits)), bound, on_ready)
    threads[0].join()
    return code, result[0]


def test_sigterm_lets_running_requests_end(toy, tokenizer, capfd):
    toy.delay = 0.04

    def during(url):
        body = {"model": "toy", "prompt": "def", "max_tokens": 80}
        running, thread = in_background(lambda: httpx.post(f"{url}/v1/completions", json=body, timeout=30))
        assert wait_for(lambda: 'slots_busy{model="toy"} 1.0' in httpx.get(f"{url}/metrics").text)
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_for(lambda: httpx.get(f"{url}/ready").status_code == 503)
        refused = httpx.post(f"{url}/v1/completions", json=body)
        thread.join()
        return running[0], refused

    code, (running, refused) = serve_in_main_thread(toy, tokenizer, during)
    assert code == 0 and running.json()["usage"]["completion_tokens"] == 80
    assert refused.status_code == 503 and error_of(refused)["code"] == "shutting_down"
    assert refused.headers["Retry-After"]
    assert "running requests end" in capfd.readouterr().err


def test_sigterm_does_not_wait_for_ever(toy, tokenizer):
    toy.delay = 0.2

    def during(url):
        body = {"model": "toy", "prompt": "def", "max_tokens": 90}
        running, thread = in_background(lambda: httpx.post(f"{url}/v1/completions", json=body, timeout=30))
        assert wait_for(lambda: 'slots_busy{model="toy"} 1.0' in httpx.get(f"{url}/metrics").text)
        os.kill(os.getpid(), signal.SIGTERM)
        thread.join()
        return running[0]

    begin = time.monotonic()
    code, answer = serve_in_main_thread(toy, tokenizer, during, drain_timeout=0.3)
    assert code == 0 and answer.status_code == 503 and time.monotonic() - begin < 15


def test_an_engine_that_dies_ends_the_server(toy, tokenizer, capfd):
    def fault(logits, held):
        if any(len(ids) > 5 for ids in held):
            raise RuntimeError("the device is lost")

    toy.fault = fault
    code, answer = serve_in_main_thread(
        toy, tokenizer, lambda url: httpx.post(f"{url}/v1/completions", json={"model": "toy", "prompt": "def alpha"})
    )
    assert code == 1 and answer.status_code == 500
    assert error_of(answer)["message"] == "The engine has stopped."
    said = capfd.readouterr().err
    assert "the engine has stopped: RuntimeError" in said


def test_a_model_that_cannot_be_loaded_ends_the_server(toy, tokenizer):
    def load():
        raise GenerationError("slots=9: too little memory; use fewer")

    model = model_of(toy, tokenizer)
    model.load = load
    with listen("127.0.0.1", 0) as bound, pytest.raises(GenerationError, match="too little memory"):
        run(Models([model]), Settings(), bound, lambda url: None)


def test_a_port_that_is_taken():
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(GenerationError, match=f"--port {port}: Address already in use; name a free port"):
            listen("127.0.0.1", port)
    with pytest.raises(GenerationError, match="--host no.such.host.invalid .*; name an address of this machine"):
        listen("no.such.host.invalid", 0)


def test_before_the_model_is_loaded(toy, tokenizer):
    """/health answers, /ready does not."""
    loaded, model = threading.Event(), model_of(toy, tokenizer)
    model.load = lambda: loaded.wait(30) and toy
    seen = []

    def ask(port):
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
        seen.append(httpx.get(f"{url}/health"))
        seen.append(httpx.get(f"{url}/ready"))
        seen.append(httpx.post(f"{url}/v1/completions", json={"model": "toy", "prompt": "def"}))
        loaded.set()
        wait_for(lambda: httpx.get(f"{url}/ready").status_code == 200)
        os.kill(os.getpid(), signal.SIGTERM)

    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        asking = threading.Thread(target=ask, args=[bound.getsockname()[1]])
        asking.start()
        assert run(Models([model]), Settings(), bound, lambda url: None) == 0
    asking.join()
    assert [answer.status_code for answer in seen] == [200, 503, 503]
    assert seen[0].json() == {"status": "loading"} and error_of(seen[2])["code"] == "model_loading"


def test_sigterm_does_not_wait_for_a_model(toy, tokenizer, monkeypatch):
    loaded, model, ends = threading.Event(), model_of(toy, tokenizer), []
    model.load = lambda: (loaded.wait(60), toy)[1]
    monkeypatch.setattr(os, "_exit", ends.append)  # the thread that loads would hold up the end of the interpreter

    def end():
        threading.Event().wait(0.1)
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{bound.getsockname()[1]}/health").status_code == 200)
        os.kill(os.getpid(), signal.SIGTERM)

    with listen("127.0.0.1", 0) as bound:
        ending = threading.Thread(target=end)
        ending.start()
        assert run(Models([model]), Settings(), bound, lambda url: None) == 0
    ending.join()
    assert ends == [0] and not loaded.is_set()
    loaded.set()


def test_several_models_and_domains(tokenizer):
    from pangu_ms.infer.domains import Domains

    first = Toy(tokenizer.vocab_size)
    second = Toy(tokenizer.vocab_size, domains=Domains(("law", "code")))
    with running(model_of(first, tokenizer), model_of(second, tokenizer, "sigma")) as server:
        data = server.client.get("/v1/models").json()["data"]
        assert [(one["id"], one["domains"]) for one in data] == [("toy", []), ("sigma", ["law", "code"])]

        def text(**body):
            return server.post(prompt="def", max_tokens=5, temperature=0, **body).json()["choices"][0]["text"]

        assert text() == text(model="sigma") == text(model="sigma", domain="law") != text(model="sigma", domain="code")
        for body in ({"domain": "law"}, {"model": "sigma", "domain": "art"}, {"model": "sigma", "domain": "\ud800"}):
            content = json.dumps({"model": "toy", "prompt": "def", **body})
            answer = server.client.post("/v1/completions", content=content, headers=_JSON)
            assert answer.status_code == 400 and error_of(answer)["param"] == "domain"


def test_metrics_of_refusals(serve, monkeypatch):
    """Each has its code, whoever answers it: a route, what is before the routes, or Starlette."""
    with serve(api_keys=["key"], body_mib=0.01) as server:
        server.post(prompt="def")
        server.client.headers["Authorization"] = "Bearer key"
        server.post(prompt="x" * 11_000)
        server.post(prompt="def", n=0)
        monkeypatch.setattr("pangu_ms.serve.models.ServedModel.encode", lambda *_: 1 / 0)
        server.post(prompt="def")
        found = server.client.get("/metrics").text  # uvicorn closes the connection behind an exception, and says so
        for code in ("invalid_api_key", "request_too_large", "invalid_value", "internal_error"):
            assert f'pangu_rejected_total{{code="{code}"}} 1.0' in found
        assert 'pangu_requests_total{path="/v1/completions",status="500"} 1.0' in found


def test_metrics(serve):
    with serve() as server:
        server.post(prompt="def", max_tokens=7)
        assert server.idle()
        lines = server.client.get("/metrics").text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        assert float(values['pangu_generated_tokens_total{model="toy"}']) == 7
        assert float(values['pangu_slots{model="toy"}']) == 2 and float(values['pangu_queue{model="toy"}']) == 0
        assert float(values['pangu_time_to_first_token_seconds_count{model="toy"}']) == 1
        assert float(values['pangu_requests_total{path="/v1/completions",status="200"}']) == 1
        assert float(values["pangu_ready"]) == 1


def test_expected_lengths_are_the_scheduler_s(toy, tokenizer):
    class Predictor:
        def predict(self, prompts):
            return [90.0 if len(prompt.token_ids) > 3 else 2.0 for prompt in prompts]

    scheduler = POLICIES["ljf"].make(PolicySettings())
    model = model_of(toy, tokenizer, predictor=Predictor(), scheduler=scheduler)
    (short,) = model.predicted([request_of(tokenizer, "d")])
    (long,) = model.predicted([request_of(tokenizer, "def alpha_1(beta):")])
    assert (short.predicted_tokens, long.predicted_tokens) == (2.0, 90.0)
    with running(model) as server:
        assert server.post(prompt="def", max_tokens=3).json()["usage"]["completion_tokens"] == 3


def request_of(tokenizer, text):
    return Request(tuple(tokenizer.encode_prompt(text)), SamplingConfig())


def test_tools_of_a_template_that_has_them(toy, tokenizer, tmp_path):
    """They are a part of the prompt; without a template that shows them they are refused."""
    template = tmp_path / "tools.jinja"
    template.write_text("{% if tools %}{{ tools | tojson }}{% endif %}{{ messages[0].content }}")
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    with running(model_of(toy, tokenizer, template=str(template))) as server:
        chat = "/v1/chat/completions"
        plain = server.post(chat, **body).json()["usage"]["prompt_tokens"]
        with_tools = server.post(chat, **body, tools=tools).json()["usage"]["prompt_tokens"]
        barred = server.post(chat, **body, tools=tools, tool_choice="none").json()["usage"]["prompt_tokens"]
        assert plain == barred < with_tools
        assert server.post(chat, **body, tools=tools, tool_choice="required").status_code == 400
