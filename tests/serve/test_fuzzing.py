"""5,000 random requests, most of them wrong: none fails the server, every slot is free at the end."""

import contextlib
import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from pangu_ms.serve.app import Settings
from pangu_ms.serve.protocol import ChatRequest, CompletionRequest
from pangu_ms.serve.settings import Limits
from tests.serve.common import Toy, head_of, running
from tests.serve.models import model_of

ODD = [None, True, -1, 0, 1, 2, 7, 1.5, -1e308, 2**70, "", "x", "\x00", "\ufffe", "<sep>", [], {}, [1], ["a"], {"a": 1}]
GOOD = {
    "prompt": ["def", "\u4e2d" * 20, [5, 6], ["a", "b"], [[5], [6, 7]], "x" * 300],
    "messages": [[{"role": "user", "content": "def"}], [{"role": "system", "content": ""}] * 3],
    "stop": ["a", ["b", "cc"]],
    "logit_bias": [{"5": -100}, {str(i): 1 for i in range(99)}],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "guided_choice": [["yes", "no"]],
    "guided_regex": ["[a-f]{1,9}", "(a|b)*c"],
    "guided_json": [{"type": "integer"}, {"enum": [1, "a", None]}],
    "stream_options": [{"include_usage": True}],
    "temperature": [0, 0.5, 2],
    "model": ["toy"],
    "domain": [None],
    "tools": [None, []],
    "stop_token_ids": [[7]],
}


def body_of(rng, model):
    """Mostly good values of some fields."""
    fields = rng.sample(sorted(set(model.model_fields) - {"model"}), rng.randint(0, 7))
    body = {"model": "toy", "prompt" if model is CompletionRequest else "messages": None, **dict.fromkeys(fields)}
    for name in body:
        body[name] = rng.choice(GOOD.get(name, [1, 2, 5, True, None]) if rng.random() < 0.93 else ODD)
    if body["model"] != "toy" and rng.random() < 0.9:
        body["model"] = "toy"
    body["max_tokens"] = rng.randint(1, 12)
    if rng.random() < 0.02:
        body[rng.choice(["x", "", "best_of", "audio", "__proto__"])] = rng.choice(ODD)
    return body


def one_request(server, seed):
    """Send the request of this seed; returns the status of its answer, 0 if there was none to wait for."""
    rng = random.Random(seed)
    model, path = rng.choice([(CompletionRequest, "/v1/completions"), (ChatRequest, "/v1/chat/completions")])
    content = json.dumps(body_of(rng, model)).encode()
    kind = rng.random()
    if kind < 0.05:  # damaged
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + rng.randint(0, 3) :]
    if kind > 0.95:  # a client that leaves at any time
        with contextlib.suppress(OSError):
            connection = server.raw((head_of(len(content), path) + content)[: rng.randint(1, 2 * len(content))])
            connection.settimeout(rng.random() / 20)
            connection.recv(100)
        connection.close()
        return 0
    return server.client.post(path, content=content, headers={"Content-Type": "application/json"}).status_code


@pytest.mark.parametrize("number", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_random_requests(tokenizer, number):
    with running(model_of(Toy(tokenizer.vocab_size), tokenizer), settings=Settings(Limits(queue=400))) as server:
        before = server.post(prompt="def", max_tokens=9, temperature=0).json()["choices"]
        with ThreadPoolExecutor(16) as threads:
            statuses = list(threads.map(lambda seed: one_request(server, seed), range(number)))
        assert set(statuses) <= {0, 200, 400, 404}, sorted(set(statuses))
        assert 0.3 < statuses.count(200) / number < 0.9
        assert server.idle() and server.thread.live == {"toy": 0} and not any(server.busy())
        assert server.post(prompt="def", max_tokens=9, temperature=0).json()["choices"] == before
