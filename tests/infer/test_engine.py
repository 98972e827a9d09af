"""Continuous batching: whatever else is generated, and when, a request gets the tokens that it gets alone, and with
packed weights the same bits of logits."""

import dataclasses
import hashlib

import numpy as np
import pytest

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.continuation import Continuation, Request
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.continuous import FirstCome
from pangu_ms.infer.scheduling.policies import POLICIES, Settings
from pangu_ms.infer.scheduling.simulator import Given, Rows, simulate
from tests.infer.common import make_decoder
from tests.models.alpha import random_parameters, small
from tests.reference.alpha_numpy import forward

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
CONFIG, SLOTS, CHUNK, CAPACITY = small(num_layers=2), 4, 5, 24


class Letters:
    """A tokenizer without stop tokens: each id is a character."""

    stop_ids: tuple[int, ...] = ()
    vocab_size, eod_id = CONFIG.vocab_size, 3

    def __init__(self):
        self._bytes_of = [chr(200 + i).encode() for i in range(CONFIG.vocab_size)]

    def _require_ids(self, ids):
        pass

    def _restored(self, text):
        return text


@pytest.fixture(scope="module")
def decoder():
    return watched(make_decoder(CONFIG, random_parameters(CONFIG), SLOTS, CHUNK, weights="float32"))


@pytest.fixture(scope="module")
def other_decoder():
    """Other numbers of slots and of tokens in a chunk."""
    return watched(make_decoder(CONFIG, random_parameters(CONFIG), 2, 3, weights="float32"))


def watched(decoder):
    """The decoder, which looks after each step whether it changed a row of a cache that is not of its tokens."""
    append = decoder.append

    def append_and_look(tokens, chunk=None):
        may_change = np.zeros((decoder.shape.batch_size, CAPACITY + 1), bool)
        may_change[:, CAPACITY] = True  # nobody reads it
        for slot, new in [*((slot, (token,)) for slot, token in tokens.items()), *([chunk] if chunk else [])]:
            may_change[slot, decoder.lengths[slot] : decoder.lengths[slot] + len(new)] = True
        before = digests(decoder, may_change)
        logits = append(tokens, chunk)
        assert digests(decoder, may_change) == before
        return logits

    decoder.append = append_and_look
    return decoder


def digests(decoder, without):
    """Of each cache, without some rows."""
    return [hashlib.sha256(cache.asnumpy()[~without.reshape(-1)].tobytes()).digest() for cache in decoder.caches]


@pytest.fixture(scope="module", autouse=True)
def recorded_logits():
    """Continuations keep the digests of the logits that they choose from."""
    choose = Continuation.choose

    def choose_and_keep(self, logits, room):
        self.__dict__.setdefault("digests", []).append(hashlib.sha256(logits.tobytes()).digest())
        choose(self, logits, room)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Continuation, "choose", choose_and_keep)
        yield


def sampling(seed, most):
    """Greedy, and drawn from the whole distribution or a part."""
    kinds = ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.3, "top_k": 20, "repetition_penalty": 1.2})
    return SamplingConfig(max_new_tokens=most, seed=seed, **kinds[seed % 3])


def make_requests(number, seed, most=9):
    """Prompts of one token to the most that fit; some begin like others."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(4, CONFIG.vocab_size, CAPACITY).tolist()
    lengths = [1, CAPACITY - 1, CHUNK, CHUNK + 1, *rng.integers(1, CAPACITY, max(0, number - 4))][:number]
    requests = []
    for i, length in enumerate(lengths):
        shared = int(rng.integers(0, length + 1)) if i % 2 else 0
        prompt = stem[:shared] + rng.integers(4, CONFIG.vocab_size, length - shared).tolist()
        requests.append(Request(tuple(prompt), sampling(i, int(rng.integers(1, most + 1))), index=i))
    return requests


def alone(decoder, request):
    """A request's continuation in an engine of its own."""
    engine = Engine(decoder, Letters(), prefix_cache=False)
    engine.submit(request)
    ((_, continuation),) = engine.run()
    return continuation


