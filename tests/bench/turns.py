"""Processes that are measured in turns, so that other work on the machine slows all alike. Needs the standard library
alone: an interpreter that has nothing but PyTorch imports it, too."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

WARM_UP = 2
"""Steps at the beginning of a turn that do not count: the caches then hold what another process has read."""
PROMPT = tuple((7 + 31 * i) % 1000 for i in range(64))
"""What every sequence begins with."""
TOKEN = 7
"""What every step appends."""


class Candidate(Protocol):
    """What a process measures."""

    def reset(self) -> None:
        """Go back to the state in which every turn begins."""

    def step(self) -> Any:
        """Compute one step; the result is ready when this returns."""


def serve(candidate: Candidate, told: Mapping[str, Any]) -> None:
    """Say that the candidate is ready, and what is `told` of it; then, for each number of steps on stdin, print their
    seconds as a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps(told), file=answers, flush=True)
    for line in sys.stdin:
        candidate.reset()
        seconds = []
        for _ in range(int(line) + WARM_UP):
            began = time.perf_counter()
            candidate.step()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds[WARM_UP:]), file=answers, flush=True)


class Worker:
    """A process that serves a candidate."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]):
        """Start it. `log` gets what it prints as errors."""
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | dict(environment),
            )

    def told(self) -> dict[str, Any]:
        """Wait until it is ready; what it tells.

        Raises:
            RuntimeError: it ended instead.
        """
        return self._answer()

    def measure(self, steps: int) -> list[float]:
        """Seconds of that many steps; then wait until its threads sleep, which may spin for a while."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds = self._answer()
        self._settle()
        return seconds

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError("\n".join(self.log.read_text(errors="replace").splitlines()[-3:]))
        return json.loads(line)

    def _settle(self, window: float = 0.03, most: float = 1.0) -> None:
        end, before = time.monotonic() + most, -1
        while time.monotonic() < end and before != (before := self._ticks()):
            time.sleep(window)

    def _ticks(self) -> int:
        """Processor time that it has used, in ticks of 10 ms."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


def in_turns(workers: Mapping[str, Worker], rounds: int, steps: int) -> dict[str, list[list[float]]]:
    """Seconds of the steps of each, round by round."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.measure(steps))
    return seconds
