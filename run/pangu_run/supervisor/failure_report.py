"""Reports on failed attempts: which rank is the first cause, the exit code of the job, and the message to the user."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pangu_ms.core.console import INTERRUPTED, USER_ERROR
from pangu_ms.core.exit_codes import EXIT_HANG, EXIT_HOST, EXIT_PEER_LOST, EXIT_STOPPED
from pangu_ms.core.stop_signals import STOP_SIGNALS
from pangu_run.job.job import Job
from pangu_run.supervisor.watchdog import RankState, format_ranks

_CONSEQUENCES = (-signal.SIGABRT, -signal.SIGTERM, EXIT_PEER_LOST, EXIT_STOPPED)
"""Exit codes of ranks that may have ended only because another rank did, the least likely cause last."""
NOT_RESTARTED = (0, USER_ERROR, EXIT_STOPPED, INTERRUPTED)
"""Exit codes after which another attempt would not help, or is not wanted."""


@dataclass(frozen=True)
class FailureReport:
    """The first cause of an attempt's end."""

    kind: str
    """exit | hang | host | scheduler"""
    code: int
    """The job's exit code."""
    ranks: tuple[int, ...]
    """The ranks at fault, as far as known; all ranks of a lost host; empty if the scheduler ended."""
    step: int | None
    phase: str | None
    summary: str
    """One line that says what happened."""
    source: str = ""
    """The file that `lines` were read from, as a text appended to the summary."""
    lines: tuple[str, ...] = ()
    """The last lines of the rank's log, or the stacks of the rank."""
    on_terminal: bool = False
    """Whether the terminal has already shown the lines, because it shows the output of that rank."""

    def text(self) -> str:
        """The message to the user; empty if the terminal has already shown a rank's message on the user's mistake."""
        if self.on_terminal and self.code == USER_ERROR:
            return ""
        head = self.summary + (f"; {self.source}" if self.source else "")
        return "\n  ".join([head, *(() if self.on_terminal else self.lines)])

    def signature(self) -> tuple[Any, ...]:
        """A value that is equal for failures of the same kind at the same step; numbers in the last line are
        ignored."""
        return self.kind, self.code, self.step, re.sub(r"\d+", "N", self.lines[-1] if self.lines else self.summary)

    def event(self, job: Job) -> dict[str, Any]:
        """The facts of the event `failure`; see job_directory.EVENTS."""
        rank = self.ranks[0] if self.ranks else None
        return {
            "rank": rank,
            "host": job.servers[0] if rank is None else job.assignments[rank].server,
            "log": None if rank is None else str(job.directory.rank_log(rank)),
            "ranks": list(self.ranks),
            "kind": self.kind,
            "code": self.code,
            "step": self.step,
            "phase": self.phase,
            "summary": self.summary,
            "words": list(self.lines),
        }


def shell_code(code: int) -> int:
    """The exit code as shells report it: 128 + N for signal N."""
    return code if code >= 0 else 128 - code


