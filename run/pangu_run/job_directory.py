"""OUTPUT/job: the files that a launcher writes about a job, which `pangu status`, `pangu logs` and people read.

job.json          of the last launch here: id, time of start, command, world, hosts, versions, environment (what the
                  run depends on, secrets masked), ...; only its owner can read it
config.yaml       the resolved configuration
rank_table.json   the rank table as used, where there is one
rank_table_HOST.json    the copy that the ranks of a host read
events.jsonl      one line for each event of all launches here: {"time", "id" (of the launch), "event", "attempt",
                  ...}; see EVENTS
status.json       state of every rank, replaced every STATUS_S seconds
logs/rank_N/      output.log (.1, .2, ...) what rank N wrote, rotated; stacks.log its stacks, where they were dumped;
                  ascend/ CANN's own logs
logs/scheduler/output.log    of MindSpore's scheduler
"""

import json
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pangu_ms.core import files, format_version, run_directory, small_json
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.small_json import TIME, Form

_log = logging.getLogger(__name__)
NAME = run_directory.JOB
FORMAT_VERSION = 1
"""Version of the whole directory's format, which job.json holds."""
EVENTS = ("started", "ready", "step", "checkpoint", "slow", "hang", "failure", "signal", "restart", "ended")
"""started: an attempt begins (hosts, world). ready: all ranks have begun. step: every STEP_EVENT_S seconds (step,
tokens_per_second). checkpoint: step. slow: rank, seconds, median. hang: ranks, phase, step. failure: kind, code, rank
(the first cause; None if a host did not connect), host, log, ranks (all ranks at fault), step, phase, summary (one
line), words (the last lines of the log). signal: name, host. restart: wait_s, reason. ended: exit_code."""
STATUS_S, STEP_EVENT_S = 1.0, 10.0
LONGEST_EVENT = 1 << 20  # bytes
RATE_EVENTS = 30
"""Number of recent step events from which the remaining time is estimated."""

STATES = ("starting", "running", "stopping", "waiting", "ended")
STARTING, RUNNING, STOPPING, WAITING, ENDED = STATES
"""Of a job: `waiting` is the pause before a restart. Of a rank: starting, running, ended."""

# Bounds that no real value reaches. A damaged file may hold any number, and code after these checks computes with it.
_RANK, _STEP, _ATTEMPT, _PID = range(1 << 31), range(1 << 62), range(1 << 31), range(1, 1 << 31)
_JOB_FORM: Form = {
    "id": (str, int, None),
    "time": (TIME, None),
    "host": (str, None),
    "launcher_pid": (_PID, None),
    "world": (_RANK, None),
    "total_steps": (_STEP, None),
}
_RANK_FORM: Form = {
    "rank": _RANK,
    "state": frozenset(STATES),
    "host": (str, None),
    "device": (int, None),
    "phase": (str, None),
    "step": (_STEP, None),
    "tokens_per_second": (float, None),
    "beat": (TIME, None),
    "silent_s": (TIME, None),
    "exit_code": (int, None),
}
_STATUS_FORM: Form = {
    "time": TIME,
    "attempt": _ATTEMPT,
    "state": frozenset(STATES),
    "exit_code": (int, None),
    "ranks": [_RANK_FORM],
}
_EVENT_FORM: Form = {"event": str, "time": TIME, "attempt": _ATTEMPT}
_EVENT_FORMS: dict[str, Form] = {
    "step": {"step": _STEP, "tokens_per_second": (float, None)},
    "checkpoint": {"step": _STEP},
    "slow": {"rank": _RANK, "seconds": (float, None), "median": (float, None)},
    "failure": {
        "rank": (_RANK, None),
        "ranks": ([_RANK], None),
        "kind": (str, None),
        "words": ([str], None),
        "summary": (str, None),
    },
}
"""The fields that readers rely on. They are checked, since a crash or another program may have left other content."""


