"""Clients that damage requests, die, read slowly or leave in any place: behind them every slot is free, by /metrics,
and a client that behaves gets what it gets alone. Schemathesis finds nothing in the API's own document."""

import json
import random
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from pangu_ms.infer.decoder import GraphShape
from pangu_ms.serve.app import Settings
from pangu_ms.serve.settings import Limits
from tests.serve.common import Toy, head_of, running, wait_for
from tests.serve.models import model_of

SLOTS = 4
PATHS = {
    "/v1/completions": {"model": "toy", "prompt": "def alpha", "max_tokens": 9, "stream": True, "stop": ["zz"], "n": 2},
    "/v1/chat/completions": {
        "model": "toy",
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "\u4e2d\u6587 def"}],
        "max_tokens": 9,
        "logit_bias": {"7": 5, "9": -100},
        "logprobs": True,
        "top_logprobs": 3,
    },
    "/tokenize": {"model": "toy", "prompt": "def"},
    "/detokenize": {"model": "toy", "tokens": [5, 6, 7]},
}
VALUES = [None, True, -1, 0, 3, 2**63, 1e308, "", "a\x00b", "\ud800", "<s>", [], {}, [[]], {"": None}, "x" * 3000]
BYTES = [b"{", b"}", b"[", b'"', b"\\", b"\x00", b"\xff", b",", b":", b"e999", b"-", b"\r\n\r\n", b"NaN"]


@pytest.fixture
def toy(tokenizer):
    return Toy(tokenizer.vocab_size, GraphShape(SLOTS, 16, 96, 96))


@pytest.fixture
def server(toy, tokenizer):
    limits = Limits(queue=2000, body_timeout=3, send_timeout=3)
    with running(model_of(toy, tokenizer), settings=Settings(limits)) as server:
        yield server


def gauges(server):
    """The numbers of /metrics without labels' values other than the name."""
    return {
        name: float(value)
        for name, value in re.findall(r"^(pangu_\w+){.*?} (\S+)$", server.client.get("/metrics").text, re.M)
    }


def is_free(server):
    """Whether every slot is free and nothing waits, as /metrics says."""
    found = gauges(server)
    return found["pangu_slots"] == SLOTS and found["pangu_slots_busy"] == found["pangu_queue"] == 0


