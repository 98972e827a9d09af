"""No process of a job outlives its launcher: not the children of ranks, not those with sessions of their own, not when
the launcher is killed.

Every process of a job inherits the variable PANGU_JOB. A guard, a process of its own, waits for the end of a pipe that
the launcher holds open, then kills whoever still has that variable.
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
ROUNDS, PAUSE_S = 50, 0.05


def members(job: str) -> list[int]:
    """Process ids of a job's living processes."""
    marker = f"{JOB}={job}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if directory.name.isdecimal() and marker in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def sweep(job: str) -> int:
    """Kill a job's processes until there are none; returns how many there were in the first round."""
    first = None
    for _ in range(ROUNDS):  # one may start another while this looks
        found = members(job)
        first = len(found) if first is None else first
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)
    return first


@contextlib.contextmanager
def guarded(job: str) -> Iterator[None]:
    """Within this context a guard watches this process; afterwards, however it ends, no process of the job is left."""
    reader, writer = os.pipe()
    command = python_command("pangu_run.orphans", str(reader), job)
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
        sweep(job)
        os.close(writer)
        guard.wait()


def main() -> None:
    """The guard."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a signal to the whole job does not end its guard
    os.read(int(sys.argv[1]), 1)
    sweep(sys.argv[2])


if __name__ == "__main__":
    main()
