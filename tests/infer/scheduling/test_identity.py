"""Every request gets its own answer, once, whatever the policy does; and the two faults of the published program, and
others like them, are seen."""

import pytest

from pangu_ms.infer.scheduling.policies import POLICIES
from pangu_ms.infer.scheduling.slots import SlotTable
from pangu_ms.infer.scheduling.static_batches import Batch, SortedBatches, StaticBins
from tests.infer.scheduling.common import EchoEngine, alone, generator, scheduler


def random_requests(rng, number, slot_tokens):
    """(prompt, length, maximum, prediction) of each; prompts of one token and such that leave room for one among
    them."""
    requests = []
    for identity in range(number):
        prompt = int(rng.choice([1, slot_tokens - 1, rng.integers(1, slot_tokens)]))
        most = int(rng.integers(1, slot_tokens))
        length = int(rng.integers(1, most + 1))
        predicted = None if rng.random() < 0.1 else max(1.0, length + float(rng.normal()) * 20)
        requests.append(([identity, *rng.integers(0, 1000, prompt - 1).tolist()], length, most, predicted))
    return requests


def engine_for(policy, rng, engine=EchoEngine):
    slot_tokens = int(rng.integers(10, 120))
    num_slots, chunk = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    budget = int(rng.integers(slot_tokens, num_slots * slot_tokens + 1)) if rng.random() < 0.5 else None
    return engine(policy, num_slots, slot_tokens, chunk, budget), slot_tokens


def expected(request, slot_tokens):
    prompt, length, most, _ = request
    return alone(prompt, min(length, most, slot_tokens - len(prompt)))


@pytest.mark.parametrize("name", POLICIES)
def test_random_schedules_give_each_request_the_answer_that_it_has_alone(name):
    failures = 0
    for seed in range(12):
        rng = generator([seed, len(name)])
        engine, slot_tokens = engine_for(scheduler(name, group_size=8, bin_tokens=10), rng)
        requests, cancelled = random_requests(rng, 24, slot_tokens), set()
        coming = list(requests)
        while coming or engine.table.busy:
            for _ in range(int(rng.integers(0, 4)) if engine.table.busy else 1):
                if coming:
                    engine.submit(*coming.pop(0))
            live = [request[0][0] for request in requests[: len(requests) - len(coming)]]
            live = [identity for identity in live if identity not in engine.answers and identity not in cancelled]
            if live and rng.random() < 0.02:
                cancelled.add(identity := int(rng.choice(live)))
                engine.cancel(identity)
            if engine.table.busy:
                engine.step()
        wanted = {one[0][0]: expected(one, slot_tokens) for one in requests if one[0][0] not in cancelled}
        assert engine.answers == wanted
        failures += len(engine.failures)
    assert (failures > 10) == (name in ("bins", "bins-resume", "paper", "reserve")), failures


def requests_with_failures():
    """Thirty requests, some of which are longer than predicted."""
    rng = generator(3)
    requests = []
    for identity in range(30):
        length = int(rng.integers(1, 60))
        predicted = length / 3 if identity % 5 == 0 else float(length)
        requests.append(([identity, 5, identity % 7], length, 60, predicted))
    return requests


def answers(policy, engine=EchoEngine):
    """Of the requests above."""
    engine = engine(policy, 4, 64, 16)
    for request in requests_with_failures():
        engine.submit(*request)
    engine.run()
    assert not isinstance(policy, StaticBins) or len(engine.failures) > 3
    return engine.answers


BINS = StaticBins(group_size=16, bin_tokens=20)
RIGHT = {request[0][0]: expected(request, 64) for request in requests_with_failures()}


def sorted_group(identity):
    """The group of a request, in order of arrival, and the permutation that sorts it."""
    group = [request for request in requests_with_failures() if request[0][0] // 16 == identity // 16]
    return group, sorted(range(len(group)), key=lambda place: group[place][3])


def test_without_a_fault_all_answers_are_right():
    assert answers(BINS) == answers(StaticBins(True, 16, 20)) == answers(SortedBatches(group_size=16)) == RIGHT


class PermutedTwice(EchoEngine):
    """The published fault (i): `outs[order[place]]` applies the sorting permutation again instead of its inverse."""

    def owner(self, one):
        group, order = sorted_group(one.id)
        answered = order.index(one.id % 16)  # the place of this answer in the sorted outputs
        return group[order.index(answered)][0][0]  # the request i with order[i] == answered


def test_the_published_permutation_applied_twice_is_seen():
    given = answers(SortedBatches(group_size=16), PermutedTwice)
    assert given.keys() == RIGHT.keys(), "each request is answered once"
    assert sum(given[identity] != RIGHT[identity] for identity in RIGHT) > 20


class WrongFailures(EchoEngine):
    """The published fault (ii): the prompt of a failure is looked up by its place in the sorted outputs."""

    def prompt_of(self, one):
        group, order = sorted_group(one.id)
        return group[order.index(one.id % 16)][0] if one.id in self.failures else super().prompt_of(one)


def test_the_published_index_of_failures_is_seen():
    given = answers(BINS, WrongFailures)
    wrong = [identity for identity in RIGHT if given[identity] != RIGHT[identity]]
    assert 3 <= len(wrong) and all(identity % 5 == 0 for identity in wrong), "those that failed"


class AnotherReturned(SlotTable):
    """Books that put back another request than the one that reached its limit."""

    def _leave(self, running):
        request = super()._leave(running)
        returned = running.generated < request.max_new_tokens and running.generated == running.limit
        other = min(self._requests.values(), key=lambda one: one.id, default=request)
        return other if returned else request


class WithWrongBooks(EchoEngine):
    books = AnotherReturned


def test_books_that_return_another_request_are_seen():
    with pytest.raises((AssertionError, KeyError)):
        assert answers(BINS, WithWrongBooks) == RIGHT


class Forgetful(StaticBins):
    """A policy that looks up failures by place: the requests at these places may not wait."""

    def form(self, state):
        if not any(request.attempts for request in state.waiting):
            return super().form(state)
        return (Batch(tuple(1000 + place for place, one in enumerate(state.waiting) if one.attempts), 64),)


def test_a_policy_that_loses_failures_is_told():
    with pytest.raises(AssertionError, match="nothing is done"):
        answers(Forgetful(group_size=16, bin_tokens=20))
