"""Computes the state of a job and its ranks from the content of status and events. All functions are pure."""

import collections
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pangu_ms.core.exit_codes import EXIT_PEER_LOST, EXIT_STOPPED
from pangu_run.job_directory import RATE_EVENTS

GONE_S, FAR_GONE_S = 10.0, 90.0
"""Age of the status, in seconds, above which a launcher counts as gone or stuck: GONE_S on this host, FAR_GONE_S on
another host. Launchers write the status every second, but clocks of other hosts may differ by some seconds, and a
shared file system may show the state of a minute ago (NFS caches attributes for up to 60 s, acregmax)."""
SILENT_S = 30.0
MAX_ROWS, MAX_ODD = 32, 16
"""More than MAX_ROWS ranks are shown in groups, except for up to MAX_ODD conspicuous ranks, which have rows of their
own."""
GONE, STUCK = "gone", "stuck"
"""States in addition to those that a launcher writes: the launcher is dead; it is alive but does not write."""
KILLED = (-15, -9, 143, 137)
"""Exit codes of ranks that a launcher ends after another one has failed."""
FAILED, PEER_LOST, SILENT, BEHIND = "failed", "lost a peer", "silent", "behind"


@dataclass(frozen=True)
class Rank:
    """A row: one rank, or a group of ranks in the same state."""

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    device: Any
    state: str
    phase: str | None
    step: int | None
    tokens_per_second: float | None
    silent_s: float | None
    """Seconds since the last heartbeat; for a group, the largest value."""
    exit_code: int | None
    notes: tuple[str, ...]
    """Why the rank is conspicuous: failed, lost a peer, silent, behind."""


@dataclass(frozen=True)
class JobStatus:
    """The state of a whole job; None means unknown."""

    id: str
    state: str
    """One of job_directory.STATES, "gone" or "stuck"."""
    attempt: int
    exit_code: int | None
    age_s: float | None
    """Seconds since the launcher wrote its status."""
    step: int | None
    total_steps: int | None
    tokens_per_second: float | None
    eta_s: float | None
    checkpoint: dict[str, Any] | None
    """{"step", "age_s"} of the last one."""
    restarts: int
    slow: tuple[dict[str, Any], ...]
    """{"rank", "seconds", "median"} of each rank that was reported slow in this attempt, from its last report."""
    failure: dict[str, Any] | None
    """The event of the first failure in this attempt."""
    ranks: tuple[Rank, ...]

    @property
    def over(self) -> bool:
        """Whether the job will not go on."""
        return self.state in ("ended", GONE)

    @property
    def well(self) -> bool:
        """Whether the job runs or has succeeded: it is complete, or was stopped with its state saved."""
        return self.exit_code in (0, EXIT_STOPPED) if self.state == "ended" else self.state not in (GONE, STUCK)


def job_status(
    job: dict[str, Any],
    status: dict[str, Any] | None,
    events: Sequence[dict[str, Any]],
    now: float,
    launcher_lives: bool | None,
    total_steps: int | None,
) -> JobStatus:
    """The status of a job.

    Args:
        status: content of status.json; None before the first one.
        events: of the current launch; the events of each kind are in order.
        now: seconds since the epoch.
        launcher_lives: whether the launcher's process is alive; None if it runs on another host.
    """
    written = status["time"] if status else job.get("time")
    age = None if written is None else max(0.0, now - written)
    status = status or {
        "state": "starting",
        "attempt": max((event["attempt"] for event in events), default=0),
        "exit_code": None,
        "ranks": [],
    }
    state = _state(status["state"], age, launcher_lives)
    of_attempt = [event for event in events if event["attempt"] == status["attempt"]]
    steps = [event for event in of_attempt if event["event"] == "step"]
    failures = [event for event in of_attempt if event["event"] == "failure"]
    over = state in ("ended", GONE)
    # The age of the status is added to its silences only on the launcher's host: other hosts have other clocks.
    since = 0.0 if over or launcher_lives is None or age is None else age
    ranks = ranks_of(status["ranks"], written if over else now, [event.get("rank") for event in failures], since)
    step = max(
        [rank.step for rank in ranks if rank.step is not None] + [event["step"] for event in steps[-1:]], default=None
    )
    speeds = [event.get("tokens_per_second") for event in steps[-1:]] + [rank.tokens_per_second for rank in ranks]
    checkpoints = [event for event in events if event["event"] == "checkpoint"]
    return JobStatus(
        id=str(job.get("id", "?")),
        state=state,
        attempt=status["attempt"],
        exit_code=status.get("exit_code"),
        age_s=age,
        step=step,
        total_steps=total_steps,
        tokens_per_second=next((speed for speed in speeds if speed is not None), None),
        eta_s=_eta(steps, step, total_steps) if state == "running" else None,
        checkpoint=(
            {"step": checkpoints[-1]["step"], "age_s": max(0.0, now - checkpoints[-1]["time"])} if checkpoints else None
        ),
        restarts=sum(event["event"] == "restart" for event in events),
        slow=tuple({event["rank"]: _slow(event) for event in of_attempt if event["event"] == "slow"}.values()),
        failure=next(iter(failures), None),
        ranks=tuple(ranks),
    )


