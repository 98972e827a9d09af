"""Plans: pure, valid in any state, and what each policy promises."""

import copy
import dataclasses

import pytest

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.scheduling.continuous import FirstCome, LongestFirst, ShortestFirst
from pangu_ms.infer.scheduling.policies import POLICIES
from pangu_ms.infer.scheduling.simulator import Given, Rows, simulate
from pangu_ms.infer.scheduling.slots import SlotTable
from pangu_ms.infer.scheduling.state import Admission, Chunk, Running, State, StepPlan, Waiting, require_valid
from tests.infer.scheduling.common import CONTINUOUS, generator, random_state, require_kept, scheduler


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("shared", [False, True])
def test_continuous_plans_hold_in_any_state(name, shared):
    rng, policy, admitted, with_chunk = generator(7), scheduler(name), 0, 0
    for _ in range(400):
        state = random_state(rng, shared)
        before = copy.deepcopy(state)
        plan = policy.plan(state)
        assert state == before and plan == scheduler(name).plan(before), "not a function of the state alone"
        require_kept(state, plan)
        require_valid(state, plan)
        free = state.slots.count(None) - len(plan.admit)
        left = [request for request in state.waiting if request.id not in {one.id for one in plan.admit}]
        if not shared and name != "reserve":
            assert not (free and left), "a slot is free while a request waits"
        ready = [one.slot for one in state.slots if one and one.ready]
        assert set(ready) <= set(plan.decode), "a running request loses a step"
        unready = [one for one in state.slots if one and not one.ready]
        assert plan.prefill or not unready, "a prompt waits, and no chunk is computed"
        admitted, with_chunk = admitted + len(plan.admit), with_chunk + bool(plan.prefill)
    assert admitted > 200 and with_chunk > 200


