"""`pangu launch ... train` on CPU processes with faults in them: it ends as it should, in time, and what is resumed
equals the uninterrupted run bit for bit.

The slow tests print their numbers; run them with -m slow -s.
"""

import functools
import json
import random
import re
import signal
import statistics
import time

import pytest

from pangu_ms.checkpoint.store import latest_valid
from pangu_ms.core.exit_codes import EXIT_HANG, EXIT_STOPPED
from pangu_ms.core.heartbeat import PHASES
from tests.faults.common import Launch, fault, wait_for
from tests.train.runs import losses, require_equal_runs

RANKS, STEPS, FEW_STEPS, SAVE_EVERY = 4, 30, 9, 5
SLOWED = [fault(0, "data", "sleep", seconds=0.1, times=0)]  # else all steps are done before a signal comes
SLOW_SAVES = [fault(0, "save", "sleep", seconds=0.3, times=0)]  # else hardly any signal comes in one
NOTED = [fault(0, phase, "note", times=0) for phase in PHASES]


class Runs:
    """Starts launches of one configuration."""

    def __init__(self, records, overrides):
        small = [
            "train.batch_size=1",
            f"train.save_every={SAVE_EVERY}",
            "optimizer.decay_steps=100",
            "train.keep_checkpoints=0",
        ]
        self.words = ["--config", "alpha/tiny", *overrides, *small, "--data", str(records)]

    def start(self, output, faults=(), *options, ranks=RANKS, resume=False, steps=STEPS):
        """A launcher, started."""
        launch = [
            "-m",
            "pangu_ms",
            "launch",
            "--device",
            "cpu",
            "--num-ranks",
            str(ranks),
            "--backoff",
            "0.1",
            *options,
        ]
        return Launch(
            [
                *launch,
                "train",
                *self.words,
                f"train.steps={steps}",
                "--output",
                str(output),
                *(["--resume"] if resume else []),
            ],
            output,
            faults,
        )


@pytest.fixture(scope="module")
def runs(records, tiny_overrides):
    return Runs(records, tiny_overrides)


@pytest.fixture(scope="module")
def whole(runs, trained_run, tmp_path_factory):
    """The run that nothing happens to, of so many ranks; `trained_run` has built the CPU's kernels."""

    @functools.cache
    def output(ranks, steps=STEPS):
        job = runs.start(tmp_path_factory.mktemp("whole") / "run", ranks=ranks, steps=steps).finish(300)
        assert job.code == 0, job.stderr
        job.require_records()
        return job.output

    return output


def newest(output):
    """Step of the newest valid checkpoint; 0: none."""
    found = latest_valid(output / "checkpoints")[0] if (output / "checkpoints").exists() else None
    return found.step if found else 0


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, EXIT_STOPPED),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_launcher_that_ends_before_ranks_start_leaves_nothing(runs, tmp_path, number, code):
    """While records are prepared for a run that names none."""
    words = runs.words[: runs.words.index("--data")]
    launch = [
        "-m",
        "pangu_ms",
        "launch",
        "--device",
        "cpu",
        "--num-ranks",
        "2",
        "train",
        *words,
        "--output",
        str(tmp_path / "run"),
    ]
    job = Launch(launch, tmp_path / "run")
    wait_for(lambda: job.process.poll() is not None or len(job.alive()) > 2 and (tmp_path / "run").exists())
    job.process.send_signal(number)
    began = time.monotonic()
    assert job.finish().code == code and time.monotonic() - began < 5
    assert "Traceback" not in job.stderr and not (tmp_path / "run/job").exists(), job.stderr


@pytest.mark.slow  # a death without the launcher's restart: tests/train/test_data_parallel.py
def test_a_death_is_recovered_from_bit_for_bit(runs, whole, tmp_path):
    job = runs.start(
        tmp_path / "run", [fault(0, "step", "sigkill", 7)], "--max-restarts", "1", ranks=2, steps=FEW_STEPS
    ).finish(300)
    assert job.code == 0, job.stderr
    job.require_records()
    (death,) = job.events("failure")
    assert (death["code"], death["rank"], death["step"]) == (137, 0, 7)
    assert [event["step"] for event in job.events("checkpoint")] == [5, FEW_STEPS]
    require_equal_runs(whole(2, FEW_STEPS), job.output)


@pytest.mark.slow
def test_a_hang_and_a_death_are_recovered_from_bit_for_bit(runs, whole, tmp_path):
    faults = [fault(1, "step", "stubborn", 7), fault(0, "step", "sigkill", 13)]
    job = runs.start(tmp_path / "run", faults, "--max-restarts", "2", "--hang-timeout", "8", ranks=2).finish(400)
    assert job.code == 0, job.stderr
    job.require_records()
    hang, death = job.events("failure")
    assert (hang["kind"], hang["ranks"], hang["phase"], hang["step"]) == (
        "hang",
        [1],
        "step",
        7,
    ) and " in _stubborn" in job.stderr
    assert 8 <= hang["time"] - job.deeds[0]["time"] < 16
    assert (death["code"], death["rank"], death["step"]) == (137, 0, 13) and death["time"] - job.deeds[1]["time"] < 8
    assert [event["step"] for event in job.events("checkpoint")] == [5, 10, 15, 20, 25, 30]
    require_equal_runs(whole(2), job.output)


