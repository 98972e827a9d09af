"""Executes the leader's commands on the ranks of one host.

Commands and messages are dictionaries (see messages.py) that are sent over a socket as JSON. Each message contains its
"attempt"; the leader drops messages of earlier attempts.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from pathlib import Path

from pangu_run import orphans
from pangu_run.job.job import Job
from pangu_run.supervisor.background import BackgroundWorker
from pangu_run.supervisor.logs import SHOWN_LINES, last_lines
from pangu_run.supervisor.messages import Message
from pangu_run.supervisor.process import RankProcess
from pangu_run.supervisor.terminal import Terminal

STACKS_S = 1.0
"""Seconds in which faulthandler writes the stacks of a rank."""
MAX_STACK_LINES = 60
VMSTAT = Path("/proc/vmstat")


class HostAgent:
    """Starts, signals and ends this host's ranks, and forwards their reports to the leader."""

    def __init__(self, job: Job, terminal: Terminal, send: Callable[[Message], None]):
        """
        Args:
            job: the job as this host sees it.
            terminal: shows the output of the streamed rank.
            send: sends a message to the leader.
        """
        self.job, self.terminal, self.send = job, terminal, send
        self.ranks: dict[int, RankProcess] = {}
        self.disk = BackgroundWorker("disk")
        self._attempt = 0

    def execute(self, command: Message) -> None:
        """Execute a command of the leader."""
        kind = command["do"]
        if kind == "start":
            self._attempt = command["attempt"]
            self._start(self._attempt, command["resume"], command["scheduler"])
        elif kind == "signal":
            for process in self.ranks.values():
                process.signal(command["name"])
        elif kind == "kill":
            self.kill()
        elif kind == "stacks":
            processes = [self.ranks[rank] for rank in command["ranks"] if rank in self.ranks]
            asyncio.get_running_loop().create_task(self._send_stacks(self._attempt, processes))

    def kill(self) -> None:
        """Kill all ranks, and all processes that they started, at once."""
        for process in self.ranks.values():
            process.kill()
        orphans.kill_job_processes(self.job.identity)

    def _start(self, attempt: int, resume: bool, scheduler: tuple[str, int] | None) -> None:
        oom_kills_before = oom_kills()

        def on_message(message: Message) -> None:
            if message["is"] != "exit":
                self.send(message | {"attempt": attempt})
                return
            # The counter is that of the whole machine, so the message blames the killer only with care.
            oom = message["code"] == -9 and oom_kills() > oom_kills_before
            message |= {"attempt": attempt, "oom": oom, "started": True}
            log = self.job.directory.rank_log(message["rank"])
            self.disk.submit_with_callback(lambda: log_ending(log), lambda lines: self.send(message | {"words": lines}))

        for assignment in self.job.local:
            rank = assignment.rank
            argv, variables = self.job.rank_argv(rank, resume), self.job.variables(assignment, scheduler)
            try:
                log_dir = self.job.log_dir(rank)
                self.ranks[rank] = RankProcess(rank, argv, variables, log_dir, self.terminal, self.disk, on_message)
            except OSError as error:
                failed = {"is": "exit", "rank": rank, "code": 1, "time": time.time(), "started": False}
                self.send(failed | {"attempt": attempt, "words": [f"could not be started: {error}"]})

    async def _send_stacks(self, attempt: int, processes: list[RankProcess]) -> None:
        for process in processes:
            process.dump_stacks()
        await asyncio.sleep(STACKS_S)
        for process in processes:
            lines = await self.disk.run(functools.partial(log_ending, process.stacks, MAX_STACK_LINES))
            message = {"is": "stacks", "attempt": attempt, "rank": process.number, "path": str(process.stacks)}
            self.send(message | {"lines": lines})


def log_ending(log: Path, count: int = SHOWN_LINES) -> list[str]:
    """`last_lines`, or the reason if the log cannot be read; never raises. On a shared disk this may take long."""
    try:
        return last_lines(log, count)
    except OSError as error:
        return [f"(cannot be read: {error.strerror})"]


def oom_kills() -> int:
    """Number of processes that the out-of-memory killer of this machine has killed so far."""
    rows = dict(line.split() for line in VMSTAT.read_text().splitlines()) if VMSTAT.exists() else {}
    return int(rows.get("oom_kill", 0))
