"""A state.json that no run writes is refused before a run goes on from it."""

import pytest

from pangu_ms.checkpoint import store
from pangu_ms.core.errors import CheckpointError
from pangu_ms.train.guard import Guard
from pangu_ms.train.state import RunState
from tests.checkpoint.common import groups_of, small_config

STATE = {
    "step": 3,
    "guard": Guard(scale=8.0, seen=2).state(),
    "order": "",
    "loss_after": 1.5,
    "bends": [{"step": 1, "changed": ["optimizer.lr=1 (was 2)"]}],
    "graph_batch_size": 4,
}


def state_of(root, state):
    return RunState.of(store.open_checkpoint(store.save(root, 3, groups_of(3), state, small_config())))


def test_the_state_of_a_run_and_of_version_0_1_0(tmp_path):
    found = state_of(tmp_path / "new", STATE)
    assert (found.guard, found.branches, found.graph_batch_size) == (Guard(scale=8.0, seen=2), tuple(STATE["bends"]), 4)
    old = state_of(tmp_path / "old", {"step": 3, "guard": Guard().state()})
    assert (old.order, old.branches, old.graph_batch_size) == ("", (), None)


WRONG = {
    "step": {"step": 4},
    "step: ": {"step": "3"},
    "guard.scale: ": {"guard": {"scale": "1"}},
    "guard.mean_loss: .*finite": {"guard": {"mean_loss": float("nan")}},
    "bends.0.changed: ": {"bends": [{"step": 1}]},
    "graph_batch_size: ": {"graph_batch_size": [4]},
    "guard: ": {"guard": None},
}


@pytest.mark.parametrize("words", WRONG)
def test_what_no_run_writes(tmp_path, words):
    with pytest.raises(CheckpointError, match=rf"state.json.* {words}.*; use another checkpoint$") as refused:
        state_of(tmp_path, STATE | WRONG[words])
    assert "\n" not in str(refused.value)