@pytest.mark.slow  # one signal and one death: tests/train/test_data_parallel.py
def test_signals_at_random_instants_stop_all_ranks_at_one_step_and_nothing_is_lost(runs, whole, tmp_path):
    output, rng, instants = tmp_path / "run", random.Random(7), []
    chain(runs, output, rng, ["early", "late", "late"], instants, SLOWED, STEPS)
    last = runs.start(output, resume=True).finish(300)
    assert last.code == 0, last.stderr
    require_equal_runs(whole(RANKS), output)


def chain(runs, output, rng, kinds, instants, faults, steps):
    """Sessions of one run, each stopped by a signal at a random instant, while its ranks start (early) or after its
    first steps (late)."""
    for kind in kinds:
        before = newest(output)
        job = runs.start(output, [*NOTED, *faults], resume=before > 0 or output.exists(), steps=steps)
        wait_for(lambda: job.events("started"), 120)
        if kind == "late":
            wait_for(
                lambda: job.process.poll() is not None or any((row["step"] or 0) > before for row in job.deeds), 180
            )
        time.sleep(rng.uniform(0.0, 8.0 if kind == "early" else 1.2))
        job.process.send_signal(rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
        job.finish(200)
        instants.append(instant(job, newest(output)))
        require_stopped(job, before)


def instant(job, step):
    """Where the signal came, and how long it took."""
    sent = job.events("signal")[0]["time"]
    where = next((deed for deed in reversed(job.deeds) if deed["time"] < sent), {"phase": "before start", "step": None})
    return {"phase": where["phase"], "step": where["step"], "stopped_at": step, "seconds": round(job.ended - sent, 2)}


def require_stopped(job, before):
    """Exit code 75, one more checkpoint at most, and it is of the step that all metrics end with."""
    assert job.code == EXIT_STOPPED and "Traceback" not in job.stderr, job.stderr
    job.require_records()
    saved = [event["step"] for event in job.events("checkpoint")]
    assert newest(job.output) == (saved[-1] if saved else before) >= before and len(saved) == len(set(saved))
    if saved:
        assert (
            all(step % SAVE_EVERY == 0 for step in saved[:-1]) and max(losses(job.output), default=-1) + 1 == saved[-1]
        )
        assert all(row["phase"] in ("wait", "save") and row["exit_code"] == EXIT_STOPPED for row in job.status["ranks"])


@pytest.mark.slow
def test_signals_at_twenty_random_instants(runs, trained_run, tmp_path):
    output, rng, instants = tmp_path / "run", random.Random(20), []
    kinds = ["late", *rng.sample(["early"] * 7 + ["late"] * 12, 19)]
    try:
        chain(runs, output, rng, kinds, instants, SLOWED + SLOW_SAVES, 100000)
    finally:
        print(*map(json.dumps, instants), sep="\n")
    steps = newest(output) + 3
    for place, resume in ((output, True), (tmp_path / "whole", False)):
        job = runs.start(place, resume=resume, steps=steps).finish(600)
        assert job.code == 0, job.stderr
    require_equal_runs(tmp_path / "whole", output)


PLACES = {
    "import": ("import", None),
    "start": ("start", None),
    "init": ("init", None),
    "data": ("data", 7),
    "step": ("step", 7),
    "save": ("save", 5),
}
DEEDS = {"raise": 1, "exit": 9, "sigkill": 137, "hang": EXIT_HANG}
TABLE = [
    (deed, place, code)
    for deed, code in DEEDS.items()
    for place in PLACES
    if (deed, place) not in (("raise", "import"), ("exit", "import"))
]
TABLE += [("memory", "step", 1), ("segv", "step", 139), ("sigstop", "step", EXIT_HANG), ("stubborn", "save", EXIT_HANG)]


@pytest.fixture(scope="module")
def numbers():
    """Deed -> seconds from the fault to the end of the job; printed in the end."""
    seconds = {}
    yield seconds
    for deed, values in seconds.items():
        print(
            f"{deed}: n={len(values)} min {min(values):.1f} s, median {statistics.median(values):.1f} s, max"
            f" {max(values):.1f} s"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("deed", "place", "code"), TABLE)
def test_the_table_on_real_training(runs, trained_run, tmp_path, numbers, deed, place, code):
    phase, step = PLACES[place]
    rank = 0 if phase == "save" else 1
    limits = ("--hang-timeout", "8", "--start-timeout", "45")
    job = runs.start(tmp_path / "run", [fault(rank, phase, deed, step)], *limits, ranks=2, steps=20).finish(200)
    numbers.setdefault(deed, []).append(job.seconds)
    assert job.code == code and len(job.deeds) == 1, job.stderr
    job.require_records()
    failure = job.events("failure")[-1]
    assert (failure["ranks"], failure["phase"]) == ([rank], "start" if phase == "import" else phase) and failure[
        "step"
    ] == step
    assert re.search(rf"rank {rank} (\(|silent)", job.stderr) and newest(job.output) == {"data": 5, "step": 5}.get(
        phase, 0
    )
