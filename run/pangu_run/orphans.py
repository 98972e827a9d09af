"""Ensures that no process of a job outlives its launcher, even if the launcher is killed: neither ranks nor their
children, also those in sessions of their own.

Every process of a job inherits the variable PANGU_JOB. A separate guard process reads from a pipe that the launcher
holds open. When the pipe is closed, the guard kills every process that still has the variable with the id of the job.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pangu_ms.core.isolated import python_command, python_environment

JOB = "PANGU_JOB"
"""Variable with the id of the job that a process belongs to."""
MAX_SWEEPS, PAUSE_S = 50, 0.05
"""Number of times that a job's processes are searched and killed, and seconds between two of them: 2.5 s in all."""


def job_processes(job: str) -> list[int]:
    """Process ids of a job's living processes."""
    marker = f"{JOB}={job}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # the process ended meanwhile, or is another user's
            if directory.name.isdecimal() and marker in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def kill_job_processes(job: str) -> None:
    """Kill a job's processes until there are none."""
    for _ in range(MAX_SWEEPS):  # a process may start another one while /proc is read
        found = job_processes(job)
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)


@contextlib.contextmanager
def guarded(job: str) -> Iterator[None]:
    """Start a guard of this process for this context. After the context, however it ends, no process of the job is
    left."""
    reader, writer = os.pipe()
    command = python_command("pangu_run.orphans", str(reader), job)
    # In a session of its own: a signal to the group of this launcher must not end the guard.
    guard = subprocess.Popen(
        command,
        env=python_environment(),
        pass_fds=(reader,),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(reader)
    try:
        yield
    finally:
        kill_job_processes(job)
        os.close(writer)
        guard.wait()


def main() -> None:
    """Program of the guard process."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a signal sent to all processes of a job must not end the guard
    os.read(int(sys.argv[1]), 1)  # returns when the launcher, which holds the other end, ends in whatever way
    kill_job_processes(sys.argv[2])


if __name__ == "__main__":
    main()
