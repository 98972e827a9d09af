"""Who hangs and who is slow, from made-up heartbeats."""

import pytest

from pangu_ms.core.heartbeat import DATA, INIT, SAVE, STEP, WAIT
from pangu_run.job.job import DeviceAssignment, Limits
from pangu_run.supervisor.watchdog import RankState, hung, slow

LIMITS = Limits(hang_s=10.0, start_s=100.0)


def ranks(count=3):
    return [RankState(DeviceAssignment(rank, "h", rank), last_heard=0.0) for rank in range(count)]


def beat(state, phase, now, step=0):
    state.update({"phase": phase, "step": step, "time": 1e9 + now, "pid": 1}, now)


def stepped(count=3):
    """Ranks that have done a step and wait for each other at second 1."""
    states = ranks(count)
    for state in states:
        for phase in (INIT, DATA, STEP, WAIT):
            beat(state, phase, 1.0)
    return states


def named(states, now):
    return [state.assignment.rank for state in hung(states, LIMITS, now)]


@pytest.mark.parametrize("phase", [DATA, STEP, SAVE])
def test_who_waits_for_the_silent_one_does_not_hang(phase):
    states = stepped()
    beat(states[1], phase, 2.0, step=1)
    assert named(states, 11.9) == [] and named(states, 12.1) == [1]


def test_of_silent_ranks_the_one_that_is_behind_is_named_first():
    """The others compute, and wait for it inside a collective."""
    states = stepped(4)
    for rank, phase, step, now in ((0, STEP, 7, 3.0), (1, STEP, 7, 2.5), (2, DATA, 6, 2.9), (3, STEP, 7, 3.0)):
        beat(states[rank], phase, now, step)
    assert named(states, 20.0) == [2, 1, 0, 3]


def test_until_its_first_step_is_done_a_rank_may_compile_for_long():
    states = ranks()
    for state in states:
        beat(state, STEP, 1.0)
    assert named(states, 50.0) == [] and named(states, 101.1) == [0, 1, 2]
    beat(states[0], WAIT, 5.0)
    assert named(states, 101.1) == [1, 2]


def test_all_silent_is_a_hang_though_all_wait_and_ended_ranks_are_none():
    states = stepped()
    assert named(states, 11.5) == [0, 1, 2]
    beat(states[0], DATA, 11.0)
    assert named(states, 11.5) == []
    states = stepped()
    states[2].state = "ended"
    assert named(states, 11.5) == [0, 1]


def test_a_rank_is_slow_by_its_own_work_not_by_waiting():
    states = ranks()
    for step in range(7):
        for state, own in zip(states, (0.1, 2.0, 0.1)):
            beat(state, DATA, 10.0 * step, step)
            beat(state, STEP, 10.0 * step + own, step)
            beat(state, WAIT, 10.0 * step + own + 0.5, step)
            beat(state, STEP, 10.0 * step + 4.0, step)  # the sum over ranks, after all have come
            beat(state, WAIT, 10.0 * step + 4.1, step)
    ((state, seconds, median),) = slow(states)
    assert (
        state.assignment.rank == 1
        and seconds == pytest.approx(2.6, abs=1e-4)
        and median == pytest.approx(0.7, abs=1e-4)
    )
