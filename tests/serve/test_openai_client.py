"""The calls of OpenAI's own client, over HTTP, on a compiled model."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from pangu_ms.infer.continuation import Request
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig, log_softmax
from tests.serve.common import running
from tests.serve.models import model_of

PROMPTS = ["def alpha_1(beta):\n", "p", "return gamma + 7", "print(delta_2(3))\n\n\n" * 3]
LONG = PROMPTS[0] * 5
NEW = 12  # tokens


@pytest.fixture(scope="module")
def alone(decoder, tokenizer):
    """The texts that prompts get in an engine of their own, by (prompt, seed); seed None is greedy."""
    texts = {}
    for i in range(12):
        seed = None if i < 4 else i
        sampling = SamplingConfig(NEW, temperature=0.0 if seed is None else 0.9, seed=seed or 0)
        engine = Engine(decoder, tokenizer, prefix_cache=False)
        engine.submit(Request(tuple(tokenizer.encode_prompt(PROMPTS[i % 4])), sampling))
        ((_, continuation),) = engine.run()
        texts[PROMPTS[i % 4], seed] = continuation.text
    return texts


@pytest.fixture(scope="module")
def first_logprobs(decoder, tokenizer):
    """Of the first new token of PROMPTS[0], likeliest first."""
    return sorted(log_softmax(decoder.prefill([tokenizer.encode_prompt(PROMPTS[0])])[0]), reverse=True)


@pytest.fixture(scope="module")
def prompt_logprobs(decoder, tokenizer):
    """Of all tokens behind each beginning of LONG."""
    ids = tokenizer.encode_prompt(LONG)
    return [log_softmax(decoder.prefill([ids[:end]])[0]) for end in range(1, len(ids))]


@pytest.fixture(scope="module")
def server(alone, first_logprobs, prompt_logprobs, decoder, tokenizer):
    with running(model_of(decoder, tokenizer, "tiny")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client, prompt=PROMPTS[0], **options):
    return client.completions.create(model="tiny", prompt=prompt, **{"max_tokens": 12, "temperature": 0} | options)


def chat(client, text="def alpha", **options):
    messages = [{"role": "user", "content": text}]
    options = {"max_tokens": 12, "temperature": 0} | options
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="does not exist. This server has tiny"):
        client.models.retrieve("huge")


def test_a_completion_is_that_of_the_engine_alone(client, alone):
    for (prompt, seed), text in alone.items():
        options = {"temperature": 0} if seed is None else {"temperature": 0.9, "seed": seed}
        answer = complete(client, prompt, max_tokens=NEW, **options)
        assert answer.choices[0].text == text


def test_64_clients_get_the_texts_that_they_get_alone(client, alone, server):
    wanted = ([*alone.items()] * 6)[:64]

    def ask(job):
        ((prompt, seed), _), number = job
        options = {"temperature": 0} if seed is None else {"temperature": 0.9, "seed": seed}
        if number % 2:
            return complete(client, prompt, max_tokens=NEW, **options).choices[0].text
        parts = complete(client, prompt, max_tokens=NEW, stream=True, **options)
        return "".join(part.choices[0].text for part in parts)

    with ThreadPoolExecutor(64) as threads:
        texts = list(threads.map(ask, zip(wanted, range(64))))
    assert texts == [text for _, text in wanted]
    assert server.idle()


def test_streams_and_whole_answers_are_equal(client):
    for make, text_of in (
        (complete, lambda choice: choice.text),
        (chat, lambda choice: getattr(choice, "delta", getattr(choice, "message", None)).content or ""),
    ):
        whole = make(client, max_tokens=20)
        events = list(make(client, max_tokens=20, stream=True, stream_options={"include_usage": True}))
        *parts, last = events
        assert "".join(text_of(part.choices[0]) for part in parts) == text_of(whole.choices[0])
        assert all("usage" in part.model_fields_set and part.usage is None for part in parts)
        assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["length"]
        assert not last.choices and last.usage.completion_tokens == whole.usage.completion_tokens == 20
        assert last.usage.prompt_tokens == whole.usage.prompt_tokens
        assert len({event.id for event in events}) == 1 and len(parts) > 5


def test_usage_counts_a_prompt_once_and_says_what_was_cached(client):
    long = "print(delta_2(3))\n" * 6
    first = complete(client, long, n=2, temperature=1, max_tokens=3)
    assert first.usage.completion_tokens == 6
    again = complete(client, long, max_tokens=3)
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert again.usage.total_tokens == again.usage.prompt_tokens + 3
    assert again.usage.prompt_tokens_details.cached_tokens >= 16


def test_n_and_seeds(client):
    one = complete(client, n=3, temperature=1.5, seed=-5)
    same = complete(client, n=3, temperature=1.5, seed=-5)
    other = complete(client, n=3, temperature=1.5, seed=6)
    unseeded = [complete(client, temperature=1.5).choices[0].text for _ in range(3)]
    texts = [choice.text for choice in one.choices]
    assert len(set(texts)) == 3 and [choice.index for choice in one.choices] == [0, 1, 2]
    assert texts == [choice.text for choice in same.choices] != [choice.text for choice in other.choices]
    assert len(set(unseeded)) == 3
    parts = list(complete(client, n=3, temperature=1.5, seed=-5, stream=True))
    streamed = ["".join(p.choices[0].text for p in parts if p.choices[0].index == i) for i in range(3)]
    assert streamed == texts


def test_stop_strings(client):
    whole = complete(client, max_tokens=30).choices[0].text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    for stops in (stop, ["never comes", stop]):
        cut = complete(client, max_tokens=30, stop=stops).choices[0]
        assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"
        parts = list(complete(client, max_tokens=30, stop=stops, stream=True))
        assert "".join(part.choices[0].text for part in parts) == cut.text


def test_several_prompts_as_texts_and_tokens(client, tokenizer):
    texts = complete(client, PROMPTS[:3])
    tokens = complete(client, [tokenizer.encode_prompt(prompt) for prompt in PROMPTS[:3]])
    assert [c.text for c in texts.choices] == [c.text for c in tokens.choices]
    assert complete(client, tokenizer.encode_prompt(PROMPTS[1])).choices[0].text == texts.choices[1].text


def test_echo(client):
    plain = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == PROMPTS[0] + plain
    assert "".join(part.choices[0].text for part in complete(client, echo=True, stream=True)) == PROMPTS[0] + plain
    with pytest.raises(openai.BadRequestError, match="max_tokens=0 needs echo"):
        complete(client, max_tokens=0)


def test_logprobs_of_prompts(client, prompt_logprobs, tokenizer, server):
    ids = tokenizer.encode_prompt(LONG)
    assert len(ids) > server.thread.engines["tiny"].decoder.shape.chunk
    for _ in range(2):  # the second time the cache holds the prompt
        answer = complete(client, ids, echo=True, logprobs=2, max_tokens=0)
        choice, found = answer.choices[0], answer.choices[0].logprobs
        assert (choice.text, choice.finish_reason) == (LONG, "length")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 0)
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        for values, token, value, top in zip(
            prompt_logprobs, ids[1:], found.token_logprobs[1:], found.top_logprobs[1:]
        ):
            assert value == pytest.approx(values[token], abs=1e-6)
            best = pytest.approx(sorted(values, reverse=True)[:2], abs=1e-6)
            assert sorted(top.values(), reverse=True)[:2] == best and value in top.values()
        assert len(found.tokens) == len(found.text_offset) == len(found.token_logprobs) == len(ids)
        assert LONG[found.text_offset[-1] :] == tokenizer.decode(ids[-1:])
    new = complete(client, ids, logprobs=2, max_tokens=3).choices[0]
    both = complete(client, LONG, echo=True, logprobs=2, max_tokens=3, n=2, temperature=0)
    for choice in both.choices:
        assert choice.text == LONG + new.text
        assert choice.logprobs.token_logprobs[: len(ids)] == found.token_logprobs
        assert choice.logprobs.token_logprobs[len(ids) :] == pytest.approx(new.logprobs.token_logprobs)
        assert choice.logprobs.text_offset[len(ids)] == len(LONG)
    events = complete(client, ids, echo=True, logprobs=2, max_tokens=3, stream=True)
    parts = [event.choices[0] for event in events]
    assert "".join(part.text for part in parts) == both.choices[0].text
    values = [value for part in parts if part.logprobs for value in part.logprobs.token_logprobs]
    assert values == pytest.approx(both.choices[0].logprobs.token_logprobs)


def test_logprobs_of_completions(client, decoder, tokenizer):
    choice = complete(client, logprobs=3).choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 12
    # Greedy: each token is the likeliest.
    for token, value, top in zip(found.tokens, found.token_logprobs, found.top_logprobs):
        assert len(top) == 3 and max(top.values()) == value and top[token] == value
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    streamed = [part.choices[0].logprobs for part in complete(client, logprobs=3, stream=True)]
    assert [token for part in streamed if part for token in part.tokens] == found.tokens
    assert complete(client, logprobs=0).choices[0].logprobs.top_logprobs is None


def test_logprobs_of_chats(client):
    found = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(found) == 12
    for token in found:
        assert len(token.top_logprobs) == 2 and token.top_logprobs[0].logprob == token.logprob
    text = b"".join(bytes(token.bytes) for token in found).decode(errors="replace")
    assert text == chat(client).choices[0].message.content
    streamed = [event.choices[0].logprobs for event in chat(client, logprobs=True, top_logprobs=2, stream=True)]
    assert [token for part in streamed if part for token in part.content] == found
    with pytest.raises(openai.BadRequestError, match="top_logprobs needs logprobs"):
        chat(client, top_logprobs=2)


def test_bias_penalties_and_lengths(client, tokenizer):
    free = complete(client, logprobs=0).choices[0].logprobs.tokens
    wanted = tokenizer.encode("gamma")[0]
    text = tokenizer.decode([wanted] * 12, continuation=True)
    assert complete(client, logit_bias={str(wanted): 100}).choices[0].text == text
    first = tokenizer.encode_prompt(PROMPTS[0])
    likeliest = complete(client, first, max_tokens=1, extra_body={"top_k": 1}, temperature=2)
    assert likeliest.choices[0].text == complete(client, first, max_tokens=1).choices[0].text
    penalized = complete(client, frequency_penalty=2, presence_penalty=2, logprobs=0).choices[0].logprobs.tokens
    assert len(set(penalized)) > len(set(free))
    stop = tokenizer.stop_ids[0]
    ends = {str(stop): 100}
    ended = complete(client, logit_bias=ends)
    assert (ended.choices[0].text, ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("", "stop", 1)
    least = complete(client, logit_bias=ends, extra_body={"min_tokens": 5})
    assert least.usage.completion_tokens == 6 and least.choices[0].finish_reason == "stop"


def test_text_of_a_form(client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    # A random model likes digits and spaces; without the end of the number it would go on until its room is over.
    answer = chat(client, response_format=asked, max_tokens=150, temperature=1, seed=1).choices[0]
    assert answer.finish_reason == "stop"
    value = json.loads(answer.message.content)
    assert set(value) == {"name", "age"} and type(value["age"]) is int
    for seed in range(3):
        options = {"temperature": 2, "seed": seed, "max_tokens": 30}
        chosen = complete(client, extra_body={"guided_choice": ["yes", "no (a+b)", "perhaps"]}, **options)
        assert chosen.choices[0].text in ("yes", "no (a+b)", "perhaps") and chosen.choices[0].finish_reason == "stop"
        match = complete(client, extra_body={"guided_regex": r"\d{4}-\d{2}"}, **options).choices[0].text
        assert re.fullmatch(r"\d{4}-\d{2}", match)
    for body in ({"guided_regex": "((a"}, {"guided_json": {"type": "objec"}}):
        with pytest.raises(openai.BadRequestError, match=next(iter(body))):
            complete(client, extra_body=body)
    with pytest.raises(openai.BadRequestError, match="exclude each other"):
        complete(client, extra_body={"guided_regex": "a", "guided_choice": ["a"]})


def test_a_chat_is_the_completion_of_its_tokens(client, server):
    messages = [{"role": "user", "content": "def alpha"}]
    tokens = server.client.post("/tokenize", json={"model": "tiny", "messages": messages}).json()
    assert chat(client).choices[0].message.content == complete(client, tokens["tokens"]).choices[0].text
    assert tokens["count"] == len(tokens["tokens"]) == chat(client).usage.prompt_tokens
    parts = [{"role": "user", "content": [{"type": "text", "text": "def "}, {"type": "text", "text": "alpha"}]}]
    same = server.client.post("/tokenize", json={"model": "tiny", "messages": parts}).json()
    assert same == tokens


def test_tokenize_and_detokenize(server):
    ids = server.client.post("/tokenize", json={"model": "tiny", "prompt": PROMPTS[0]}).json()["tokens"]
    assert server.client.post("/detokenize", json={"model": "tiny", "tokens": ids}).json() == {"prompt": PROMPTS[0]}


def test_what_the_server_does_not_have_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings is not supported") as error:
        client.embeddings.create(model="tiny", input="text")
    assert error.value.code == "unsupported_endpoint"
    with pytest.raises(openai.BadRequestError, match="best_of is not supported: ask for n") as error:
        complete(client, best_of=3)
    assert error.value.param == "best_of"
    with pytest.raises(openai.BadRequestError, match="tools: the model's chat template has none"):
        chat(client, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])


def test_ignored_fields_do_nothing(client):
    assert complete(client, user="me").choices[0].text == complete(client).choices[0].text
    ignored = {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto"}
    assert chat(client, **ignored).choices[0].message == chat(client).choices[0].message


def test_logprobs_are_those_of_the_logits(client, first_logprobs):
    """Before temperature and penalties."""
    found = complete(client, max_tokens=1, logprobs=5, temperature=1.5, seed=3).choices[0].logprobs
    values = sorted(found.top_logprobs[0].values(), reverse=True)
    assert values[:5] == pytest.approx(first_logprobs[:5], abs=1e-6)
    assert len(values) in (5, 6)  # with the chosen one