class JobDirectory:
    """The directory of one job; the launcher of the first host writes it."""

    def __init__(self, path: Path):
        self.path = path
        self._launch: str | None = None
        self._warned = False
        self._reset_events()

    def _reset_events(self) -> None:
        self._steps: deque[dict[str, Any]] = deque(maxlen=RATE_EVENTS)
        self._others: list[dict[str, Any]] = []
        self._end = 0  # offset in the file up to which its events are in these two

    @classmethod
    def find(cls, where: Path | str) -> "JobDirectory":
        """The job directory at `where`, which may also be the run directory that contains it.

        Raises:
            LaunchError: there is no job directory.
        """
        for path in (Path(where) / NAME, Path(where)):
            if (path / "job.json").is_file():
                return cls(path)
        raise LaunchError(
            f"{where}: no job was launched there (no {NAME}/job.json); name the --output of a `pangu launch`"
        )

    @property
    def logs(self) -> Path:
        """Directory of all logs."""
        return self.path / "logs"

    def rank_log(self, rank: int) -> Path:
        """The current log file of a rank."""
        return self.logs / f"rank_{rank}" / "output.log"

    def write_job(self, description: Mapping[str, Any]) -> None:
        """Write what is known before ranks start: job.json, and "config" (YAML text) and "rank_table" in separate files
        if they are given.

        Of an earlier launch only events and logs are kept. Later events belong to the launch with the "id" given here.
        """
        self._launch = description.get("id")
        # Removed before job.json is replaced: a reader must not take the old status for that of the new job.
        with files.writing(self.path):
            for name in ("status.json", "config.yaml", "rank_table.json"):
                (self.path / name).unlink(missing_ok=True)
        apart = {"config", "rank_table"}
        told = {key: value for key, value in description.items() if key not in apart}
        files.write_json(self.path / "job.json", {format_version.KEY: FORMAT_VERSION} | told, private=True)
        if config := description.get("config"):
            files.write_text(self.path / "config.yaml", config)
        if rank_table := description.get("rank_table"):
            files.write_json(self.path / "rank_table.json", rank_table)
        self._append("\n")  # ends the line that an earlier launcher may have left unfinished when it was killed

    def write_event(self, event: str, attempt: int, **facts: Any) -> None:
        """Append an event."""
        assert event in EVENTS, event
        self._append(
            json.dumps(
                {"time": time.time(), "id": self._launch, "event": event, "attempt": attempt, **facts},
                ensure_ascii=False,
            )
            + "\n"
        )

    def _append(self, line: str) -> None:
        with files.writing(self.path), open(self.path / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(line)

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace the status: {"time", "attempt", "state", "exit_code", "ranks": [{"rank", "host", "device", "pid",
        "state", "phase", "step", "tokens_per_second", "beat" (time of the last heartbeat on its host's clock, s),
        "silent_s" (seconds since it arrived, on the leader's clock), "exit_code"}]}; unknown values are None. The file
        is written atomically, but not flushed to disk, since the next status follows soon."""
        files.write_bytes(self.path / "status.json", json.dumps(status, ensure_ascii=False).encode(), durable=False)

    def job(self) -> dict[str, Any]:
        """Content of job.json.

        Raises:
            LaunchError: job.json does not exist, is damaged, or was written by a newer version of this program.
        """
        path = self.path / "job.json"
        try:
            found = small_json.read_object(path, False, _JOB_FORM)
        except ValueError as error:
            advice = f"see {self.logs} for what the ranks wrote; the next `pangu launch` there writes the file anew"
            raise LaunchError(f"{path}: is damaged ({error}); a launcher writes it whole; {advice}") from error
        format_version.require_known(
            found.get(format_version.KEY, format_version.FIRST), FORMAT_VERSION, path, LaunchError
        )
        return found

    def status(self) -> dict[str, Any] | None:
        """Content of status.json; None if there is none yet. The file is not flushed to disk, so a power cut may damage
        it: then the result is None, too, and a warning is logged."""
        try:
            return small_json.read_object(self.path / "status.json", False, _STATUS_FORM)
        except small_json.Missing:
            return None
        except ValueError as error:
            if not self._warned:  # warn once, not at every read
                _log.warning(
                    "%s: is damaged (%s), as a crash may leave it; taken as not there", self.path / "status.json", error
                )
            self._warned = True
            return None

    def began(self) -> float:
        """When the last launch began: files with an earlier modification time do not belong to it.

        This is the earlier one of the launcher's time and the file system's time, since their clocks may differ, and
        all files of a copied directory are new.
        """
        return min(self.job().get("time") or 0.0, (self.path / "job.json").stat().st_mtime)

    def events(self, launch: str | None = None) -> list[dict[str, Any]]:
        """All events, without lines that a crash damaged or that are still being written.

        Args:
            launch: "id" of job.json for the events of that launch only; None for those of all launches in this
                directory.
        """
        return [event for event, _ in self._read_from(0) if launch in (None, event.get("id"))]

    def latest_events(self, launch: str | None = None) -> list[dict[str, Any]]:
        """Like `events`, but only the last RATE_EVENTS step events, placed after all other events. Reading continues
        where the last call ended."""
        path = self.path / "events.jsonl"
        if path.exists() and path.stat().st_size < self._end:  # the directory was replaced
            self._reset_events()
        for event, end in self._read_from(self._end):
            self._end = end
            (self._steps if event["event"] == "step" else self._others).append(event)
        return [event for event in (*self._others, *self._steps) if launch in (None, event.get("id"))]

    def _read_from(self, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Events from an offset in the file, each with the offset of the end of its line. A line that is still being
        written is not valid JSON yet and is left out."""
        path = self.path / "events.jsonl"
        if not path.exists():
            return
        try:
            opened = files.open_ordinary(path)
        except ValueError as error:
            raise LaunchError(
                f"{path}: {error}; a launcher appends to it; remove it, and the job goes on without what it told"
            ) from None
        with opened as file:
            file.seek(offset)
            while line := file.readline(LONGEST_EVENT):
                offset += len(line)
                if event := _parsed(line):
                    yield event, offset


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = small_json.parse_object(line.decode(errors="replace"), finite=False)
    except ValueError:
        return None
    sound = not small_json.misfit(event, _EVENT_FORM) and not small_json.misfit(
        event, _EVENT_FORMS.get(event["event"], dict)
    )
    return event if sound else None
