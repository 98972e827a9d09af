"""The fast tests of what runs at once, fifty times in a row on a machine that has no processor to spare: whatever is a
matter of luck shows."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

from tests.faults.common import ROOT

TIMES = 50
TIMEOUT_S = 300
"""Of one run."""
PARTS = {
    "meeting": ["tests/parallel/test_rendezvous.py"],
    "locks": ["tests/train/test_directory.py", "-k", "lock"],
    "workers": ["tests/data/test_prepare.py", "-k", "worker_that_dies or interrupt"],
    "signals": ["tests/faults/test_signals.py", "-m", "", "-k", "not pangu_train"],
    "launcher": ["tests/faults/test_table.py", "-k", "daemon or pauses or survives or port_that"],
    "leader": ["tests/faults/test_hosts.py", "-k", "late or signal or death or killed or sent_away or strangers"],
}


@contextlib.contextmanager
def load():
    """As many processes as there are cores that do nothing but compute."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(TIMES * TIMEOUT_S)
@pytest.mark.parametrize("part", PARTS)
def test_fifty_runs_in_a_row_pass_under_load(part, tmp_path, capsys):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        str(TIMEOUT_S),
        "--basetemp",
        str(tmp_path / "runs"),
        *PARTS[part],
    ]
    seconds, failures = [], []
    with load():
        for number in range(TIMES):
            began = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            seconds.append(time.monotonic() - began)
            if done.returncode:
                failures.append(f"run {number + 1}: {done.stdout[-3000:]}")
    with capsys.disabled():
        times = f"{sum(seconds) / TIMES:.1f} s each, {max(seconds):.1f} s at most"
        print(
            f"\n{part}: passed {TIMES - len(failures)} of {TIMES} runs, {times}, with {os.cpu_count()} busy processes"
            " beside them"
        )
    assert not failures, "\n".join(failures)
