"""Any number of stop signals, of any kind, in any order, at any moment: the exit code is that of the first one, and
what it saved is there.

The launcher with ranks without MindSpore, and one such rank alone, which stops as `pangu train` does; `pangu train`
itself, and more moments of the same, in the slow tier.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pangu_ms.core.exit_codes import EXIT_STOPPED
from tests.faults.common import ROOT, launch_light, wait_for
from tests.faults.light import checkpoints, expected

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def storm(process, rng, pause):
    """Signals until nobody is left to hear them, one of them SIGINT at most: the second of those may end a job at
    once."""
    sent = []
    while process.poll() is None:
        sent.append(rng.choice([number for number in SIGNALS if number != signal.SIGINT or number not in sent]))
        process.send_signal(sent[-1])
        time.sleep(rng.uniform(0, pause))
    return [signal.Signals(number).name for number in sent]


@pytest.mark.parametrize(
    "moment",
    [pytest.param("started", marks=pytest.mark.slow), pytest.param("ready", marks=pytest.mark.slow), "checkpoint"],
)
def test_a_storm_of_signals_ends_a_job_as_one_signal_does(tmp_path, moment):
    rng, output = random.Random(moment), tmp_path / "run"
    for session, pause in enumerate((0.003, 0.03, 0.3)):
        job = launch_light(output, steps=100000, resume=session > 0)
        wait_for(lambda: job.events(moment))
        time.sleep(rng.uniform(0, 0.1))
        sent = storm(job.process, rng, pause)
        assert job.finish().code == EXIT_STOPPED and not job.stderr, (sent, job.code, job.stderr)
        job.require_records()
        assert checkpoints(output) == {step: expected(3, step) for step in checkpoints(output)}


def rank_alone(output, steps, pause=0.01):
    """A rank without a launcher and its environment."""
    place = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'run'}",
        "RANK_ID": "0",
        "RANK_SIZE": "1",
        "LIGHT_NAME": f"alone-{output}",
        "LIGHT_PAUSE": str(pause),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.light", output, str(steps), "--resume"],
        env=os.environ | place,
        stderr=subprocess.PIPE,
    )


def test_a_storm_of_signals_ends_a_rank_alone_as_one_signal_does(tmp_path):
    rng, before = random.Random(5), 0
    for pause in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1):
        process = rank_alone(tmp_path, 100000)
        wait_for(lambda: max(checkpoints(tmp_path), default=0) > before)
        sent = storm(process, rng, pause)
        assert process.communicate()[1] == b"" and process.returncode == EXIT_STOPPED, (sent, process.returncode)
        before = max(checkpoints(tmp_path))
        assert checkpoints(tmp_path)[before] == expected(1, before)


def test_a_signal_after_the_last_step_does_not_make_a_finished_run_a_failed_one(tmp_path):
    for session in range(6):
        output = tmp_path / str(session)
        output.mkdir()
        process = rank_alone(output, 3)
        wait_for(lambda: 3 in checkpoints(output))
        storm(process, random.Random(session), 0.002)
        process.communicate()
        assert process.returncode in (0, EXIT_STOPPED)


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_rank_alone_at_once(tmp_path):
    process = rank_alone(tmp_path, 100000, pause=60)
    time.sleep(2.0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1] and not checkpoints(tmp_path)


@pytest.mark.slow
def test_signals_to_all_processes_of_a_job_stop_it(tmp_path):
    """As Slurm and some container runtimes send them: to the ranks, too, whether these have begun or not."""
    rng, output = random.Random(8), tmp_path / "run"
    for session in range(6):
        job = launch_light(output, steps=100000, resume=session > 0)
        wait_for(lambda: job.events("started") and len(job.alive()) > 3)
        time.sleep(rng.uniform(0, 0.3 if session % 2 else 1.0))
        for pid in sorted(job.alive(), reverse=session % 2 > 0):
            os.kill(pid, signal.SIGTERM)
        assert job.finish().code == EXIT_STOPPED and not job.stderr, (session, job.code, job.stderr)
        assert checkpoints(output) == {step: expected(3, step) for step in checkpoints(output)}


@pytest.mark.slow
def test_a_storm_of_signals_ends_pangu_train_as_one_signal_does(tmp_path, records, tiny_overrides):
    words = [
        "train",
        "--config",
        "alpha/tiny",
        *tiny_overrides,
        "train.steps=100000",
        "train.save_every=5",
        "--data",
        str(records),
        "--output",
        str(tmp_path / "run"),
    ]
    rng = random.Random(3)
    for session in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "pangu_ms", *words, "--resume"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        before = sorted((tmp_path / "run/checkpoints").glob("step-*"))
        if session % 2:
            time.sleep(rng.uniform(0.5, 4.0))  # while it imports, or begins
        else:
            wait_for(
                lambda: process.poll() is not None or sorted((tmp_path / "run/checkpoints").glob("step-*")) > before,
                200,
            )
        sent = storm(process, rng, 0.02)
        error = process.communicate()[1]
        assert process.returncode == EXIT_STOPPED and "Traceback" not in error, (
            session,
            sent,
            process.returncode,
            error,
        )