def first_failed_exit(exits: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first of the exits that are most likely the cause; None if all codes are 0.

    A rank that ends because another rank is gone has the code EXIT_PEER_LOST, unless MindSpore's own network code ends
    the process, by SIGTERM or by abort.

    Args:
        exits: messages "exit", in the order in which they came.
    """
    failed = [message for message in exits if message["code"] != 0]

    def likelihood(message: dict[str, Any]) -> int:
        return _CONSEQUENCES.index(message["code"]) if message["code"] in _CONSEQUENCES else -1

    return min(failed, key=likelihood, default=None)  # of equally likely ones, the first that came


def are_stops(exits: Sequence[dict[str, Any]]) -> bool:
    """Whether all ranks were ended by stop signals, as happens if a scheduler sends them to all processes of a job and
    not only to the launcher."""
    stopped = (0, EXIT_STOPPED, EXIT_PEER_LOST, *(-number for number in STOP_SIGNALS))
    return all(message["code"] in stopped for message in exits)


def signal_name(number: int) -> str:
    """Name of a signal, such as SIGTERM; "signal 42" if it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def report_exit(job: Job, states: Sequence[RankState], exits: Sequence[dict[str, Any]]) -> FailureReport:
    """The report on an attempt in which a rank ended with an error.

    Args:
        job: the job.
        states: of all ranks, in order of ranks.
        exits: messages of the ranks that ended by themselves, in order of arrival; at least one code is not 0.
    """
    cause = first_failed_exit(exits)
    assert cause is not None
    rank, code = cause["rank"], cause["code"]
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"failed with exit code {code}"
    memory = ""
    if cause.get("oom"):
        memory = "; the kernel's out-of-memory killer was at work on that host: use a smaller batch or more memory"
    others = [m["rank"] for m in exits if m is not cause and m["code"] not in (0, EXIT_PEER_LOST, EXIT_STOPPED)]
    also = f"; so did {format_ranks(others)}" if others else ""
    # All ranks report the same user's mistake, so the rank that the terminal shows has reported it.
    mistake_shown = code == USER_ERROR and job.stream_rank in (rank, *others)
    on_terminal = mistake_shown or job.stream_rank == rank and code > 0 and cause["started"]
    log = job.directory.rank_log(rank)
    return FailureReport(
        kind="exit",
        code=shell_code(code),
        ranks=(rank,),
        step=states[rank].step,
        phase=states[rank].phase,
        summary=f"{states[rank].assignment} {how}{_when(states[rank])}{memory}{also}",
        source=f"its words are above and in {log}" if on_terminal else f"{log} ends with:",
        lines=tuple(cause["words"]),
        on_terminal=on_terminal,
    )


def report_hang(
    states: Sequence[RankState], hung: Sequence[RankState], seconds: float, stacks: Sequence[dict[str, Any]]
) -> FailureReport:
    """The report on an attempt in which ranks sent no heartbeat for too long.

    Args:
        states: of all ranks.
        hung: the silent ranks, the most likely cause first.
        seconds: time without a heartbeat.
        stacks: messages "stacks", with what the ranks were doing.
    """
    first, ranks = hung[0], tuple(state.assignment.rank for state in hung)
    all_silent = len(hung) > 1 and len(hung) == sum(state.runs for state in states)
    dump = next((m for m in stacks if m["rank"] == first.assignment.rank), {"lines": [], "path": "no file"})
    return FailureReport(
        kind="hang",
        code=EXIT_HANG,
        ranks=ranks,
        step=first.step,
        phase=first.phase,
        summary=f"{format_ranks(ranks)} silent for {seconds:.0f} s{_when(first)}"
        + ("; all ranks that run are silent" if all_silent else ""),
        source=f"the stacks of all ranks were dumped, those of rank {first.assignment.rank} to {dump['path']}:",
        lines=tuple(dump["lines"]),
    )


def report_lost_host(server: str, states: Sequence[RankState]) -> FailureReport:
    """The report on an attempt in which the connection to a host's launcher was lost."""
    ranks = tuple(state.assignment.rank for state in states if state.assignment.server == server)
    return FailureReport(
        kind="host",
        code=EXIT_HOST,
        ranks=ranks,
        step=max((state.step or 0 for state in states), default=None),
        phase=None,
        summary=f"host {server} was lost ({format_ranks(ranks)}): its launcher ended or the network failed; look at"
        " that host",
    )


def report_scheduler_exit(job: Job, code: int, lines: Sequence[str]) -> FailureReport:
    """The report on an attempt in which MindSpore's scheduler ended, without which the ranks cannot continue.

    Args:
        job: the job.
        code: the scheduler's exit code.
        lines: the last lines of its log.
    """
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return FailureReport(
        kind="scheduler",
        code=shell_code(code) or 1,
        ranks=(),
        step=None,
        phase=None,
        summary=f"MindSpore's scheduler {how} while ranks ran",
        source=f"{job.directory.logs / 'scheduler' / 'output.log'} ends with:",
        lines=tuple(lines),
    )


def _when(state: RankState) -> str:
    return f" in phase {state.phase}" + (f" of step {state.step}" if state.step is not None else "")
