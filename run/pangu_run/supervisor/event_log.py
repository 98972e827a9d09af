"""What people and programs are told of a job while it runs: lines on the terminal, events, the status. Nothing here
waits for a disk."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from pangu_ms.core.errors import OutputError
from pangu_run.job.job import Job
from pangu_run.job_directory import ENDED, RUNNING, STARTING, STATUS_S, STEP_EVENT_S
from pangu_run.supervisor import watchdog
from pangu_run.supervisor.background import Aside
from pangu_run.supervisor.terminal import Terminal
from pangu_run.supervisor.watchdog import RankState


class Chronicle:
    """Writes the job directory of the leading host."""

    def __init__(self, job: Job, terminal: Terminal, disk: Aside):
        self.job, self.terminal, self.disk = job, terminal, disk
        self.attempt, self.state, self.exit_code = 0, STARTING, None
        self._looked = self._step_told = 0.0
        self._was_ready, self._slow, self._full, self._writing = False, set(), False, False

    def begin(self, attempt: int) -> None:
        """An attempt begins."""
        self.attempt, self.state, self._was_ready, self._slow = attempt, STARTING, False, set()
        self.event("started", world=self.job.world, hosts=self.job.servers)

    def end(self, code: int, states: Sequence[RankState]) -> None:
        """The job has ended."""
        self.state, self.exit_code, self._writing = ENDED, code, False
        self.event("ended", exit_code=code)
        self._write_status(states, time.monotonic())

    def tell(self, text: str) -> None:
        """A line for the terminal."""
        self.terminal.tell(f"{self.job.name}: {text}")

    def event(self, event: str, **facts: Any) -> None:
        """An event, with the time of now."""
        attempt, facts = self.attempt, {"time": time.time(), **facts}
        self.disk.do(lambda: self._write_event(event, attempt, facts))

    def look(self, states: Sequence[RankState]) -> None:
        """Write the status, and the events of ranks that go on; call it often, it acts every STATUS_S."""
        if (now := time.monotonic()) - self._looked <= STATUS_S:
            return
        self._looked = now
        self._note_progress(states, now)
        self._note_slow(states)
        self._write_status(states, now)

    def _note_progress(self, states: Sequence[RankState], now: float) -> None:
        if not self._was_ready and states and all(state.ready for state in states):
            self._was_ready = True
            self.state = RUNNING if self.state == STARTING else self.state
            self.event("ready")
        steps = [state.step for state in states if state.step is not None]
        if steps and self.state == RUNNING and now - self._step_told > STEP_EVENT_S:
            self._step_told = now
            self.event("step", step=min(steps), tokens_per_second=states[0].tokens_per_second)

    def _note_slow(self, states: Sequence[RankState]) -> None:
        for state, seconds, median in watchdog.slow(states):
            if state.place.rank not in self._slow:
                self._slow.add(state.place.rank)
                self.event("slow", rank=state.place.rank, seconds=seconds, median=median)
                who = f"rank {state.place.rank} (host {state.place.server}, device {state.place.device})"
                self.tell(
                    f"{who} is slow: {seconds:.2f} s of its own a step, the others {median:.2f} s; the job goes on"
                )

    def _write_event(self, event: str, attempt: int, facts: dict[str, Any]) -> None:
        try:
            self.job.directory.write_event(event, attempt, **facts)
        except (
            OutputError,
            OSError,
        ) as error:  # a full disk, or no file descriptor left, does not end a job that trains
            if not self._full:
                advice = "free some room" if isinstance(error, OutputError) else "mend that"
                self.tell(
                    f"{self.job.directory.path}: {error.__cause__ or error}; the job goes on, and events may be"
                    f" missing; {advice}"
                )
            self._full = True

    def _write_status(self, states: Sequence[RankState], now: float) -> None:
        """Unless the last one is still being written."""
        status = {"time": time.time(), "attempt": self.attempt, "state": self.state, "exit_code": self.exit_code}
        status |= {"ranks": [state.as_dict(now) for state in states]}
        if not self._writing:
            self._writing = True
            self.disk.do(lambda: self._replace_status(status))

    def _replace_status(self, status: dict[str, Any]) -> None:
        with contextlib.suppress(OutputError, OSError):  # the events have told of it
            self.job.directory.write_status(status)
        self._writing = False
