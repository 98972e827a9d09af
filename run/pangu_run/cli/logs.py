"""`pangu logs`: show or follow the log of a rank; or show the distinct errors of all ranks, with explanations."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from pangu_ms.core.console import raw, show, tell
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_json
from pangu_run.job_directory import JobDirectory
from pangu_run.report.log_errors import SCHEDULER, DistinctError, distinct_errors, failure_summary
from pangu_run.report.log_lines import follow, rotated, tail
from pangu_run.report.observe import is_over
from pangu_run.report.status import clock, ranks_text

COUNTER_S = 1.0


def build_parser() -> Parser:
    """The parser of the verb."""
    parser = Parser(prog="pangu logs", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="--output of a `pangu launch`, or the job directory in it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--rank",
        metavar="N",
        help=f"rank whose log is shown, or {SCHEDULER!r}; without it: the rank that failed first, else 0",
    )
    which.add_argument(
        "--errors",
        action="store_true",
        help="show the distinct errors of all logs with explanations: the first cause, then the others by time",
    )
    parser.add_argument(
        "--follow", action="store_true", help="continue to show new lines, also after rotations, until the job ends"
    )
    parser.add_argument(
        "--lines",
        type=int,
        default=50,
        metavar="N",
        help="number of last lines, or of distinct errors, to show; 0 shows all errors",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb; returns the exit code."""
    args = build_parser().parse_args(argv)
    _check(args)
    directory = JobDirectory.find(args.dir)
    if args.errors:
        return show_errors(directory, args.lines, args.json)
    return show_log(directory, args.rank, args.lines, args.follow, args.json)


def _check(args: argparse.Namespace) -> None:
    if args.lines < 0 or (args.lines == 0 and not (args.errors or args.follow)):
        raise LaunchError(f"--lines {args.lines}: must be at least 1; leave it out to see 50")
    if args.follow and (args.errors or args.json):
        raise LaunchError(
            f"--follow: shows lines of one log as they come; has no {'--errors' if args.errors else '--json'}; leave"
            " one of the two out"
        )


def show_log(directory: JobDirectory, rank: str | None, count: int, following: bool, as_json: bool) -> int:
    """Print the last lines of a log, and with `following` also new ones as they come; returns the exit code."""
    failure = first_failure(directory)
    owner = rank if rank is not None else str((failure or {}).get("rank") or 0)
    log, began = _log(directory, owner), directory.began()
    written = rotated(log, began)
    if not following and not written:
        who = owner if owner == SCHEDULER else f"rank {owner}"
        raise LaunchError(
            f"{log}: holds nothing of the last launch; {who} wrote nothing or runs on another disk; see `pangu status`"
        )
    lines = follow(log, lambda: is_over(directory), count if written else 0) if following else tail(log, count, began)
    if as_json:
        result = {"rank": owner if owner == SCHEDULER else int(owner), "log": str(log), "lines": lines}
        print_json(result, ensure_ascii=False)
        return 0
    tell(f"{log}:")
    for line in lines:
        show(line)
    return 0


def _log(directory: JobDirectory, owner: str) -> Path:
    if owner == SCHEDULER:
        return directory.logs / SCHEDULER / "output.log"
    world = directory.job().get("world")
    if not owner.isdecimal() or (isinstance(world, int) and int(owner) >= world):
        known = f"the job has ranks 0 to {world - 1}" if isinstance(world, int) else "ranks are numbers from 0"
        raise LaunchError(f"--rank {owner}: no such rank; {known}; name one of them, or {SCHEDULER}")
    return directory.rank_log(int(owner))


def first_failure(directory: JobDirectory) -> dict[str, Any] | None:
    """The event of the first failure in the last attempt that has one."""
    events = directory.events(directory.job().get("id"))
    failures = [event for event in events if event["event"] == "failure"]
    return next((event for event in failures if event["attempt"] == failures[-1]["attempt"]), None)


def show_errors(directory: JobDirectory, limit: int, as_json: bool) -> int:
    """Print the distinct errors of all logs; returns the exit code."""
    failure = first_failure(directory)
    errors, unread = distinct_errors(directory, failure, Counter("reading logs"))
    shown = errors[: limit or None]
    if as_json:
        rows = [_as_json(error) for error in shown]
        print_json({"cause": failure, "errors": rows, "distinct": len(errors), "unread": unread}, ensure_ascii=False)
        return 0
    if failure:
        show(f"first cause, at {clock(failure['time'])}: {failure_summary(failure)}")
    for error in shown:
        show(_error_lines(error, directory))
    if not errors:
        show(f"{directory.logs}: no errors found")
    if len(errors) > len(shown):
        print(f"{len(errors) - len(shown)} more distinct errors; --lines 0 shows all")
    for line in unread:
        tell(f"not read: {line}")
    return 0


def _as_json(error: DistinctError) -> dict[str, Any]:
    owners = {
        "ranks": sorted(owner for owner in error.owners if isinstance(owner, int)),
        "scheduler": SCHEDULER in error.owners,
    }
    explanation = error.explanation and {**dataclasses.asdict(error.explanation), "line": error.explanation.line}
    return {
        "text": error.text,
        "count": error.count,
        **owners,
        "first_time": error.time,
        "log": str(error.log),
        "frame": error.frame,
        "cause": error.cause,
        "explanation": explanation,
    }


def _error_lines(error: DistinctError, directory: JobDirectory) -> str:
    ranks = ranks_text(owner for owner in error.owners if isinstance(owner, int))
    owners = ", ".join(
        filter(None, (f"ranks {ranks}" if ranks else "", SCHEDULER if SCHEDULER in error.owners else ""))
    )
    lines = [f"{'* ' if error.cause else '  '}{error.count} x  {owners}  {clock(error.time)}  {error.text}"]
    if error.explanation:
        lines.append(f"      -> {error.explanation.line}")
    log = error.log.relative_to(directory.path)
    return "\n".join([*lines, f"      first in {log}" + (f", {error.frame}" if error.frame else "")])


class Counter:
    """Shows the progress of work that takes more than COUNTER_S on stderr, if that is a terminal."""

    def __init__(self, what: str):
        self.what, self.began, self.shown = what, time.monotonic(), False

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done; the last call clears the line."""
        if sys.stderr.isatty() and (self.shown or time.monotonic() - self.began > COUNTER_S):
            self.shown = True
            print(
                f"\r{self.what}: {done} of {total}" if done < total else "\r\x1b[K",
                end="",
                file=raw(sys.stderr),
                flush=True,
            )