def _state(state: str, age: float | None, launcher_lives: bool | None) -> str:
    if state == "ended":
        return state
    if age is None or age <= (FAR_GONE_S if launcher_lives is None else GONE_S):
        return state
    return STUCK if launcher_lives else GONE


def _slow(event: dict[str, Any]) -> dict[str, Any]:
    return {name: event.get(name) for name in ("rank", "seconds", "median")}


def _eta(steps: Sequence[dict[str, Any]], step: int | None, total: int | None) -> float | None:
    """Remaining seconds, estimated from the speed of the last step events."""
    if step is None or total is None or len(steps) < 2:
        return None
    first, last = steps[-RATE_EVENTS:][0], steps[-1]
    done, seconds = last["step"] - first["step"], last["time"] - first["time"]
    return max(0, total - step) * seconds / done if done > 0 else None


def ranks_of(
    entries: Sequence[dict[str, Any]], now: float | None, failed: Sequence[int | None] = (), since: float = 0.0
) -> list[Rank]:
    """The ranks of a status, with notes on conspicuous ones.

    Args:
        now: end of the time of silence if the status only has the time of a rank's last heartbeat.
        failed: ranks of failure events; other ranks that the launcher killed afterwards did not fail.
        since: age of the status in seconds, which is added to the silence in the status.
    """
    running = collections.Counter(entry["step"] for entry in entries if entry.get("step") is not None)
    # The step that most ranks have; of two equally frequent ones the later.
    usual = max(running, key=lambda step: (running[step], step), default=None)
    return [
        _rank(entry, usual, _silence(entry, now, since), failed)
        for entry in sorted(entries, key=lambda entry: entry["rank"])
    ]


def _silence(entry: dict[str, Any], now: float | None, since: float) -> float | None:
    if entry["state"] == "ended":
        return None
    if entry.get("silent_s") is not None:
        return entry["silent_s"] + since
    beat = entry.get("beat")
    return None if beat is None or now is None else max(0.0, now - beat)


def _rank(entry: dict[str, Any], usual: int | None, silence: float | None, failed: Sequence[int | None]) -> Rank:
    get, step, code = entry.get, entry.get("step"), entry.get("exit_code")
    stopped = bool(failed) and code in KILLED and entry["rank"] not in failed
    facts = {
        FAILED: code not in (None, 0, EXIT_STOPPED, EXIT_PEER_LOST) and not stopped,
        PEER_LOST: code == EXIT_PEER_LOST,
        # A rank that waits for others is not silent through its own fault.
        SILENT: silence is not None and silence > SILENT_S and get("phase") != "wait",
        BEHIND: step is not None and usual is not None and step < usual,
    }
    notes = tuple(note for note, true in facts.items() if true)
    hosts = (str(get("host")),) if get("host") is not None else ()
    return Rank(
        (entry["rank"],),
        hosts,
        get("device"),
        entry["state"],
        get("phase"),
        step,
        get("tokens_per_second"),
        silence,
        code,
        notes,
    )


def group_ranks(ranks: Sequence[Rank]) -> list[Rank]:
    """The rows to show: one for each rank; if there are many ranks, first the conspicuous ones, then groups of ranks in
    the same state."""
    if len(ranks) <= MAX_ROWS:
        return list(ranks)
    odd = [rank for rank in ranks if rank.notes]
    if len(odd) > MAX_ODD:
        odd = _groups(odd)
    severity = (FAILED, SILENT, PEER_LOST, BEHIND)
    odd.sort(key=lambda rank: (min(severity.index(note) for note in rank.notes), rank.ranks))
    return odd + _groups([rank for rank in ranks if not rank.notes])


def _groups(ranks: Sequence[Rank]) -> list[Rank]:
    groups = collections.defaultdict(list)
    for rank in ranks:
        groups[rank.state, rank.phase, rank.step, rank.exit_code, rank.notes].append(rank)
    return [_group(members) for members in groups.values()]


def _group(members: Sequence[Rank]) -> Rank:
    first = members[0]
    if len(members) == 1:
        return first
    numbers = tuple(number for member in members for number in member.ranks)
    hosts = tuple(dict.fromkeys(host for member in members for host in member.hosts))
    speed = next((member.tokens_per_second for member in members if member.tokens_per_second is not None), None)
    silence = max((member.silent_s for member in members if member.silent_s is not None), default=None)
    return Rank(
        numbers, hosts, None, first.state, first.phase, first.step, speed, silence, first.exit_code, first.notes
    )


def ranks_text(ranks: Iterable[int], longest: int = 48) -> str:
    """Ranks as intervals: 0-5,7,9-2047; a long list is truncated, and the number of ranks is appended."""
    intervals: list[list[int]] = []
    for rank in sorted(ranks):
        if intervals and rank == intervals[-1][1] + 1:
            intervals[-1][1] = rank
        else:
            intervals.append([rank, rank])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in intervals)
    if len(text) <= longest:
        return text
    return f"{text[:longest].rsplit(',', 1)[0]},... ({sum(last - first + 1 for first, last in intervals)} ranks)"


def duration(seconds: float | None) -> str:
    """Seconds in the form 4 s, 12 min, 3 h 05 min, or 2 d 4 h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(seconds: float) -> str:
    """A time, given in seconds since the epoch, as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
