"""A model behind a URL gives the numbers of the same model in this process."""

import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from pangu_ms.core.errors import GenerationError
from pangu_ms.eval.remote import RemoteModel
from pangu_ms.eval.tasks.encoding import encode_parts
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scoring import Item, Scorer
from tests.serve.common import Toy, running
from tests.serve.models import model_of

TEXTS = [
    ("def alpha_1(beta):\n    ", ["return beta + 1", "print(", "x"]),
    ("", ["def gamma", "beta"]),
    ("print(", ["alpha_2(3))"]),
]


@pytest.fixture(scope="module")
def server(decoder, tokenizer):
    with running(model_of(decoder, tokenizer)) as server:
        yield server


@pytest.fixture(scope="module")
def remote(server):
    return RemoteModel(server.url, client=server.client)


def items(tokenizer):
    (long,) = tokenizer.encode_batch(["    return beta + 1\n" * 40])
    pairs = [tuple(encode_parts(tokenizer, *pair)[:2] for pair in each(one)) for one in TEXTS]
    return [*(Item(one) for one in pairs), Item(((tuple(long[:-3]), tuple(long[-3:])),))]


def each(text):
    return [(text[0], continuation) for continuation in text[1]]


def test_scores_and_answers_are_those_of_the_model(server, remote, decoder, tokenizer):
    prompts = [tokenizer.encode_prompt(text) for text in ("def alpha", "print(", "class")]
    requests = [Request(tuple(ids), SamplingConfig(8, temperature=0, stop=("\n",)), i) for i, ids in enumerate(prompts)]
    asked = items(remote.tokenizer)
    found, answers = dict(remote.score(asked)), dict(remote.generate(requests))
    assert server.idle()
    scorer = Scorer(decoder, tokenizer)
    for index, scores in scorer.score_all(asked):
        for one, other in zip(scores, found[index], strict=True):
            if not one.cut_tokens and not other.cut_tokens:
                np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)
                assert other.greedy == one.greedy
    assert found[3][0].cut_tokens > 0 and len(found[3][0].logprobs) == 3
    engine = Engine(decoder, tokenizer)
    numbers = {engine.submit(request): i for i, request in enumerate(requests)}
    for number, continuation in engine.run():
        assert answers[numbers[number]].text == continuation.text


def test_texts_are_encoded_by_the_server(remote, tokenizer):
    text = "def alpha(beta): \u4f60"
    remote.tokenizer.encode_prompt(text).clear()  # what a caller does with the ids is not remembered
    assert remote.tokenizer.encode_prompt(text) == tokenizer.encode_prompt(text)
    assert remote.tokenizer.encode_batch([text, "x"]) == tokenizer.encode_batch([text, "x"])
    assert remote.tokenizer.eod_id == tokenizer.eod_id and remote.tokenizer.unk_id == tokenizer.unk_id
    assert remote.tokenizer.vocab_size == tokenizer.vocab_size


def test_mistakes_are_one_line(server, tokenizer):
    with pytest.raises(GenerationError, match="there is no model other; the server has toy"):
        RemoteModel(server.url, "other", client=server.client)
    with pytest.raises(GenerationError, match="start the server with `pangu serve`"):
        RemoteModel("http://127.0.0.1:9")
    with pytest.raises(GenerationError, match="start the server"):
        RemoteModel("http://[::1")
    remote = RemoteModel(server.url + "/v1/", client=server.client)
    request = Request((5,), SamplingConfig(10_000, temperature=0))
    with pytest.raises(GenerationError, match="answers 400: This model's maximum context length is"):
        list(remote.generate([request]))


def test_a_busy_server_is_asked_again(tokenizer, monkeypatch):
    from pangu_ms.eval import remote as module
    from pangu_ms.serve.app import Settings
    from pangu_ms.serve.settings import Limits

    waited = []

    def wait(seconds):
        waited.append(seconds)
        toy.gate.set()
        time.sleep(0.2)  # in which others are answered

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=wait))
    toy = Toy(tokenizer.vocab_size)
    toy.gate.clear()
    settings = Settings(limits=Limits(queue=0))
    with running(model_of(toy, tokenizer), settings=settings) as server:
        remote = RemoteModel(server.url, client=server.client)
        requests = [Request((9, i), SamplingConfig(2, temperature=0), i) for i in range(7, 15)]
        assert len(dict(remote.generate(requests))) == 8
    assert waited


def test_a_connection_that_the_server_closed_is_opened_again(monkeypatch):
    from pangu_ms.eval import remote as module

    waited, lost = [], [httpx.RemoteProtocolError("disconnected"), httpx.ReadError("reset")]
    monkeypatch.setattr(module.time, "sleep", waited.append)

    def answer(request):
        if lost:
            raise lost.pop()
        return httpx.Response(200, json={"data": []})

    connection = module.Connection("http://test", client=httpx.Client(transport=httpx.MockTransport(answer)))
    assert connection.ask("/v1/models") == {"data": []} and waited == [2.0, 4.0]
    lost += [httpx.ReadError("reset")] * 10
    with pytest.raises(GenerationError, match="http://test/v1/models: reset; start the server"):
        connection.ask("/v1/models")
    assert len(lost) == 4
