"""How an attempt ended: which rank is the first cause, which exit code the job has, what the user is told."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pangu_ms.core.console import INTERRUPTED, USER_ERROR
from pangu_ms.core.exit_codes import EXIT_HANG, EXIT_HOST, EXIT_PEER_LOST, EXIT_STOPPED
from pangu_ms.core.stop_signals import STOP_SIGNALS
from pangu_run.job.job import Job
from pangu_run.supervisor.watchdog import RankState, ranks_in_words

_CONSEQUENCES = (-signal.SIGABRT, -signal.SIGTERM, EXIT_PEER_LOST, EXIT_STOPPED)
"""Exit codes of ranks that may only have missed another one, the least likely cause last."""
NOT_RESTARTED = (0, USER_ERROR, EXIT_STOPPED, INTERRUPTED)


@dataclass(frozen=True)
class Failure:
    """The first cause of an attempt's end."""

    kind: str
    """exit | hang | host | scheduler"""
    code: int
    """The job's exit code."""
    ranks: tuple[int, ...]
    """Whose fault it is, as far as can be told; a lost host's; none for the scheduler."""
    step: int | None
    phase: str | None
    summary: str
    """What happened, in a line."""
    place: str = ""
    """Where its words are, in a file."""
    words: tuple[str, ...] = ()
    """The last lines of the rank's log, or its stacks."""
    told: bool = False
    """Whether the terminal has shown the words already."""

    def text(self) -> str:
        """What the user is told; nothing where the terminal has shown a rank's line on the user's mistake."""
        if self.told and self.code == USER_ERROR:
            return ""
        return "\n  ".join(
            [self.summary + (f"; {self.place}" if self.place else ""), *(() if self.told else self.words)]
        )

    def signature(self) -> tuple[Any, ...]:
        """Equal for failures that are the same but for numbers: same step, same way."""
        return self.kind, self.code, self.step, re.sub(r"\d+", "N", self.words[-1] if self.words else self.summary)

    def event(self, job: Job) -> dict[str, Any]:
        """The event `failure`."""
        rank = self.ranks[0] if self.ranks else None
        where = {"rank": rank, "host": job.servers[0], "log": None} if rank is None else _where(job, rank)
        where |= {"ranks": list(self.ranks)}
        return where | {
            "kind": self.kind,
            "code": self.code,
            "step": self.step,
            "phase": self.phase,
            "summary": self.summary,
            "words": list(self.words),
        }


def shell_code(code: int) -> int:
    """Exit code of a shell: 128 + N for signal N."""
    return code if code >= 0 else 128 - code


def first_exit(exits: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The exit that came first of those most likely to be causes; None where all are 0.

    A rank that only misses another says so (EXIT_PEER_LOST); in MindSpore's own network it ends itself by SIGTERM or
    aborts.
    """
    failed = [message for message in exits if message["code"] != 0]
    return min(
        failed,
        key=lambda message: _CONSEQUENCES.index(message["code"]) if message["code"] in _CONSEQUENCES else -1,
        default=None,
    )


def are_stops(exits: Sequence[dict[str, Any]]) -> bool:
    """Whether ranks ended by nothing but stop signals, as where a scheduler sends them to all processes of a job, and
    not to the launcher alone."""
    return all(
        message["code"] in (0, EXIT_STOPPED, EXIT_PEER_LOST, *(-number for number in STOP_SIGNALS)) for message in exits
    )


def signal_name(number: int) -> str:
    """ "SIGTERM"; "signal 42" where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def of_exit(job: Job, states: Sequence[RankState], exits: Sequence[dict[str, Any]]) -> Failure:
    """The failure of an attempt in which a rank ended with an error.

    Args:
        exits: messages of the ranks that ended by themselves, in the order in which they came.
    """
    cause = first_exit(exits)
    state, code = states[cause["rank"]], cause["code"]
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"failed with exit code {code}"
    memory = (
        "; the kernel's out-of-memory killer was at work on that host: use a smaller batch or more memory"
        if cause.get("oom")
        else ""
    )
    others = [m["rank"] for m in exits if m is not cause and m["code"] not in (0, EXIT_PEER_LOST, EXIT_STOPPED)]
    also = f"; so did {ranks_in_words(others)}" if others else ""
    streamed = (
        job.stream_rank in (cause["rank"], *others)
        and code == USER_ERROR
        or job.stream_rank == cause["rank"]
        and code > 0
        and cause["started"]
    )
    log = job.directory.rank_log(cause["rank"])
    place = f"its words are above and in {log}" if streamed else f"{log} ends with:"
    summary = f"{_who(state)} {how}{_at(state)}{memory}{also}"
    return Failure(
        "exit",
        shell_code(code),
        (cause["rank"],),
        state.step,
        state.phase,
        summary,
        place,
        tuple(cause["words"]),
        streamed,
    )


def of_hang(
    states: Sequence[RankState], hung: Sequence[RankState], seconds: float, stacks: Sequence[dict[str, Any]]
) -> Failure:
    """The failure of an attempt in which ranks were silent for too long; `stacks` are the messages with what they were
    doing."""
    first, ranks = hung[0], tuple(state.place.rank for state in hung)
    everyone = (
        "; all ranks that run are silent" if len(hung) > 1 and len(hung) == sum(state.runs for state in states) else ""
    )
    where = next((m for m in stacks if m["rank"] == first.place.rank), {"lines": [], "path": "no file"})
    summary = f"{ranks_in_words(ranks)} silent for {seconds:.0f} s{_at(first)}{everyone}"
    place = f"the stacks of all ranks were dumped, those of rank {first.place.rank} to {where['path']}:"
    return Failure("hang", EXIT_HANG, ranks, first.step, first.phase, summary, place, tuple(where["lines"]))


def of_host(server: str, states: Sequence[RankState]) -> Failure:
    """The failure of an attempt in which the connection to a host's launcher was lost."""
    there = [state for state in states if state.place.server == server]
    summary = (
        f"host {server} was lost ({ranks_in_words([state.place.rank for state in there])}): its launcher ended or the"
        " network failed; look at that host"
    )
    return Failure(
        "host",
        EXIT_HOST,
        tuple(state.place.rank for state in there),
        max((s.step or 0 for s in states), default=None),
        None,
        summary,
    )


def of_scheduler(job: Job, code: int, words: Sequence[str]) -> Failure:
    """The failure of an attempt whose MindSpore scheduler ended: the ranks cannot go on."""
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    place = f"{job.directory.logs / 'scheduler' / 'output.log'} ends with:"
    return Failure(
        "scheduler",
        shell_code(code) or 1,
        (),
        None,
        None,
        f"MindSpore's scheduler {how} while ranks ran",
        place,
        tuple(words),
    )


def _where(job: Job, rank: int) -> dict[str, Any]:
    return {"rank": rank, "host": job.places[rank].server, "log": str(job.directory.rank_log(rank))}


def _who(state: RankState) -> str:
    return f"rank {state.place.rank} (host {state.place.server}, device {state.place.device})"


def _at(state: RankState) -> str:
    return f" in phase {state.phase}" + (f" of step {state.step}" if state.step is not None else "")