REQUESTS = make_requests(24, seed=1)


@pytest.fixture(scope="module")
def alone_of_each(other_decoder):
    """In another graph than that of most schedules."""
    return [alone(other_decoder, request) for request in REQUESTS]


@pytest.fixture(scope="module")
def expected(alone_of_each):
    """Its tokens."""
    return [continuation.ids for continuation in alone_of_each]


def test_alone_it_is_the_reference(expected):
    """Greedy tokens are the likeliest of the numpy model in float64; where two are equally likely, one of them."""
    parameters = {name: value.astype(np.float64) for name, value in random_parameters(CONFIG).items()}
    for request, tokens in zip(REQUESTS[::3], expected[::3]):
        assert request.sampling.temperature == 0 and len(tokens) == min(
            request.sampling.max_new_tokens, CAPACITY - len(request.prompt)
        )
        ids = [*request.prompt, *tokens]
        logits = forward(CONFIG, parameters, np.array([ids[:-1]]), None)[0, len(request.prompt) - 1 :]
        assert (logits[range(len(tokens)), tokens] >= logits.max(-1) - 1e-4).all()


def run_schedule(decoder, alone_of_each, seed):
    """Some requests, at random times, some of them cancelled."""
    rng = np.random.default_rng(seed)
    engine = Engine(decoder, Letters(), prefix_cache=bool(rng.integers(2)))
    chosen = rng.permutation(len(REQUESTS))[: rng.integers(2, 9)]
    arrivals, running, results = {int(i): int(rng.integers(0, 12)) for i in chosen}, {}, {}
    while arrivals or engine.busy:
        for index in [i for i, when in arrivals.items() if when <= engine.counts.steps or not engine.busy]:
            running[engine.submit(REQUESTS[index])] = index
            del arrivals[index]
        if running and rng.random() < 0.03:
            number = int(rng.choice(list(running)))
            cancelled = engine.cancel(number)
            assert cancelled.finish_reason == "cancelled"
            assert cancelled.ids == alone_of_each[running.pop(number)].ids[: len(cancelled.ids)]
            continue
        for number, continuation in engine.step():
            results[running.pop(number)] = continuation
    for index, continuation in results.items():
        assert continuation.ids == alone_of_each[index].ids and continuation.finish_reason == "length"
        assert continuation.digests == alone_of_each[index].digests


TENS = [*range(4), *(pytest.param(ten, marks=pytest.mark.slow) for ten in range(4, 60))]


@pytest.mark.parametrize("ten", TENS)
def test_random_schedules(decoder, alone_of_each, ten):
    for seed in range(10 * ten, 10 * ten + 10):
        run_schedule(decoder, alone_of_each, seed)


@pytest.mark.parametrize("ten", TENS[2:10] + TENS[-15:])
def test_other_numbers_of_slots_and_sizes_of_chunks(other_decoder, alone_of_each, ten):
    for seed in range(10 * ten, 10 * ten + 10):
        run_schedule(other_decoder, alone_of_each, seed)


def test_a_step_changes_only_the_rows_of_its_tokens(decoder):
    """Every other byte of the caches stays, but for the row of each slot that nobody reads."""
    rng = np.random.default_rng(0)
    for cache in decoder.caches:
        values = cache.asnumpy()
        values[:] = rng.standard_normal(values.shape)
    for tokens, chunk, lengths in (
        ({0: 5, 2: 6}, None, (3, 7, 23, 0)),
        ({3: 9}, (1, [7, 8]), (0, 22, 0, 0)),
        ({}, (0, [4] * CHUNK), (CAPACITY - CHUNK, 1, 1, 1)),
    ):
        decoder.lengths[:] = lengths
        before = [cache.asnumpy().reshape(SLOTS, CAPACITY + 1, -1).copy() for cache in decoder.caches]
        may_change = np.zeros((SLOTS, CAPACITY + 1), bool)
        may_change[:, CAPACITY] = True
        for slot in tokens:
            may_change[slot, lengths[slot]] = True
        if chunk:
            may_change[chunk[0], lengths[chunk[0]] : lengths[chunk[0]] + len(chunk[1])] = True
        decoder.append(tokens, chunk)
        for cache, old in zip(decoder.caches, before):
            changed = (cache.asnumpy().reshape(old.shape) != old).any(-1)
            assert not (changed & ~may_change).any()
            assert (changed | ~may_change)[:, :CAPACITY].all()  # what was appended is there


