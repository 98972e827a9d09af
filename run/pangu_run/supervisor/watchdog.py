"""Finds ranks that hang and ranks that are slow, from their heartbeats. All times are those of the leader's clock, so
the clocks of hosts may differ."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pangu_ms.core.heartbeat import DATA, START, STEP, WAIT
from pangu_run.job.job import DeviceAssignment, Limits
from pangu_run.job_directory import ENDED, RUNNING, STARTING

SLOW_RATIO, SLOW_S, SLOW_STEPS = 2.0, 0.5, 5
"""A rank is slow if the median time of its own work in the last SLOW_STEPS steps is more than SLOW_RATIO times the
median of all ranks, and more than SLOW_S longer."""
MAX_NAMED = 16


@dataclass
class RankState:
    """The leader's information on a rank in this attempt."""

    assignment: DeviceAssignment
    last_heard: float
    """Time of the last heartbeat, or of the start of the attempt, in seconds of the leader's monotonic clock."""
    pid: int | None = None
    state: str = STARTING
    phase: str = START
    step: int | None = None
    stepped: bool = False
    """Whether the rank has finished its first step, which includes compilation."""
    tokens_per_second: float | None = None
    beat_time: float | None = None
    """The rank's own clock at its last heartbeat, in seconds since the epoch."""
    exit_code: int | None = None
    work: deque[float] = field(default_factory=lambda: deque(maxlen=SLOW_STEPS))
    """Seconds of the rank's own work in each of the last steps: reading the batch and computing the step, including the
    time that the step waits for other ranks in its collectives."""
    _phase_began: float = 0.0
    _working: float = 0.0

    def update(self, beat: dict[str, Any], now: float) -> None:
        """Update the state with a heartbeat that arrived at `now` on the leader's clock."""
        if self.phase == STEP and beat["phase"] != STEP:
            self.stepped = True
        self._measure(beat)
        self.last_heard, self.pid, self.beat_time, self.phase = now, beat["pid"], beat["time"], beat["phase"]
        self.step = self.step if beat["step"] is None else beat["step"]
        self.state = STARTING if self.phase == START else RUNNING
        self.tokens_per_second = beat.get("tokens_per_second", self.tokens_per_second)

    def _measure(self, beat: dict[str, Any]) -> None:
        if self.phase in (DATA, STEP) and self._phase_began:
            self._working += beat["time"] - self._phase_began
        if beat["phase"] == DATA and self._working:  # the next batch: a step is complete
            if self.stepped:  # the first step would count its compilation
                self.work.append(self._working)
            self._working = 0.0
        self._phase_began = beat["time"]

    @property
    def runs(self) -> bool:
        """Whether the process of the rank is alive."""
        return self.state != ENDED

    @property
    def ready(self) -> bool:
        """Whether the program of the rank has started and handles signals."""
        return self.phase != START

    def as_dict(self, now: float) -> dict[str, Any]:
        """A row of status.json; "silent_s" is measured by the leader's clock only."""
        return {
            "rank": self.assignment.rank,
            "host": self.assignment.server,
            "device": self.assignment.device,
            "pid": self.pid,
            "state": self.state,
            "phase": self.phase,
            "step": self.step,
            "tokens_per_second": self.tokens_per_second,
            "beat": self.beat_time,
            "exit_code": self.exit_code,
            "silent_s": round(now - self.last_heard, 1),
        }


def hung(states: Sequence[RankState], limits: Limits, now: float) -> list[RankState]:
    """The ranks that hang, the most likely cause first.

    A rank hangs if it has sent no heartbeat for too long and is not waiting for others. If all running ranks are silent
    and waiting, all of them hang. The most likely cause is the rank with the fewest steps, then the one with the oldest
    heartbeat, since the others may be waiting for it in a collective.
    """
    running = [state for state in states if state.runs]
    silent = [
        state for state in running if now - state.last_heard > (limits.hang_s if state.stepped else limits.start_s)
    ]
    active = [state for state in silent if state.phase != WAIT]
    return sorted(active or (silent if len(silent) == len(running) else []), key=_progress)


def overdue(running: Sequence[RankState]) -> list[RankState]:
    """The ranks to blame if these ranks have not ended in time: those that are not waiting for others; all of them, if
    all are waiting."""
    return sorted([state for state in running if state.phase != WAIT] or running, key=_progress)


def _progress(state: RankState) -> tuple[int, float]:
    return -1 if state.step is None else state.step, state.last_heard


def slow(states: Sequence[RankState]) -> list[tuple[RankState, float, float]]:
    """(rank, its seconds, median of all ranks) of the ranks whose own work takes clearly longer. Slow work inside a
    collective cannot be distinguished from waiting."""
    measured = []
    for state in states:
        if state.runs and len(state.work) == SLOW_STEPS:
            measured.append((state, statistics.median(state.work)))
    if len(measured) < 2:
        return []
    times = [seconds for _, seconds in measured]
    # The median of two ranks is their mean, which a slow rank would raise, so the faster one is taken.
    median = statistics.median(times) if len(times) > 2 else min(times)
    return [
        (state, seconds, median)
        for state, seconds in measured
        if seconds > SLOW_RATIO * median and seconds - median > SLOW_S
    ]


def format_ranks(ranks: Sequence[int]) -> str:
    """Ranks as a text, such as "rank 3" or "ranks 1, 2, 5 and 9 more"."""
    named = ", ".join(map(str, ranks[:MAX_NAMED]))
    more = f" and {len(ranks) - MAX_NAMED} more" if len(ranks) > MAX_NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{more}"
