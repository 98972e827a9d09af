"""A made-up plan, and a PATH with stand-ins for what the files call."""

import sys
from types import SimpleNamespace

import pytest

from pangu_run.manifest.plan import Plan
from tests.run.manifest.tools import OF_RUNS

RECORDER = f"""#!{sys.executable}
import json, os, signal, sys, time
def note(**what):
    with open(os.environ["HEARD"], "a") as file:
        file.write(json.dumps(what) + "\\n")
def stopped(number, frame):
    note(signal=signal.Signals(number).name)
    time.sleep(0.2)
    sys.exit(75)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stopped)
get = os.environ.get
note(words=sys.argv[1:], role=get("MS_ROLE"), extra=get("EXTRA"), secret=get("PANGU_JOB_SECRET"))
if sys.argv[1] == "ranktable":
    sys.exit(int(os.environ.get("TABLE_CODE", "0")))
if "WAIT" in os.environ:
    time.sleep(20)
sys.exit(int(os.environ.get("CODE", "0")))
"""
SRUN = f"""#!{sys.executable}
# As Slurm's: one task on each host, the highest exit code; USR1 is passed on, TERM kills.
import os, signal, subprocess, sys
at = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("-"))
assert "--ntasks-per-node=1" in sys.argv[:at] and "--nodes=2" in sys.argv[:at], sys.argv
hosts = ["n1", "n2"]
tasks = [subprocess.Popen(sys.argv[at:], env=os.environ | {{"SLURMD_NODENAME": host}}) for host in hosts]
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
signal.signal(signal.SIGTERM, lambda number, frame: [task.kill() for task in tasks])
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf '%s\\n' n1 n2; else echo "{\\"scontrol\\": \\"$*\\"}" >> "$HEARD"; fi
"""


@pytest.fixture(autouse=True)
def plan(monkeypatch):
    """Two servers of eight Ascend devices, whatever the configuration; the arguments that were asked about."""
    known = SimpleNamespace(value=Plan(hosts=2, devices=8, on_ascend=True), asked=[])
    for kind in OF_RUNS:
        monkeypatch.setattr(
            f"pangu_run.cli.manifest_{kind}.plan_of", lambda argv: known.asked.append(argv) or known.value
        )
    return known


@pytest.fixture
def tools(tmp_path):
    """A PATH with stand-ins; `execute` runs a script under it and returns (process, what the stand-ins heard)."""
    for name, text in (("pangu", RECORDER), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path
