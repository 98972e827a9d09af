"""MindSpore's scheduler: the process through which the ranks of a dynamic cluster find each other."""

import asyncio
import contextlib
import functools
import os
import socket
import time
from pathlib import Path

from pangu_ms.core.cluster_variables import inherited
from pangu_ms.core.errors import LaunchError
from pangu_run.job.job import Job
from pangu_run.orphans import JOB
from pangu_run.supervisor.background import BackgroundWorker
from pangu_run.supervisor.logs import last_lines
from pangu_run.supervisor.messages import Message
from pangu_run.supervisor.process import OnMessage, RankProcess

LOOPBACK = "127.0.0.1"
IGNORE_SIGNALS = (
    "import signal; [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM,"
    " signal.SIGUSR1)]; "
)
"""First line of the scheduler's program: it ignores stop signals. A signal sent to all processes of a job is meant for
the ranks, which still need the scheduler while they save."""
PROGRAM = "import mindspore as ms; ms.set_device('CPU'); ms.communication.init()"
"""The scheduler's program. It needs no device; `init` returns when all ranks have left."""
START_S, POLL_S, TRIES = 120.0, 0.05, 3
"""Seconds until the scheduler must listen (importing mindspore from a shared disk is slow), seconds between two checks
of that, and number of free ports that are tried."""
NUMBER = -1
"""Number that the scheduler has instead of a rank."""
_LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp."""


async def start(job: Job, disk: BackgroundWorker, on_exit: OnMessage) -> tuple[str, int]:
    """Start the scheduler and wait until it listens: a rank that tries to connect before that may wait half a minute
    until it tries again.

    Args:
        job: the job.
        disk: the worker that writes its log.
        on_exit: called with {"is": "exit", "code", ...} when it ends after it has listened.

    Returns:
        its address and port.

    Raises:
        LaunchError: the port is in use, or the scheduler ended.
    """
    log_dir = job.directory.logs / "scheduler"
    for _ in range(1 if job.master else TRIES):  # another process may bind the free port first
        host, port = job.master or (LOOPBACK, free_port())
        require_free(host, port)
        variables = (
            inherited()
            | dict(job.environment)
            | job.cluster_variables((host, port))
            | {
                "MS_ROLE": "MS_SCHED",
                "PYTHONUNBUFFERED": "1",
                JOB: job.identity,
            }
        )
        listening = asyncio.Event()
        process = RankProcess(
            NUMBER,
            ["-c", IGNORE_SIGNALS + PROGRAM],
            variables,
            log_dir,
            None,
            disk,
            functools.partial(_pass_on_exit, listening, on_exit),
        )
        if await _listens(process, port):
            listening.set()
            return host, port
        process.kill()
    ending = last_lines(log_dir / "output.log")[-1]
    raise LaunchError(
        f"{log_dir / 'output.log'}: MindSpore's scheduler did not start: {ending}; mend what its log says and run the"
        " same command again"
    )


def _pass_on_exit(listening: asyncio.Event, on_exit: OnMessage, message: Message) -> None:
    """Pass on the exit of a scheduler that has listened; if it never listened, `start` itself reports the exit."""
    if listening.is_set() and message["is"] == "exit":
        on_exit(message)


def free_port() -> int:
    """A port of this host that is currently free."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def require_free(host: str, port: int) -> None:
    """Raise LaunchError if a port is in use."""
    with socket.socket() as probe:
        # As for a listener: connections of an earlier job in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = (
                "the first host's address and a free port (and the next one) are needed; end the other job, or name"
                " them by --master-address, --master-port"
            )
            raise LaunchError(f"{host}:{port}: cannot be listened on ({error.strerror or error}); {advice}") from error


async def _listens(process: RankProcess, port: int) -> bool:
    """Wait until this process listens on the port; False if it ends or takes too long."""
    deadline = time.monotonic() + START_S
    while not process.ended.is_set() and time.monotonic() < deadline:
        if _has_listener(process.pid, port):
            return True
        await asyncio.sleep(POLL_S)
    return False


def _has_listener(pid: int, port: int) -> bool:
    with contextlib.suppress(OSError):  # it ended meanwhile
        # /proc/net/tcp has the port and the inode of each socket; /proc/PID/fd has the inodes of a process.
        own = {os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, address, _, state, *rest = line.split()
                if address.endswith(f":{port:04X}") and state == _LISTEN and f"socket:[{rest[5]}]" in own:
                    return True
    return False