def test_a_cancelled_request_leaves_its_slot_to_the_next(decoder):
    engine = Engine(decoder, Letters())
    numbers = [engine.submit(request) for request in make_requests(SLOTS + 1, 2, most=9)]
    engine.step()
    assert numbers[-1] in {one.id for one in engine.table.waiting}
    engine.cancel(numbers[1])
    engine.step()
    assert numbers[-1] in {one.id for one in engine.table.slots if one}


PUBLISHED = [pytest.param(name, marks=pytest.mark.slow) for name in ("paper", "paper-vbs")]


@pytest.mark.parametrize("policy", [*(name for name in POLICIES if not name.startswith("paper")), *PUBLISHED])
def test_the_engine_takes_the_steps_of_the_simulator(decoder, policy, monkeypatch):
    """40 requests with lengths given, and predictions that are wrong by some tokens: all policies, and each answer is
    its request's. Policies whose rows share a budget have less than all slots could hold."""
    budget = 2 * CAPACITY + 7 if POLICIES[policy].rows == "budget" else None
    rng = np.random.default_rng(5)
    prompts, lengths = rng.integers(1, 13, 40), rng.integers(1, 11, 40)
    predicted = np.maximum(1, lengths + rng.integers(-3, 4, 40))
    settings = Settings(group_size=16, bin_tokens=3)
    given = [Given(int(n), int(p), float(q)) for n, p, q in zip(lengths, prompts, predicted)]
    requests = [
        Request(
            tuple(rng.integers(4, CONFIG.vocab_size, p).tolist()),
            SamplingConfig(max_new_tokens=11, temperature=0.0),
            index=i,
            predicted_tokens=float(predicted[i]),
        )
        for i, p in enumerate(prompts)
    ]
    simulated = simulate(
        POLICIES[policy].make(settings), given, Rows(SLOTS, CAPACITY, CHUNK, budget), max_new_tokens=11, clock="steps"
    )
    add = Continuation.add

    def stop_at_length(self, token, room):
        add(self, token, room)
        if len(self.ids) == lengths[self.request.index]:
            self.finish_reason = "stop"

    with monkeypatch.context() as patch:
        patch.setattr(Continuation, "add", stop_at_length)
        answers, engine = run_all(decoder, requests, POLICIES[policy].make(settings), budget)
    assert {number: len(ids) for number, ids in answers.items()} == dict(enumerate(lengths))
    assert engine.counts.steps == simulated.steps
    for number in range(0, 40, 7):
        assert answers[number] == alone(decoder, cut(requests[number], lengths[number])).ids


def run_all(decoder, requests, scheduler, budget=None):
    engine = Engine(decoder, Letters(), scheduler, prefix_cache=False, budget_tokens=budget)
    for request in requests:
        engine.submit(request)
    return {number: continuation.ids for number, continuation in engine.run()}, engine


def cut(request, length):
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, max_new_tokens=int(length)))


def test_equal_beginnings_are_computed_once(decoder, expected):
    """Ten prompts with twelve tokens in common: two whole chunks are copied for all but the first."""
    rng = np.random.default_rng(7)
    stem = rng.integers(4, CONFIG.vocab_size, 12).tolist()
    config = SamplingConfig(max_new_tokens=3, temperature=0.0)
    requests = [Request((*stem, *rng.integers(4, CONFIG.vocab_size, 3).tolist()), config, index=i) for i in range(10)]
    answers = {}
    for reuse in (True, False):
        decoder.lengths[:] = 0
        engine = Engine(decoder, Letters(), prefix_cache=reuse)
        for request in requests:
            engine.submit(request)
        answers[reuse] = [one.ids for _, one in sorted(engine.run())]
        assert engine.counts.prompt_tokens == (15 + 9 * 5 if reuse else 10 * 15)
        if reuse:
            assert engine.prefixes.hit_rate == 9 * 10 / 150
    assert answers[True] == answers[False]