def places(value, at=()):
    """The paths of all parts of a JSON value."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def mutated(rng, body):
    """A valid body with one to three parts replaced, removed or doubled; sometimes its bytes are damaged, too."""
    body = json.loads(json.dumps(body))
    for _ in range(rng.randint(0, 3)):
        at = rng.choice([place for place in places(body) if place])
        parent = body
        for key in at[:-1]:
            parent = parent[key]
        kind = rng.randrange(4)
        if kind == 0:
            del parent[at[-1]]
        elif kind == 1 and isinstance(parent, list):
            parent *= rng.randint(2, 40)
        else:
            parent[at[-1]] = rng.choice(VALUES)
        if len(body) < 2:
            break
    content = json.dumps(body).encode()
    if rng.random() < 0.1:
        place = rng.randrange(len(content))
        content = content[:place] + rng.choice(BYTES) + content[place + rng.randrange(3) :]
    return content


def hostile(server, seed):
    """One client; returns the status of its answer, or 0 if it did not wait for one."""
    rng = random.Random(seed)
    path = rng.choice(list(PATHS))
    content = mutated(rng, PATHS[path])
    kind = rng.random()
    if kind < 0.75:
        return server.client.post(path, content=content, headers={"Content-Type": "application/json"}).status_code
    said = len(content) + (rng.choice([-7, -1, 1, 99, 10**18]) if kind < 0.8 else 0)
    whole = head_of(max(0, said), path) + content
    with suppress(OSError):
        connection = server.raw()
        if 0.8 < kind < 0.9:  # leaves anywhere, in the head, in the body or in the answer; with a reset, or without
            if rng.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.sendall(whole[: rng.randint(1, 2 * len(whole))])
            time.sleep(rng.random() / 50)
        elif kind < 0.95:  # half-open: it sends no more, and reads what comes
            connection.sendall(whole)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.5)
            connection.recv(1)
        else:  # reads slowly, then not at all
            connection.sendall(whole)
            for _ in range(20):
                connection.recv(1)
                time.sleep(0.001)
        connection.close()
    return 0


@pytest.mark.parametrize("number", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutated_requests(server, number):
    ask = {"prompt": "def beta", "max_tokens": 12, "temperature": 0, "logprobs": 1}
    alone = server.post(**ask).json()["choices"]
    with ThreadPoolExecutor(12) as threads:
        statuses = threads.map(lambda seed: hostile(server, seed), range(number))
        others = [server.post(**ask).json()["choices"] for _ in range(number // 25)]
        statuses = list(statuses)
    assert all(answer == alone for answer in others)
    assert set(statuses) <= {0, 200, 400, 404, 413}, sorted(set(statuses))
    assert statuses.count(200) > 0.15 * number and statuses.count(400) > 0.15 * number
    assert wait_for(lambda: is_free(server)) and wait_for(lambda: len(server.connections) <= 2)
    assert server.post(**ask).json()["choices"] == alone


CLIENT = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
body = {"model": "toy", "prompt": "def", "max_tokens": 90, "min_tokens": 90, "stream": sys.argv[2] == "stream"}
connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
print("sent", flush=True)
if body["stream"]:
    answer = connection.getresponse()
    print(answer.readline(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["stream", "whole"])
def test_a_killed_client_frees_its_slot_within_two_steps(toy, server, how):
    toy.delay = 0.05
    port = server.url.rpartition(":")[2]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CLIENT, port, how], **pipes) as client:
        assert client.stdout.readline() == b"sent\n"
        assert wait_for(lambda: any(server.busy()))
        assert how == "whole" or client.stdout.readline().startswith(b"b'data:")
        before = server.steps()
        client.kill()
        client.wait()
        assert wait_for(lambda: not any(server.busy()))
    # The step that was computed when the kernel closed the connection, and one more.
    assert server.steps() - before <= 3 and is_free(server)


def test_half_open_connections_hold_nothing(toy, server):
    """Clients that have closed their sending side are answered; heads that never end are closed."""
    body = json.dumps({"model": "toy", "prompt": "def", "max_tokens": 5}).encode()
    waiting = [server.raw(b"POST /v1/completions HTTP/1.1\r\nX: ") for _ in range(50)]
    closed = server.raw(head_of(len(body)) + body)
    closed.shutdown(socket.SHUT_WR)
    closed.settimeout(20)
    closed.recv(1)  # whether an answer or the end: no client waits for ever
    assert server.post(prompt="def", max_tokens=2).status_code == 200
    assert all(connection.recv(1) == b"" for connection in waiting)  # by body_timeout
    assert wait_for(lambda: is_free(server))


FILES = """
import resource
from pangu_ms.serve.run import allow_files
for number in (100, 700, 5000):
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 900))
    allow_files(number)
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_files_for_all_connections():
    """As many as the hard limit lets; what is enough is not lowered."""
    done = subprocess.run([sys.executable, "-c", FILES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["200 900", "700 900", "900 900"]


HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "toy"  # else nearly all would be of unknown models
    return body
"""


@pytest.mark.slow
def test_schemathesis(server, tmp_path):
    """All of its checks but one: that what the schema allows is accepted. A schema cannot say that top_logprobs needs
    logprobs, or that a prompt must fit."""
    pytest.importorskip("schemathesis")
    (tmp_path / "hooks.py").write_text(HOOKS)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", "all"]
    command += ["--exclude-checks", "positive_data_acceptance", "--max-examples", "100", "--seed", "1"]
    environment = {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert wait_for(lambda: is_free(server))
