"""What is committed of a run whose losses turn bad: nothing but states whose loss was seen to be good. Losses are
given, not computed."""

import math
from types import SimpleNamespace

import pytest

from pangu_ms.checkpoint import store
from pangu_ms.config import load_config
from pangu_ms.core.errors import TrainingDiverged
from pangu_ms.train import loop, run
from tests.train.given import Given
from tests.train.runs import steps_of

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


@pytest.fixture
def session(records, tiny_overrides, tmp_path, monkeypatch):
    """Trains with given losses; the result, and the model."""
    monkeypatch.setattr(run, "load", lambda model, checkpoint, group: None)
    monkeypatch.setattr(run, "initialize", lambda model, token_counts: None)
    saves_often = ["train.save_every=1", "train.keep_checkpoints=2"]

    def train(*overrides, resume=False, stop_at=None, **given):
        made = []
        monkeypatch.setattr(
            run, "build_distributed_model", lambda config, _: made.append(Given(config, **given)) or made[0]
        )
        config = load_config("alpha/tiny", [*tiny_overrides, *saves_often, *overrides])
        result = loop.train(config, records, tmp_path / "run", resume, stop_at=stop_at, progress=False)
        return SimpleNamespace(result=result, calls=made[0].calls)

    train.output = tmp_path / "run"
    return train


def bad_from(step):
    return lambda number: 2.0 if number < step else math.nan


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6], ids=str)
def test_weights_after_which_losses_are_bad_are_not_committed_and_the_good_ones_stay(session, bad):
    """The step that spoilt them was a good one: step 4 has a loss of 2, and what it leaves has a bad one in each of
    seven attempts to save."""
    with pytest.raises(TrainingDiverged, match="the newest good checkpoint is of step 4; .*--resume-from 4 "):
        session(loss=lambda step: 2.0 if step < 5 else bad)
    assert steps_of(session.output) == [3, 4]


def test_the_state_after_the_last_step_is_confirmed_too(session):
    with pytest.raises(
        TrainingDiverged,
        match="^step 12: is the last one, and the losses after it are bad; the newest good checkpoint is of step 11",
    ):
        session(loss=bad_from(12))
    assert steps_of(session.output) == [10, 11]


def test_a_signal_commits_what_one_forward_pass_confirms(session):
    done = session("train.save_every=0", signal_at=6)
    assert (done.result.stopped_by, done.result.step, done.result.saved) == ("SIGTERM", 7, 7) and steps_of(
        session.output
    ) == [7]
    assert done.calls == [*((step, False) for step in range(7)), (7, True)]


def test_a_signal_in_a_streak_commits_nothing(session):
    done = session(loss=bad_from(5), signal_at=6)
    assert (done.result.stopped_by, done.result.step, done.result.saved) == ("SIGTERM", 7, 4) and steps_of(
        session.output
    ) == [3, 4]


def test_a_resumed_run_remembers_how_many_steps_were_skipped_in_a_row(session):
    """Their losses are good, and their gradients are not finite."""
    session("guard.max_skipped=3", overflows=(4, 5, 6, 7), stop_at=6)
    assert store.open_checkpoint(session.output).state()["guard"]["skipped_in_row"] == 2
    with pytest.raises(TrainingDiverged, match="^step 7: 3 steps in a row were skipped"):
        session("guard.max_skipped=3", overflows=(4, 5, 6, 7), resume=True)