def test_the_next_turn_of_a_chat_is_computed_alone(decoder, expected):
    """One after the other, in the same slot: the second prompt begins with the first and its answer."""
    decoder.lengths[:] = 0
    config = SamplingConfig(max_new_tokens=6, temperature=0.0)
    first = tuple(np.random.default_rng(8).integers(4, CONFIG.vocab_size, 11).tolist())
    engine = Engine(decoder, Letters())
    engine.submit(Request(first, config))
    ((_, one),) = engine.run()
    second = Request((*first, *one.ids, 5, 6), config)
    engine.submit(second)
    ((_, two),) = engine.run()
    chunk = decoder.shape.chunk
    reused = (len(second.prompt) - 1 - 2) // chunk * chunk
    assert two.cached_tokens == engine.prefixes.reused_tokens == reused > len(first)
    assert two.ids == alone(decoder, second).ids


def test_what_a_slot_holds_is_known_also_of_a_request_that_goes_on(decoder):
    """Requests leave their slots at a predicted length and go on from their kept cache, perhaps in another slot."""
    engine = Engine(decoder, Letters(), POLICIES["reserve"].make(Settings(bin_tokens=2)))
    for i, request in enumerate(make_requests(8, 3)):
        engine.submit(dataclasses.replace(request, predicted_tokens=1.0, sampling=sampling(3 * i, 9)))
    went_on = 0
    while engine.busy:
        engine.step()
        went_on = max(went_on, len(engine._kept))
        for one in filter(None, engine.table.slots):
            continuation = engine._continuations[one.id]
            held = [*continuation.request.prompt[: one.prefilled], *continuation.ids[:-1]]
            assert engine.prefixes._tokens[one.slot] == held and decoder.lengths[one.slot] == len(held)
    assert went_on


def test_logits_that_are_no_numbers_end_their_request_alone(decoder, expected, monkeypatch):
    """The others go on, and the slot's later requests are right."""
    append = decoder.append
    broken = REQUESTS[3]

    def overflowing(tokens, chunk=None):
        logits = append(tokens, chunk)
        if chunk and tuple(chunk[1]) == broken.prompt[-len(chunk[1]) :]:
            logits[chunk[0]] = np.nan
            for cache in decoder.caches:
                cache.asnumpy().reshape(SLOTS, CAPACITY + 1, -1)[chunk[0]] = np.nan
        return logits

    monkeypatch.setattr(decoder, "append", overflowing)
    engine = Engine(decoder, Letters())
    order = [0, 3, *range(4, 16)]
    numbers = {engine.submit(REQUESTS[i]): i for i in order}
    ended = {numbers[number]: continuation for number, continuation in engine.run()}
    assert (
        ended[3].finish_reason == "error"
        and "prompt 4: the model's logits behind 0 new tokens hold nan" in ended[3].error
    )
    assert all(ended[i].ids == expected[i] for i in order if i != 3)


def test_log_probabilities_are_the_model_s(decoder):
    """Of the model's distribution, whatever the penalties and the temperature."""
    config = SamplingConfig(max_new_tokens=5, temperature=1.5, repetition_penalty=1.3, logprobs=3)
    request = dataclasses.replace(REQUESTS[4], sampling=config)
    engine = Engine(decoder, Letters())
    engine.submit(request)
    ((_, continuation),) = engine.run()
    parameters = {name: value.astype(np.float64) for name, value in random_parameters(CONFIG).items()}
    ids = [*request.prompt, *continuation.ids]
    logits = forward(CONFIG, parameters, np.array([ids[:-1]]), None)[0, len(request.prompt) - 1 :]
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert len(continuation.logprobs) == len(continuation.ids)
    for row, token, found in zip(wanted, continuation.ids, continuation.logprobs):
        assert found.chosen == pytest.approx(row[token], abs=1e-4)
        assert [i for i, _ in found.top] == np.argsort(-row)[:3].tolist()
        assert [value for _, value in found.top] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)


