"""The ranks of one host, as the leader commands them. Commands and messages are plain dictionaries: they travel over a socket as they are.

Commands   {"do": "start", "attempt", "resume", "scheduler"}, {"do": "signal", "name"}, {"do": "kill"}, {"do": "stacks", "ranks"}
Messages   {"is": "beat", "rank", "pid", "phase", "step", ...}, {"is": "exit", "rank", "code", "time", "words" (last lines of its log)},
           {"is": "stacks", "rank", "path", "lines"}, {"is": "oom", "count"}, {"is": "cannot_start", "words"}
           each with the "attempt" that its rank belongs to
"""

import asyncio
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run import orphans
from run.job import Job, Place
from run.logs import last_lines
from run.process import RankProcess
from run.terminal import Terminal

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
        self._oom_kills = oom_kills()
        self._attempt = 0

    def do(self, command: Message) -> None:
        """Obey the leader."""
        kind = command["do"]
        if kind == "start":
            self._attempt = command["attempt"]
            self._start(command["resume"], command["scheduler"] and tuple(command["scheduler"]))
        elif kind == "signal":
            for process in self.ranks.values():
                process.signal(command["name"])
        elif kind == "kill":
            self.kill()
        elif kind == "stacks":
            asyncio.get_running_loop().create_task(self._stacks([self.ranks[r] for r in command["ranks"] if r in self.ranks]))

    def kill(self) -> None:
        """End all ranks, and everything that they started, at once."""
        for process in self.ranks.values():
            process.kill()
        orphans.sweep(self.job.identity)

    async def ended(self) -> None:
        """Wait until no rank runs."""
        for process in list(self.ranks.values()):
            await process.ended.wait()

    def _start(self, resume: bool, scheduler: tuple[str, int] | None) -> None:
        self._oom_kills = oom_kills()
        heard = functools.partial(self._heard, self._attempt)
        for place in self.job.local:
            words, variables = self.job.rank_words(place.rank, resume), self.job.variables(place, scheduler)
            try:
                self.ranks[place.rank] = RankProcess(place.rank, words, variables, self.job.log_dir(place.rank), self.terminal, heard)
            except OSError as error:
                words = [f"could not be started: {error}"]
                self.tell({"is": "exit", "rank": place.rank, "attempt": self._attempt, "code": 1, "time": time.time(), "words": words})

    def _heard(self, attempt: int, message: Message) -> None:
        message["attempt"] = attempt
        if message["is"] == "exit":
            message["words"] = last_lines(self.job.directory.rank_log(message["rank"]))
            message["oom"] = message["code"] == -9 and oom_kills() > self._oom_kills
        self.tell(message)

    async def _stacks(self, processes: list[RankProcess]) -> None:
        attempt = self._attempt
        for process in processes:
            process.dump_stacks()
        await asyncio.sleep(STACKS_S)
        for process in processes:
            lines = last_lines(process.stacks, MAX_STACK_LINES)
            self.tell({"is": "stacks", "rank": process.number, "attempt": attempt, "path": str(process.stacks), "lines": lines})


def place_of(job: Job, number: int) -> Place:
    """Where a rank is."""
    return job.places[number]


def oom_kills() -> int:
    """Processes that the kernel of this machine has killed so far for want of memory."""
    rows = dict(line.split() for line in VMSTAT.read_text().splitlines()) if VMSTAT.exists() else {}
    return int(rows.get("oom_kill", 0))
