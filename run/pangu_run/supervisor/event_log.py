"""The reports of the leader while a job runs: lines on the terminal, events.jsonl, status.json. All files are written
in the background."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from pangu_ms.core.errors import OutputError
from pangu_run.job.job import Job
from pangu_run.job_directory import ENDED, RUNNING, STARTING, STATUS_S, STEP_EVENT_S
from pangu_run.supervisor import watchdog
from pangu_run.supervisor.background import BackgroundWorker
from pangu_run.supervisor.terminal import Terminal
from pangu_run.supervisor.watchdog import RankState


class EventLog:
    """Writes the job directory of the leading host."""

    def __init__(self, job: Job, terminal: Terminal, disk: BackgroundWorker):
        self.job, self.terminal, self.disk = job, terminal, disk
        self.attempt = 0
        self.state = STARTING
        """State of the job, one of job_directory.STATES."""
        self.exit_code: int | None = None
        self._updated = self._last_step_event = 0.0
        self._was_ready = self._disk_failed = self._writing_status = False
        self._slow_ranks: set[int] = set()

    def begin_attempt(self, attempt: int) -> None:
        """Record that an attempt begins."""
        self.attempt, self.state, self._was_ready, self._slow_ranks = attempt, STARTING, False, set()
        self.record("started", world=self.job.world, hosts=self.job.servers)

    def end_job(self, code: int, states: Sequence[RankState]) -> None:
        """Record that the job has ended."""
        # Not writing: the last status is queued even if an earlier one is still being written.
        self.state, self.exit_code, self._writing_status = ENDED, code, False
        self.record("ended", exit_code=code)
        self._write_status(states, time.monotonic())

    def print_line(self, text: str) -> None:
        """Show a line on the terminal."""
        self.terminal.print_line(f"{self.job.name}: {text}")

    def record(self, event: str, **facts: Any) -> None:
        """Append an event, one of job_directory.EVENTS, with the current time."""
        attempt, facts = self.attempt, {"time": time.time(), **facts}
        self.disk.submit(lambda: self._write_event(event, attempt, facts))

    def update(self, states: Sequence[RankState]) -> None:
        """Write the status, and events on progress and slow ranks. This may be called often; it does so only every
        STATUS_S seconds."""
        if (now := time.monotonic()) - self._updated <= STATUS_S:
            return
        self._updated = now
        self._record_progress(states, now)
        self._record_slow_ranks(states)
        self._write_status(states, now)

    def _record_progress(self, states: Sequence[RankState], now: float) -> None:
        if not self._was_ready and states and all(state.ready for state in states):
            self._was_ready = True
            self.state = RUNNING if self.state == STARTING else self.state
            self.record("ready")
        steps = [state.step for state in states if state.step is not None]
        if steps and self.state == RUNNING and now - self._last_step_event > STEP_EVENT_S:
            self._last_step_event = now
            self.record("step", step=min(steps), tokens_per_second=states[0].tokens_per_second)

    def _record_slow_ranks(self, states: Sequence[RankState]) -> None:
        """Report each slow rank once in an attempt."""
        for state, seconds, median in watchdog.slow(states):
            rank = state.assignment.rank
            if rank not in self._slow_ranks:
                self._slow_ranks.add(rank)
                self.record("slow", rank=rank, seconds=seconds, median=median)
                self.print_line(
                    f"{state.assignment} is slow: {seconds:.2f} s of its own a step, the others {median:.2f} s; the job"
                    " goes on"
                )

    def _write_event(self, event: str, attempt: int, facts: dict[str, Any]) -> None:
        try:
            self.job.directory.write_event(event, attempt, **facts)
        except (OutputError, OSError) as error:
            # A full disk, or a lack of file descriptors, does not end a job that trains; the user gets one message.
            if not self._disk_failed:
                advice = "free some room" if isinstance(error, OutputError) else "mend that"
                self.print_line(
                    f"{self.job.directory.path}: {error.__cause__ or error}; the job goes on, and events may be"
                    f" missing; {advice}"
                )
            self._disk_failed = True

    def _write_status(self, states: Sequence[RankState], now: float) -> None:
        """Write the status, unless the last one is still being written: on a stalled disk the writes would pile up."""
        status = {"time": time.time(), "attempt": self.attempt, "state": self.state, "exit_code": self.exit_code}
        status |= {"ranks": [state.as_dict(now) for state in states]}
        if not self._writing_status:
            self._writing_status = True
            self.disk.submit(lambda: self._replace_status(status))

    def _replace_status(self, status: dict[str, Any]) -> None:
        with contextlib.suppress(OutputError, OSError):  # _write_event reports faults of the same disk
            self.job.directory.write_status(status)
        self._writing_status = False
