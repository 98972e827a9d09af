"""The books that engine and simulator keep."""

import pytest

from pangu_ms.infer.scheduling.continuous import FirstCome
from pangu_ms.infer.scheduling.slots import SlotTable
from pangu_ms.infer.scheduling.state import Admission, Chunk, StepPlan, Waiting


def ids(table):
    return [request.id for request in table.waiting]


def admitted(table, *admissions, now=0.0):
    """Carry out admissions alone."""
    return table.admit(table.state(now), StepPlan(tuple(Admission(*one) for one in admissions)))


def test_requests_wait_in_order_of_arrival():
    table = SlotTable(2, 100, 16)
    for identity, arrival in ((0, 1.0), (1, 3.0), (2, 2.0), (3, 2.0)):
        table.submit(Waiting(identity, 5, 9, arrival=arrival))
    assert ids(table) == [0, 2, 3, 1] == [request.id for request in table.state(5.0).waiting]


def test_a_returned_request_waits_where_it_arrived():
    table = SlotTable(1, 100, 16)
    for identity in range(3):
        table.submit(Waiting(identity, 0, 9, 2.0, float(identity)))
    admitted(table, (1, 0, 2))
    assert ids(table) == [0, 2]
    step = StepPlan(decode=(0,), rows=1)
    assert table.advance(step) == ((), ())
    ended = table.advance(step)
    assert ended.finished == () and [(one.id, one.generated) for one in ended.returned] == [(1, 2)]
    assert ids(table) == [0, 1, 2] and table.waiting[1] == Waiting(1, 0, 9, 2.0, 1.0, attempts=1)
    assert table.slots == [None] and table.busy


@pytest.mark.parametrize("keeps_cache", [False, True])
def test_a_returned_request_goes_on_or_begins_anew(keeps_cache):
    table = SlotTable(1, 100, 16, keeps_cache=keeps_cache)
    table.submit(Waiting(0, 20, 9, cached_tokens=4))
    admitted(table, (0, 0, 1))
    table.advance(StepPlan(prefill=Chunk(0, 4, 15)))
    assert table.slots[0].prefilled == 19 and not table.slots[0].ready
    assert table.advance(StepPlan(prefill=Chunk(0, 19, 1))).returned[0].generated == 1, "the last chunk gives a token"
    (one,) = admitted(table, (0, 0, 9), now=7.0)
    wanted = (20, 1) if keeps_cache else (4, 0)
    assert (one.prefilled, one.generated) == wanted and one.limit == 9 and one.admitted == 7


def test_an_answer_ends_at_its_stop_or_where_the_slot_is_full():
    table = SlotTable(2, 10, 16)
    table.submit(Waiting(0, 8, 50))
    table.submit(Waiting(1, 0, 50))
    admitted(table, (0, 0, 2), (1, 1, 10))
    assert table.advance(StepPlan(prefill=Chunk(0, 0, 8), decode=(1,), rows=1)) == ((), ())
    ended = table.advance(StepPlan(decode=(0, 1), rows=2), stopped={1})
    assert {one.id: one.generated for one in ended.finished} == {0: 2, 1: 2} and not ended.returned
    assert not table.busy


def test_cancelling_frees_a_slot_at_once():
    table, policy = SlotTable(1, 100, 16), FirstCome()
    for identity in range(3):
        table.submit(Waiting(identity, 5, 9, arrival=float(identity)))
    state = table.state(3.0)
    table.admit(state, policy.plan(state))
    assert table.cancel(1) is None and table.cancel(0) == 0 and ids(table) == [2]
    assert policy.plan(table.state(4.0)).admit == (Admission(2, 0, 9),)
    with pytest.raises(KeyError):
        table.cancel(0)


def test_a_waiting_request_is_updated_in_its_place():
    table = SlotTable(1, 100, 16)
    for identity in range(2):
        table.submit(Waiting(identity, 20, 9, arrival=float(identity)))
    table.update(Waiting(0, 20, 9, 3.0, cached_tokens=16))
    assert ids(table) == [0, 1] and table.waiting[0].predicted_tokens == 3
    state = table.state(2.0)
    assert FirstCome().plan(state).prefill == Chunk(0, 16, 4)
    with pytest.raises(ValueError, match="does not wait"):
        table.update(Waiting(7, 20, 9))
    for cached in (20, -1):
        with pytest.raises(ValueError, match=f"{cached} cached tokens of 20"):
            table.update(Waiting(0, 20, 9, cached_tokens=cached))
        with pytest.raises(ValueError, match=f"{cached} cached tokens of 20"):
            table.submit(Waiting(9, 20, 9, cached_tokens=cached))


def test_a_plan_for_another_state_is_refused():
    table = SlotTable(1, 100, 16)
    table.submit(Waiting(0, 5, 9))
    with pytest.raises(ValueError, match="does not wait"):
        admitted(table, (5, 0, 9))
    assert ids(table) == [0] and table.slots == [None]