def test_mistakes(decoder):
    engine = Engine(decoder, Letters(), FirstCome())
    with pytest.raises(GenerationError, match="prompt 3: is empty"):
        engine.submit(Request((), SamplingConfig(), index=2))
    with pytest.raises(GenerationError, match=f"prompt 1: has {CAPACITY} tokens; prompt and continuation must fit in"):
        engine.submit(Request((4,) * CAPACITY, SamplingConfig()))
    for token in (-1, CONFIG.vocab_size):
        with pytest.raises(GenerationError, match=f"prompt 2: token {token} at position 1: must be 0 to"):
            engine.submit(Request((4, token), SamplingConfig(), index=1))
    with pytest.raises(GenerationError, match="prompt 1: domain 3: the model has 0 domains"):
        engine.submit(Request((4,), SamplingConfig(), domain=3))
    assert not engine.busy and engine.step() == []


def test_what_was_scored_in_a_slot_is_not_what_it_held_before(decoder):
    """The prompt of a request that has ended comes again, to the slot in which other tokens were scored since."""
    engine, request = Engine(decoder, Letters()), max(REQUESTS, key=lambda one: len(one.prompt))
    assert len(request.prompt) > CHUNK
    engine.submit(request)
    ((_, first),) = engine.run()
    engine.score([7] * CHUNK, [[8, 9]])
    engine.submit(request)
    ((_, again),) = engine.run()
    assert again.ids == first.ids and again.cached_tokens == 0


def test_scores_and_prompts_begin_with_what_was_computed(decoder):
    """A score that begins like a prompt that runs, another one that begins like it, and a prompt that begins like both:
    the bits of scores and the tokens are those without the cache."""
    stem = tuple(range(4, 4 + 2 * CHUNK))
    items = [((*stem, 5), [[6, 7], [8]]), ((*stem, 9, 10), [[11]])]
    request = Request((*stem, 12), sampling(1, 5))
    plain = Engine(decoder, Letters(), prefix_cache=False)
    expected = [plain.score(*item) for item in items], alone(decoder, request).ids
    engine = Engine(decoder, Letters())
    engine.submit(Request((*stem, 13), sampling(0, 9)))
    for _ in range(4):
        engine.step()
    scores = []
    for item in items:
        scores.append(engine.score(*item))
        assert engine.prefixes.reused_tokens == len(stem) * len(scores)
    assert engine._scorer.counts.computed_tokens < len(stem)
    engine.cancel(0)
    engine.submit(request)
    ((_, after),) = engine.run()
    assert (scores, after.ids) == expected and after.cached_tokens == len(stem)


def test_scores_between_steps_disturb_no_request(decoder, expected):
    """Those of a prompt that a slot holds, and of greedy tokens; without a free slot they are refused."""
    engine = Engine(decoder, Letters())
    numbers = {engine.submit(REQUESTS[i]): i for i in (0, 3, 6)}
    results = dict(engine.step())
    while engine.busy:
        (score, other) = engine.score(REQUESTS[3].prompt, [expected[3], [5]])
        assert len(score.logprobs) == len(expected[3]) and score.is_greedy and not other.is_greedy
        results |= dict(engine.step())
    assert {numbers[number]: one.ids for number, one in results.items()} == {i: expected[i] for i in (0, 3, 6)}
    for i in range(SLOTS):
        engine.submit(REQUESTS[i])
    engine.step()
    with pytest.raises(GenerationError, match="score: requests run in all slots; score when one has ended"):
        engine.score([5], [[6]])
