"""Whatever a client sends, it gets an error of OpenAI's form, and the others do not notice."""

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pangu_ms.serve.app import Settings
from pangu_ms.serve.protocol import ChatRequest, CompletionRequest
from pangu_ms.serve.settings import Limits
from tests.serve.common import Toy, head_of, running
from tests.serve.models import model_of

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "def"}]


@pytest.fixture(scope="module")
def server(tokenizer):
    """Behind the tests it is as at the beginning."""
    limits = Limits(body_mib=1, queue=600, body_timeout=3)
    with running(model_of(Toy(tokenizer.vocab_size), tokenizer), settings=Settings(limits)) as server:
        before = server.post(prompt="def", max_tokens=9, temperature=0).json()["choices"]
        yield server
        assert server.idle() and server.thread.live == {"toy": 0}
        assert server.post(prompt="def", max_tokens=9, temperature=0).json()["choices"] == before


def refusal(answer, status=400):
    """The error of an answer, of OpenAI's form."""
    assert answer.status_code == status, answer.text
    (key,) = answer.json()
    error = answer.json()[key]
    assert key == "error" and set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "Traceback" not in answer.text and ".py" not in answer.text
    return error


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b'{"model": "toy", "prompt": "def"',
        b'{"model": "toy", "prompt": "\xff\xfe"}',
        b"\x00" * 100,
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": "toy", "prompt": "def", "temperature": NaN}',
        b'{"model": "toy", "prompt": "def", "temperature": Infinity}',
        b'{"model": "toy", "prompt": "def", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "toy", "prompt": "\\ud800"}',
        "{'model': 'toy'}".encode("utf-16"),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_bodies_that_are_no_json_objects(server, content):
    for path in ("/v1/completions", CHAT):
        refusal(server.client.post(path, content=content, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_types_of_content(server, kind):
    content = json.dumps({"model": "toy", "prompt": "def"})
    refusal(server.client.post("/v1/completions", content=content, headers={"Content-Type": kind}))


@pytest.mark.parametrize(
    "field, values",
    [
        ("prompt", [None, 1, {}, "", [], [""], [[]], [-1], [384], [2**70], [True], [[1], "a"], ["a", 1], [1.5]]),
        ("model", [None, 1, "", "nothing", "../toy", "x" * 100_000]),
        ("max_tokens", [0, -1, 2**31, 2**70, 1.5, "5", True, [], {}]),
        ("temperature", [-1, 2.1, 1e308, "1", True, [], 0.0001]),
        ("top_p", [-0.1, 1.1, "1", {}]),
        ("n", [0, -1, 129, 2**70, "2", 1.0]),
        ("stop", ["", [""], [1], {}, ["x"] * 1000, "x" * 1001, [None]]),
        ("seed", [2**63, -(2**63) - 1, 1.5, "1"]),
        ("frequency_penalty", [-2.1, 2.1, "0"]),
        ("presence_penalty", [-2.1, 2.1, []]),
        ("logit_bias", [{"x": 1}, {"384": 1}, {"-1": 1}, {"1": 101}, {"1": "1"}, {"\u0661": 1}, [], {"9" * 99: 1}]),
        ("logit_bias", [{str(i): 0 for i in range(1025)}]),
        ("logprobs", [-1, 21, "1", True]),
        ("stream", [1, "true", {}]),
        ("stream_options", [{"include_usage": True}, {"other": 1}, True]),
        ("top_k", [-1, 1.5]),
        ("repetition_penalty", [0, -1, 11, 0.009, 5e-324]),
        ("min_tokens", [-1, 17]),
        ("stop_token_ids", [[-1], [384], ["a"], 1]),
        ("domain", ["law", 1]),
        ("response_format", [{"type": "xml"}, {}, "json", {"type": "json_schema"}, {"type": "json_schema", "x": 1}]),
        ("guided_regex", [1, "(", "x" * 10_001]),
        ("guided_choice", [[], [""], [1], "a"]),
        ("guided_json", [1, {"type": "nothing"}, {"$ref": "http://example.com/a"}]),
        ("suffix", ["end"]),
        ("best_of", [2]),
        ("nothing", [None, 1]),
        ("__class__", [1]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_are_wrong(server, field, values):
    for value in values:
        status = 404 if field == "model" and isinstance(value, str) else 400
        error = refusal(server.post(**{"prompt": "def", field: value}), status)
        assert str(error["param"]).partition(".")[0] in (field, "nothing"), (value, error)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        {},
        "hello",
        [None],
        [[]],
        ["hello"],
        [{}],
        [{"role": "user", "content": 1}],
        [{"role": "god", "content": "x"}],
        [{"content": "x"}],
        [{"role": None, "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "x", "more": 1}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "assistant", "tool_calls": [{"id": "1"}]}],
        HELLO * 5000,
    ],
    ids=lambda messages: str(messages)[:40],
)
def test_messages_that_are_wrong(server, messages):
    content = json.dumps({"model": "toy", "messages": messages})
    error = refusal(server.client.post(CHAT, content=content, headers={"Content-Type": "application/json"}))
    assert str(error["param"]).startswith("messages")


@pytest.mark.parametrize("field", ["audio", "functions", "function_call", "modalities", "prediction", "tools"])
def test_fields_of_chats_that_the_server_does_not_have(server, field):
    value = {"modalities": ["audio"], "tools": [{"type": "function"}]}.get(field, {"x": 1})
    error = refusal(server.post(CHAT, messages=HELLO, **{field: value}))
    assert field in error["message"]
    assert server.post(CHAT, messages=HELLO, max_tokens=1, **{field: None}).status_code == 200


def test_paths_and_methods(server):
    for method, path, status in (
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/etc/passwd", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/models/a/b", 404),
    ):
        refusal(server.client.request(method, path), status)


def test_an_unknown_field_is_named_as_openai_names_it(server):
    error = refusal(server.post(prompt="def", tempreature=1))
    assert error["message"] == "Unrecognized request argument supplied: tempreature"


def test_10_mb(server):
    assert refusal(server.post(prompt="x" * 10_000_000), 413)["code"] == "request_too_large"


def test_a_body_that_is_too_large_is_read_before_the_answer(server):
    """A connection with unread data is reset, and its client does not see the answer."""
    connection = server.raw()
    connection.sendall(head_of(3_000_000) + b"x" * 3_000_000)
    assert status_of(connection) == b"413"


def test_white_space_without_end_is_not_encoded(server):
    assert refusal(server.post(prompt=" " * 900_000))["code"] == "context_length_exceeded"


def test_json_that_is_none(server):
    for content in (b'{"model": "\xff"}', b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"):
        answer = server.client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        assert refusal(answer)["code"] == "invalid_json"


def status_of(connection):
    """The status line of the answer on a bare connection, b"" if it is closed without one."""
    try:
        return connection.recv(64).partition(b"\r\n")[0][9:12]
    except ConnectionResetError:
        return b""
    finally:
        connection.close()


GOOD = json.dumps({"model": "toy", "prompt": "def", "max_tokens": 2}).encode()


def test_odd_heads(server):
    many = b"".join(b"X-%d: y\r\n" % i for i in range(4000))
    assert status_of(server.raw(head_of(len(GOOD), extra=many) + GOOD)) in (b"200", b"400", b"431")
    for head in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        head_of(5).replace(b"Length: 5", b"Length: -5") + b"12345",
        head_of(5).replace(b"Length: 5", b"Length: x") + b"12345",
        head_of(5, extra=b"Content-Length: 6\r\n") + b"12345",
        head_of(5, extra=b"X: " + b"y" * 200_000 + b"\r\n") + b"12345",
        head_of(5, path="/\xe9".encode("latin-1").decode("latin-1")) + b"12345",
    ):
        assert status_of(server.raw(head)) in (b"400", b"404", b"431", b""), head[:80]


def test_contents_longer_or_shorter_than_they_say(server):
    """What is too short is waited for, for a while; the rest of what is too long would be the next request."""
    assert status_of(server.raw(head_of(len(GOOD) - 5) + GOOD)) == b"400"
    short = server.raw(head_of(len(GOOD) + 5) + GOOD)
    long = server.raw(head_of(len(GOOD)) + GOOD + b"garbage that is no request\r\n\r\n")
    assert status_of(long) == b"200"
    short.shutdown(socket.SHUT_WR)
    assert status_of(short) in (b"400", b"408", b"")


def test_a_byte_at_a_time(server):
    """It is read as long as it comes in time, and others are answered meanwhile."""
    slow = server.raw()
    for byte in head_of(len(GOOD)) + GOOD[:20]:
        slow.sendall(bytes([byte]))
        time.sleep(0.001)
    assert server.post(prompt="def", max_tokens=1).status_code == 200
    for byte in GOOD[20:]:
        slow.sendall(bytes([byte]))
        time.sleep(0.001)
    assert status_of(slow) == b"200"
    too_slow = server.raw(head_of(len(GOOD)))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for byte in GOOD[:8]:
            too_slow.sendall(bytes([byte]))
            time.sleep(0.5)
    assert status_of(too_slow) in (b"408", b"")


def test_500_at_once(server):
    """All are answered, whether they stay or leave."""
    silent = [server.raw() for _ in range(100)]

    def ask(number):
        if number % 5 == 0:
            connection = server.open_stream(max_tokens=50)
            connection.close()
            return 200
        return server.post(prompt="def", max_tokens=3, temperature=0).status_code

    with ThreadPoolExecutor(100) as threads:
        statuses = list(threads.map(ask, range(400)))
    assert set(statuses) == {200}
    for connection in silent:
        connection.close()
    assert server.idle()


def test_the_document_of_the_api(server):
    """It describes the bodies, and no field of them twice."""
    document = server.client.get("/openapi.json").json()
    paths = set(document["paths"])
    assert {"/v1/completions", CHAT, "/v1/models", "/tokenize", "/health", "/metrics"} <= paths
    for name, model in (("CompletionRequest", CompletionRequest), ("ChatRequest", ChatRequest)):
        assert set(document["components"]["schemas"][name]["properties"]) == set(model.model_fields)
