"""Job directories, written as a launcher writes them."""

import os
import socket
import time

from pangu_run.job_directory import JobDirectory


def rank(number, step=120, **facts):
    """An entry of status.json."""
    entry = {
        "rank": number,
        "host": f"host-{number // 8}",
        "device": number % 8,
        "pid": 100 + number,
        "state": "running",
        "phase": "step",
        "step": step,
    }
    return {**entry, "tokens_per_second": None, "beat": time.time(), "exit_code": None, **facts}


HERE = {"host": socket.gethostname(), "launcher_pid": os.getpid()}
"""Facts of a launcher that lives on this host."""


def write(path, ranks, state="running", age=0.0, config="train:\n  steps: 1000\n", exit_code=None, **job):
    """A job directory as a launcher leaves it; `age` is how long ago it wrote its status."""
    directory = JobDirectory(path / "job")
    directory.write_job({"id": "pi-7b", "world": len(ranks), "time": time.time() - 3600, **job, "config": config})
    directory.write_event("started", 0, hosts=1, world=len(ranks))
    directory.write_status(
        {"time": time.time() - age, "attempt": 0, "state": state, "exit_code": exit_code, "ranks": ranks}
    )
    return directory
