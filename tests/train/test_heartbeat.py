"""What a run tells its launcher, phase by phase, and signals that come before its first step."""

import json
import os
import signal
import threading
import uuid

import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.config import load_config
from pangu_ms.core import heartbeat
from pangu_ms.parallel.rendezvous import Rendezvous
from tests.train.runs import losses, metrics, require_equal_runs

pytestmark = pytest.mark.usefixtures("compiled_models")


@pytest.fixture
def heard(monkeypatch):
    """Reads the beats of this process so far, as a launcher does: (phase, step) and the other facts."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    monkeypatch.setenv(heartbeat.DESCRIPTOR, str(writer))
    heartbeat._pipe.cache_clear()

    def read():
        beats = [json.loads(line) for line in os.read(reader, 1 << 16).decode().splitlines()]
        assert all(abs(beat.pop("time") - beats[-1].get("time", 0)) < 60 for beat in beats[:-1])
        beats[-1].pop("time")
        return [((beat.pop("phase"), beat.pop("step")), beat) for beat in beats]

    yield read
    os.close(reader)
    os.close(writer)
    heartbeat._pipe.cache_clear()


def run(records, overrides, output, **options):
    from pangu_ms.train.loop import train

    return train(load_config("alpha/tiny", overrides), records, output, progress=False, **options)


def test_a_run_tells_each_phase_once(records, tiny_overrides, tmp_path, heard):
    result = run(
        records, [*tiny_overrides, "train.steps=4", "train.save_every=2", "train.eval_every=3"], tmp_path / "run"
    )
    beats = heard()
    steps = {step: [("data", step), ("step", step)] for step in range(4)}
    saves = {
        step: [("evaluate", step), ("save", step), ("save", step)] for step in (2, 4)
    }  # evaluate: is the loss after the step good?
    begin = [("init", None), ("init", None)]
    assert [what for what, _ in beats] == [
        *begin,
        *steps[0],
        *steps[1],
        *saves[2],
        *steps[2],
        ("evaluate", 3),
        *steps[3],
        *saves[4],
        ("evaluate", 4),
    ]
    assert [facts["saved"] for _, facts in beats if "saved" in facts] == [2, 4]
    speeds = [facts.get("tokens_per_second") for (phase, _), facts in beats if phase in ("data", "step")]
    assert speeds[:2] == [None, None] and all(speed > 0 for speed in speeds[2:]) and result.step == 4
    assert beats[-3][1] == {} and beats[-2][1] == {"saved": 4}  # said only once it is committed


def test_who_meets_others_says_that_it_waits(heard):
    name = uuid.uuid4().hex
    others = threading.Thread(target=lambda: Rendezvous(name, 1, 2).barrier("SIGUSR1"))
    others.start()
    assert Rendezvous(name, 0, 2).barrier() == "SIGUSR1"
    others.join()
    assert heard() == [(("wait", None), {})] * 2


def signalled_at(monkeypatch, name):
    """SIGUSR1 comes when the run calls `name`."""
    from pangu_ms.train import run

    original = getattr(run, name)

    def with_signal(*arguments, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments, **options)

    monkeypatch.setattr(run, name, with_signal)


@pytest.mark.parametrize(
    "name", ["build_distributed_model", pytest.param("starting_point", marks=pytest.mark.slow), "initialize"]
)
def test_a_signal_before_the_first_step_stops_without_one(
    records, tiny_overrides, tmp_path, monkeypatch, trained_run, name
):
    signalled_at(monkeypatch, name)
    output = tmp_path / "run"
    stopped = run(records, tiny_overrides, output)
    assert (stopped.step, stopped.stopped_by, stopped.loss) == (0, "SIGUSR1", None)
    assert (
        open_checkpoint(output).step == 0
        and metrics(output) == []
        and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    )
    if name == "build_distributed_model":  # once more, now where a run is
        before = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
        assert run(records, tiny_overrides, output, resume=True).stopped_by == "SIGUSR1"
        assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == before
    monkeypatch.undo()
    if name != "initialize":
        run(records, tiny_overrides, output, resume=True)
        assert len(losses(output)) == 12
        require_equal_runs(trained_run, output)
