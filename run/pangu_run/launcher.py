"""Entry points for Python: run this host's ranks of a job until they end. The launcher of the first host leads, the
other launchers follow it."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from pangu_ms.core import files, stop_signals
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_STOPPED
from pangu_run import orphans
from pangu_run.job import record
from pangu_run.job.job import DeviceAssignment, Job
from pangu_run.job.secret import require_long
from pangu_run.job_directory import ENDED, STATUS_S, JobDirectory
from pangu_run.supervisor import messages
from pangu_run.supervisor.host import HostAgent
from pangu_run.supervisor.leader import CLOSE_S, Leader
from pangu_run.supervisor.links import HostLink, NotJoined, join
from pangu_run.supervisor.terminal import Terminal

LOCAL_SERVER = "localhost"
GONE_S, TAKEOVER_S = 2.5, 15.0
"""Seconds for which another launcher's status must be unchanged before this launcher takes over the directory: GONE_S
if the other launcher's process is known to be gone, else TAKEOVER_S."""


def run_job(job: Job) -> int:
    """Run a job; call this from the main thread.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP stop all ranks of all hosts, and the launcher waits until they have saved; a
    second SIGINT ends them at once. The first cause of a failure is reported on stderr. When this function ends, in
    whatever way, no rank of this host is left running.

    Returns:
        0; the exit code of the rank that failed first, 128 + N where signal N killed it; or a code of
        pangu_ms/core/exit_codes.py.

    Raises:
        LaunchError: the job cannot be started.
        OutputError: its directory cannot be written.
    """
    require_long(job.secret)
    with files.writing(job.directory.path):
        job.directory.logs.mkdir(parents=True, exist_ok=True)
    if job.leads:
        require_alone(job.directory)
        job.directory.write_job(
            record.description(job.identity)
            | {"world": job.world, "hosts": job.servers, "start": job.start}
            | dict(job.description)
        )
    job.write_rank_table()
    signals = Signals()
    # The guard must run before the first rank starts.
    with stop_signals.handled(signals.note), orphans.guarded(job.identity):
        return asyncio.run(_lead(job, signals) if job.leads else _follow(job, signals))


def require_alone(directory: JobDirectory) -> None:
    """Raise LaunchError if another launcher uses the same directory, since both would write the same checkpoints.

    A status that changes shows that another launcher is running. The check takes up to TAKEOVER_S if a launcher of
    another host was killed.
    """
    status = directory.status()
    if not (directory.path / "status.json").exists() or status and status["state"] == ENDED:
        return
    try:
        job = directory.job()
    except LaunchError:
        job = {}  # a crash emptied job.json; the status still shows whether that launcher is alive
    # A process that is not visible may be alive in another container with the same host name, so it is still waited
    # for, but for a shorter time.
    gone = job.get("host") == socket.gethostname() and not psutil.pid_exists(job.get("launcher_pid") or 0)
    deadline = time.monotonic() + (GONE_S if gone else TAKEOVER_S)
    while time.monotonic() < deadline:
        time.sleep(STATUS_S / 2)  # a launcher writes its status every STATUS_S
        present = directory.status()
        if present and present["state"] == ENDED:
            return
        if present and (status is None or present["time"] != status["time"]):
            who = f"process {job.get('launcher_pid')} on host {job.get('host')}" if job else "nobody knows whose"
            raise LaunchError(
                f"{directory.path}: another launcher ({who}) runs a job there; end it, or name another --output"
            )


def run_ranks(
    argv: Callable[[int], Sequence[str]],
    num_ranks: int,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> int:
    """Run the ranks of a job of this machine alone, under MindSpore's scheduler; see `run_job`.

    Args:
        argv: for a rank the arguments of `python`: ("-m", MODULE, ...) or ("-c", PROGRAM, ...).
        num_ranks: number of ranks.
        directory: the job directory.
        environment: variables in addition to those of this process and of MindSpore's cluster (MS_ROLE, RANK_ID, ...).
        options: further fields of `Job`.
    """
    ranks = [DeviceAssignment(rank, LOCAL_SERVER, rank) for rank in range(num_ranks)]
    return run_job(Job(argv, ranks, JobDirectory(directory), LOCAL_SERVER, environment=environment or {}, **options))


class Signals:
    """The stop signals that this launcher has received, and their handler."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._handler: Callable[[str], object] | None = None

    def note(self, name: str) -> None:
        """Record a signal; passed to `stop_signals.handled`. SIGHUP (the terminal was closed) stops ranks like
        SIGTERM."""
        self.names.append("SIGTERM" if name == "SIGHUP" else name)
        if self._handler:
            self._handler(self.names[-1])

    @contextlib.contextmanager
    def passed_on(self, handler: Callable[[str], None]) -> Iterator[None]:
        """Within this context, call `handler` in the running event loop for each signal, including those received
        before."""
        loop = asyncio.get_running_loop()
        self._handler = lambda name: loop.call_soon_threadsafe(handler, name)  # also wakes a loop that waits
        try:
            for name in self.names:
                handler(name)
            yield
        finally:
            self._handler = None


async def _lead(job: Job, signals: Signals) -> int:
    terminal = Terminal(job.stream_rank)
    try:
        leader = Leader(job, terminal)
        with signals.passed_on(lambda name: leader.messages.put_nowait({"is": "signal", "name": name})):
            return await leader.lead()
    finally:
        terminal.close()


async def _follow(job: Job, signals: Signals) -> int:
    """Follow the leader until it reports the end of the job, or the connection to it is lost."""
    terminal = Terminal(job.stream_rank)
    try:
        link = await join(job, signals.names)
        return EXIT_STOPPED if link is None else await _follow_leader(job, terminal, link, signals)
    except NotJoined as error:
        if str(error):
            terminal.print_line(f"{job.name}: {error}")
        return error.code
    finally:
        terminal.close()


async def _follow_leader(job: Job, terminal: Terminal, link: HostLink, signals: Signals) -> int:
    leaving = False
    keep_alive = asyncio.create_task(link.keep_alive())
    agent = HostAgent(job, terminal, lambda message: None if leaving else link.send(message))
    try:
        with signals.passed_on(lambda name: link.send({"is": "signal", "name": name})):
            while received := await link.receive():
                command = messages.from_leader(received)
                if command and command["do"] == "end":
                    if command["text"]:
                        terminal.print_line(f"{job.name}: {command['text']}")
                    return command["code"]
                if command:
                    agent.execute(command)
        terminal.print_line(
            f"{job.name}: the first host ({job.servers[0]}) is gone; this host's ranks were ended; look at that host"
        )
        return EXIT_HOST
    finally:
        leaving = True  # the ranks are killed below; their exits are no failures and are not sent
        keep_alive.cancel()
        agent.kill()
        agent.disk.close(CLOSE_S)
        await link.close()
