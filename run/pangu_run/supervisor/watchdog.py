"""Who hangs and who is slow, from heartbeats alone. Times are the leader's own: clocks of hosts need not agree."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pangu_ms.core.heartbeat import DATA, START, STEP, WAIT
from pangu_run.job.job import Limits, Place
from pangu_run.job_directory import ENDED, RUNNING, STARTING

SLOW_RATIO, SLOW_S, SLOW_STEPS = 2.0, 0.5, 5
"""A rank is slow if its own work took this many times the median of all ranks and this much longer, in the median of
these many steps."""
MAX_NAMED = 16


@dataclass
class RankState:
    """What the leader knows of a rank in this attempt."""

    place: Place
    heard: float
    """When the last beat came (or the attempt began), in seconds of the leader's monotonic clock."""
    pid: int | None = None
    state: str = STARTING
    phase: str = START
    step: int | None = None
    stepped: bool = False
    """Whether it has left its first step, which compiles."""
    tokens_per_second: float | None = None
    beat_time: float | None = None
    """The rank's own clock at its last beat, in seconds since the epoch."""
    exit_code: int | None = None
    work: deque = field(default_factory=lambda: deque(maxlen=SLOW_STEPS))
    """Seconds of its own in each of the last steps: reading the batch, and the step, which in its collectives waits for
    others."""
    _phase_began: float = 0.0
    _working: float = 0.0

    def hear(self, beat: dict[str, Any], now: float) -> None:
        """Take a heartbeat in."""
        if self.phase == STEP and beat["phase"] != STEP:
            self.stepped = True
        self._measure(beat)
        self.heard, self.pid, self.beat_time, self.phase = now, beat["pid"], beat["time"], beat["phase"]
        self.step = self.step if beat["step"] is None else beat["step"]
        self.state = STARTING if self.phase == START else RUNNING
        self.tokens_per_second = beat.get("tokens_per_second", self.tokens_per_second)

    def _measure(self, beat: dict[str, Any]) -> None:
        if self.phase in (DATA, STEP) and self._phase_began:
            self._working += beat["time"] - self._phase_began
        if beat["phase"] == DATA and self._working:
            if self.stepped:
                self.work.append(self._working)
            self._working = 0.0
        self._phase_began = beat["time"]

    @property
    def runs(self) -> bool:
        """Whether its process lives."""
        return self.state != ENDED

    @property
    def ready(self) -> bool:
        """Whether its program has begun, and hears signals."""
        return self.phase != START

    def as_dict(self, now: float) -> dict[str, Any]:
        """A row of status.json; "silent_s" by the leader's clock alone."""
        own = {
            "rank": self.place.rank,
            "host": self.place.server,
            "device": self.place.device,
            "pid": self.pid,
            "state": self.state,
            "phase": self.phase,
        }
        return own | {
            "step": self.step,
            "tokens_per_second": self.tokens_per_second,
            "beat": self.beat_time,
            "exit_code": self.exit_code,
            "silent_s": round(now - self.heard, 1),
        }


def hung(states: Sequence[RankState], limits: Limits, now: float) -> list[RankState]:
    """Ranks that have been silent for too long and do not wait for others; all that run, if all of them wait. Most
    likely the one first that is behind in steps or was heard first: the others may be waiting for it in a
    collective."""
    running = [state for state in states if state.runs]
    silent = [state for state in running if now - state.heard > (limits.hang_s if state.stepped else limits.start_s)]
    active = [state for state in silent if state.phase != WAIT]
    return sorted(active or (silent if len(silent) == len(running) else []), key=_behind)


def overdue(running: Sequence[RankState]) -> list[RankState]:
    """Whose fault it is that these ranks have not ended: those that do not wait for others; all, if all of them
    wait."""
    return sorted([state for state in running if state.phase != WAIT] or running, key=_behind)


def _behind(state: RankState) -> tuple[int, float]:
    return -1 if state.step is None else state.step, state.heard


def slow(states: Sequence[RankState]) -> list[tuple[RankState, float, float]]:
    """(rank, its seconds, median of all): ranks whose own work takes clearly longer. What is inside a collective cannot
    be told apart."""
    measured = [
        (state, statistics.median(state.work)) for state in states if state.runs and len(state.work) == SLOW_STEPS
    ]
    if len(measured) < 2:
        return []
    median = (
        statistics.median(seconds for _, seconds in measured)
        if len(measured) > 2
        else min(seconds for _, seconds in measured)
    )
    return [
        (state, seconds, median)
        for state, seconds in measured
        if seconds > SLOW_RATIO * median and seconds - median > SLOW_S
    ]


def ranks_in_words(ranks: Sequence[int]) -> str:
    """ "rank 3" or "ranks 1, 2, 5 and 9 more"."""
    named = ", ".join(map(str, ranks[:MAX_NAMED])) + (
        f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else ""
    )
    return f"rank{'s' if len(ranks) > 1 else ''} {named}"