@pytest.mark.parametrize("name", POLICIES)
def test_schedulers_are_values(name):
    assert scheduler(name) == scheduler(name) and hash(scheduler(name)) == hash(scheduler(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheduler(name).keeps_cache = True


def state_of(waiting, num_slots=1, slot_tokens=600, now=0.0, running=(), budget=None):
    slots = [*running, *[None] * (num_slots - len(running))]
    return State(now, tuple(waiting), tuple(slots), slot_tokens, budget or num_slots * slot_tokens, 64)


def order_of(policy, waiting, now=0.0):
    """Ids in the order in which requests get slots."""
    plan = policy.plan(state_of(waiting, len(waiting), now=now))
    return [admission.id for admission in plan.admit]


def test_orders():
    requests = [
        Waiting(0, 10, 512, 300.0, 0.0),
        Waiting(1, 10, 512, 20.0, 1.0),
        Waiting(2, 10, 512, 100.0, 2.0),
        Waiting(3, 10, 512, None, 3.0),
        Waiting(4, 10, 512, 20.0, 4.0),
    ]
    assert order_of(scheduler("fcfs"), requests, 5.0) == [0, 1, 2, 3, 4]
    assert order_of(ShortestFirst(), requests, 5.0) == [1, 4, 2, 0, 3]
    assert order_of(LongestFirst(), requests, 5.0) == [3, 0, 2, 1, 4]
    assert order_of(scheduler("hrrn"), requests, 5.0) == [1, 4, 2, 0, 3]  # 4/20, 1/20, 3/100, 5/300, 2/512
    assert order_of(scheduler("hrrn"), requests, 1000.0) == [1, 4, 2, 0, 3]
    # At 4.5 the first has waited for longer than max_wait; the others count (1 - wait / max_wait) of their steps.
    assert order_of(ShortestFirst(max_wait=4.4), requests, 4.5) == [0, 1, 4, 2, 3]


def test_long_prompts_count_as_steps_too():
    long_prompt, short_prompt = Waiting(0, 640, 512, 20.0), Waiting(1, 10, 512, 25.0)
    assert order_of_wide(ShortestFirst(), [long_prompt, short_prompt]) == [1, 0]
    cached = dataclasses.replace(long_prompt, cached_tokens=600)
    assert order_of_wide(ShortestFirst(), [cached, short_prompt]) == [0, 1]


def test_of_a_resumed_request_only_what_is_left_counts():
    half_done = Waiting(0, 640, 100, 20.0, generated=80, attempts=1)  # 20 steps are left of its maximum
    assert order_of_wide(ShortestFirst(), [Waiting(1, 0, 100, 25.0), half_done]) == [0, 1]
    assert order_of_wide(ShortestFirst(), [Waiting(1, 0, 100, 15.0), half_done]) == [1, 0]


def order_of_wide(policy, waiting):
    plan = policy.plan(state_of(waiting, len(waiting), slot_tokens=2000))
    return [admission.id for admission in plan.admit]


def test_a_large_request_is_not_passed_where_slots_share_a_budget():
    running = [Running(9, 0, 10, 10, 5, 490)]
    waiting = [Waiting(0, 100, 500, None), Waiting(1, 10, 50, None)]
    assert FirstCome().plan(state_of(waiting, 3, running=running, budget=1000)).admit == ()
    plan = FirstCome().plan(state_of(waiting, 3, running=running, budget=1160))
    assert plan.admit == (Admission(0, 1, 500), Admission(1, 2, 50))


def test_a_chunk_of_the_request_that_was_admitted_first():
    running = [Running(0, 0, 100, 70, 0, 5, 3.0), Running(1, 1, 100, 0, 0, 5, 2.0), Running(2, 2, 4, 4, 1, 5, 0.0)]
    plan = FirstCome().plan(state_of([], 3, running=running))
    assert plan == StepPlan((), Chunk(1, 0, 64), (2,), 1)


def test_limits_follow_predictions():
    reserve = scheduler("reserve", bin_tokens=50)
    waiting = [
        Waiting(0, 10, 512, 41.0),
        Waiting(1, 10, 512, 500.0),
        Waiting(2, 10, 512, None),
        Waiting(3, 10, 60, 55.0),
    ]
    assert [one.limit for one in reserve.plan(state_of(waiting, 4)).admit] == [50, 500, 512, 60]
    again = [dataclasses.replace(one, attempts=1) for one in waiting]
    assert [one.limit for one in reserve.plan(state_of(again, 4)).admit] == [512, 512, 512, 60]


def batches_of(policy, state):
    """(ids, limits) of the batches that a policy makes of a state when nothing else comes."""
    batches = []
    while (plan := policy.plan(state)).admit:
        batches.append({one.id: one.limit for one in plan.admit})
        left = tuple(one for one in state.waiting if one.id not in batches[-1])
        state = dataclasses.replace(state, waiting=left, memory=plan.memory)
    return batches


def test_bins_have_larger_batches_for_shorter_answers():
    lengths = [200.0, 20.0, 41.0, 480.0, 30.0, 20.0, 90.0, None, 25.0]
    waiting = [Waiting(i, 10, 512, length) for i, length in enumerate(lengths)]
    state = state_of(waiting, 8, slot_tokens=600, budget=600)
    policy = scheduler("bins", bin_tokens=50, margin_tokens=10)
    # 600 tokens hold 10 rows of 10 + 50, of which there are 8 slots, 5 of 110, 2 of 260, 1 of 510 or 522.
    long = [{0: 250}, {3: 500}, {7: 512}]
    assert batches_of(policy, state) == [{1: 50, 5: 50, 8: 50, 4: 50}, {2: 100, 6: 100}, *long]
    # Without the last one the first bin's three are less than half a batch and join the next bin.
    fewer = dataclasses.replace(state, waiting=state.waiting[:-1])
    assert batches_of(policy, fewer) == [{1: 100, 5: 100, 4: 100, 2: 100, 6: 100}, *long]


def test_failures_run_again_behind_their_group_or_behind_all():
    waiting = [Waiting(i, 10, 512, 20.0) for i in range(6)]
    waiting[1], waiting[4] = (dataclasses.replace(waiting[i], attempts=1) for i in (1, 4))
    state = state_of(waiting, 16, slot_tokens=600, budget=1200)
    first = {0: 50, 2: 50, 3: 50, 5: 50}
    assert batches_of(scheduler("bins"), state) == [{1: 512, 4: 512}, first]
    assert batches_of(scheduler("bins-resume"), state) == [first, {1: 512, 4: 512}]


WRONG = {
    "does not wait": StepPlan((Admission(7, 1, 5),)),
    "slot 0, which is not free": StepPlan((Admission(1, 0, 5),)),
    "slot 2, which is not free": StepPlan((Admission(1, 2, 5), Admission(2, 2, 5))),
    "slot 3, which is not free": StepPlan((Admission(1, 3, 5),)),
    "may have 600": StepPlan((Admission(1, 1, 600),)),
    "tokens of": StepPlan((Admission(1, 1, 512), Admission(2, 2, 512))),
    "decodes twice": StepPlan(decode=(0, 0), rows=2),
    "slot 1 decodes": StepPlan(decode=(1,), rows=1),
    "0 rows": StepPlan(decode=(0,)),
    "does not begin": StepPlan((Admission(1, 1, 5),), Chunk(1, 1, 5)),
    "has 11 tokens": StepPlan((Admission(1, 1, 5),), Chunk(1, 0, 11)),
}


@pytest.mark.parametrize("says", WRONG)
def test_a_plan_that_cannot_be_carried_out_is_refused(says):
    waiting = [Waiting(1, 10, 512, None), Waiting(2, 10, 512, None)]
    state = state_of(waiting, 3, running=[Running(0, 0, 3, 3, 1, 100)], budget=1000)
    with pytest.raises(ValueError, match=says):
        require_valid(state, WRONG[says])


def test_what_no_slot_holds_is_refused_at_once():
    table = SlotTable(4, 100, 64)
    with pytest.raises(GenerationError, match="100 prompt tokens.*holds 100 in all"):
        table.submit(Waiting(0, 100, 5))
    with pytest.raises(GenerationError, match="max_new_tokens=0"):
        table.submit(Waiting(0, 5, 0))
    table.submit(Waiting(0, 99, 5))
    with pytest.raises(ValueError, match="live request"):
        table.submit(Waiting(0, 5, 5))
    with pytest.raises(GenerationError, match="holds 60 in all"):
        SlotTable(4, 100, 64, budget_tokens=60).submit(Waiting(0, 50, 20))


def longest_wait(policy, number, apart=4.0):
    """Steps that a long request waits which comes after 25 short ones, where `number` short ones alone claim both slots
    (a little more than there is, unless they are 5 steps apart)."""
    requests = [Given(10, 0, 10.0, apart * i) for i in range(number)] + [Given(500, 0, 500.0, 100.5)]
    place = sorted(given.arrival for given in requests).index(100.5)
    return simulate(policy, requests, Rows(2, 600), clock="steps").waits[place]


def test_aging_bounds_the_wait_and_without_it_there_is_no_bound():
    assert longest_wait(ShortestFirst(max_wait=600.0), 300) <= 600
    assert longest_wait(ShortestFirst(max_wait=100.0), 300) <= 100 + longest_wait(FirstCome(), 300)
    without = [longest_wait(ShortestFirst(), number) for number in (150, 300)]
    assert without[0] > 600 and without[1] > without[0] + 600
    assert longest_wait(ShortestFirst(), 150, apart=5.0) > 600 > 20 > longest_wait(scheduler("hrrn"), 150, apart=5.0)
