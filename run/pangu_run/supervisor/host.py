"""The ranks of one host, as the leader commands them. Commands and messages are plain dictionaries (see messages.py):
they travel over a socket as they are.

Each message has its "attempt": the leader drops those of an earlier one.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_run import orphans
from pangu_run.job.job import Job
from pangu_run.supervisor.background import Aside
from pangu_run.supervisor.logs import SHOWN_LINES, last_lines
from pangu_run.supervisor.process import RankProcess
from pangu_run.supervisor.terminal import Terminal

Message = dict[str, Any]
STACKS_S = 1.0
"""For faulthandler to write."""
MAX_STACK_LINES = 60
VMSTAT = Path("/proc/vmstat")


class Host:
    """Starts, signals and ends this host's ranks."""

    def __init__(self, job: Job, terminal: Terminal, tell: Callable[[Message], None]):
        self.job, self.terminal, self.tell = job, terminal, tell
        self.ranks: dict[int, RankProcess] = {}
        self.disk = Aside("disk")
        self._attempt = 0

    def do(self, command: Message) -> None:
        """Obey the leader."""
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
            asyncio.get_running_loop().create_task(
                self._stacks(self._attempt, [self.ranks[r] for r in command["ranks"] if r in self.ranks])
            )

    def kill(self) -> None:
        """End all ranks, and everything that they started, at once."""
        for process in self.ranks.values():
            process.kill()
        orphans.sweep(self.job.identity)

    def _start(self, attempt: int, resume: bool, scheduler: tuple[str, int] | None) -> None:
        oom_before = oom_kills()

        def tell(message: Message) -> None:
            if message["is"] == "exit":
                message |= {"oom": message["code"] == -9 and oom_kills() > oom_before, "started": True}
                log = self.job.directory.rank_log(message["rank"])
                self.disk.ask(
                    lambda: words_of(log), lambda lines: self.tell(message | {"attempt": attempt, "words": lines})
                )
            else:
                self.tell(message | {"attempt": attempt})

        for place in self.job.local:
            words, variables = self.job.rank_words(place.rank, resume), self.job.variables(place, scheduler)
            try:
                log_dir = self.job.log_dir(place.rank)
                self.ranks[place.rank] = RankProcess(
                    place.rank, words, variables, log_dir, self.terminal, self.disk, tell
                )
            except OSError as error:
                failed = {"is": "exit", "rank": place.rank, "code": 1, "time": time.time(), "started": False}
                self.tell(failed | {"attempt": attempt, "words": [f"could not be started: {error}"]})

    async def _stacks(self, attempt: int, processes: list[RankProcess]) -> None:
        for process in processes:
            process.dump_stacks()
        await asyncio.sleep(STACKS_S)
        for process in processes:
            lines = await self.disk.result(lambda path=process.stacks: words_of(path, MAX_STACK_LINES))
            self.tell(
                {
                    "is": "stacks",
                    "attempt": attempt,
                    "rank": process.number,
                    "path": str(process.stacks),
                    "lines": lines,
                }
            )


def words_of(log: Path, count: int = SHOWN_LINES) -> list[str]:
    """As `last_lines`, also of a log that cannot be read; on a shared disk it may take long."""
    try:
        return last_lines(log, count)
    except OSError as error:
        return [f"(cannot be read: {error.strerror})"]


def oom_kills() -> int:
    """Processes that the kernel of this machine has killed so far for want of memory."""
    rows = dict(line.split() for line in VMSTAT.read_text().splitlines()) if VMSTAT.exists() else {}
    return int(rows.get("oom_kill", 0))
