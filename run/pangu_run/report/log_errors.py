"""Finds the distinct errors in the logs of all ranks. Logs are streamed; errors that differ only in numbers, addresses
and times count as the same."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pangu_run.job_directory import JobDirectory
from pangu_run.report.ascend_errors import CODE_PATTERN, Explanation, codes_of, explain
from pangu_run.report.log_lines import BLOCK, bounded, clean, rotated, written_since

SCHEDULER = "scheduler"
MAX_TEXT, MAX_DISTINCT, MESSAGE_LINES = 600, 2000, 8
"""Maximum number of characters kept of an error, of distinct errors, and of lines in which a message is searched that
is not on the same line as its error."""

# Blocks of a log without any of these texts and without an error code are skipped; see suspect_lines.
_ERROR_MARKS = (
    b"Traceback (most recent",
    b"[ERROR]",
    b"[CRITICAL]",
    b"[EXCEPTION]",
    b"Error",
    b"Exception",
    b"terminate called",
    b"Segmentation fault",
    b"Killed",
    b"pangu ",
    b"pangu:",
)
_CODE_MARK = re.compile(rb"E[0-9A-Z]\d{4}[^0-9A-Za-z]")
# A line of MindSpore's or CANN's logger: `[ERROR] CORE(123,7f..,python):2024-05-01-10:00:00.123 [file.cc:45] text`.
_GLOG = re.compile(
    r"\[(?:ERROR|CRITICAL|EXCEPTION)\] ?(\w+)\([^)]*\): ?(\d{4}-\d\d-\d\d[- ]\d\d:\d\d:\d\d)[.\d]* ?(?:\[([^\]]*)\])?"
    r" ?(.*)"
)
# A line of the same loggers that reports no error, even if its text contains the word.
_LESSER = re.compile(r"^\[(?:WARNING|INFO|DEBUG|EVENT|TRACE)\] ?\w+\(")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[- ]\d\d:\d\d:\d\d")
_HEADER = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s+File "([^"]+)", line (\d+)(?:, in (.+))?$')
# The part of a path that begins with a package of this project, wherever it is installed.
_PROJECT = re.compile(r"(?:^|/)((?:pangu_ms|ascend_ops|run)/[\w/]+\.py)$")
# A line that begins with an error code, or has one in brackets: `EI0006: text`, `(EI0006): text`.
_CANN = re.compile(rf"^\W*{CODE_PATTERN}(?=[:\s\[(])|\({CODE_PATTERN}\)[:.]")
# Errors that are one line without a traceback: of the interpreter, of C++, of the kernel, and of our own commands.
_LONE = re.compile(
    r"^(?:Fatal Python error: .+|terminate called .+|Segmentation fault.*|Bus error.*|Killed$|(?:pangu|run)(?:"
    r" [a-z-]+)?: .+"
    r"|(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception):(?: .*|$))"
)
_RULE = re.compile(r"^[-=\s]*$")
# The message follows on the next lines: MindSpore begins it with a ruled heading.
_EMPTY_MESSAGE = re.compile(r"(?:Error|Exception|Inner Error!):?\s*$")
# Addresses, long hexadecimal ids, and numbers with the dots, colons and hyphens of versions, times and dates.
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b|\d+(?:[.:-]\d+)*")
_REPEATED = re.compile(r"#(?:[\s,;\[\]()]*#)+")

_Key = tuple[tuple[str, ...], str, str | None]
"""Errors with equal keys (codes, normalized text, frame) count as the same."""


@dataclass
class FoundError:
    """One occurrence of an error in one log."""

    text: str
    time: float | None = None
    """Seconds since the epoch; None if the line has no time."""
    frame: str | None = None
    """The deepest frame of the traceback in the project's files, or else the deepest frame."""


@dataclass
class DistinctError:
    """One error, which any number of ranks may have."""

    text: str
    """Text of the first occurrence."""
    time: float
    log: Path
    """Log of the first occurrence."""
    frame: str | None
    explanation: Explanation | None
    cause: bool = False
    """Whether the launcher reported this error as the first cause."""
    count: int = 0
    owners: set[int | str] = field(default_factory=set)
    """The ranks that have the error; also "scheduler"."""


def normalized(text: str) -> str:
    """The text with everything that differs between ranks (numbers, addresses, times and lists of them) replaced by
    #."""
    return _REPEATED.sub("#", _VARIABLE.sub("#", text)).strip()


def suspect_lines(path: Path) -> Iterator[str]:
    """The lines of the blocks of a file that may contain an error, and of the blocks after them, in which its message
    may continue. Most of a log is skipped without being split into lines."""
    with open(path, "rb") as file:
        rest, before = b"", False
        while block := file.read(BLOCK):
            block = rest + block
            marked = any(mark in block for mark in _ERROR_MARKS) or _CODE_MARK.search(block) is not None
            end = block.rfind(b"\n") + 1
            if marked or before:
                yield from map(clean, block[:end].split(b"\n")[:-1])
            rest = bounded(block[end:])
            before = marked
        if rest:
            yield clean(rest)


def errors_in(lines: Iterable[str]) -> Iterator[FoundError]:
    """The errors of one log in their order."""
    parser = _Parser()
    for line in lines:
        yield from parser.feed(line)
    yield from parser.end()


class _Parser:
    """Reads a log line by line; its state is in a traceback, in a message of several lines, or in neither."""

    def __init__(self) -> None:
        self.traceback = False
        self.frame: str | None = None
        self.unfinished: FoundError | None = None
        """An error whose message is on the following lines."""
        self.lines_left = 0

    def feed(self, line: str) -> Iterator[FoundError]:
        if found := _GLOG.search(line):  # such lines may occur inside a traceback
            yield _logged(found)
        elif _LESSER.match(line):
            return
        elif self.unfinished:
            yield from self._continue(self.unfinished, line)
        elif _HEADER in line:
            self.traceback, self.frame = True, None
        elif self.traceback and (not line or line[0].isspace()):
            self.frame = _deeper(self.frame, frame) if (frame := _FRAME.match(line)) else self.frame
        elif self.traceback or _CANN.search(line) or _LONE.match(line):
            yield from self._found(FoundError(line, _time(line), self.frame if self.traceback else None))

    def _found(self, error: FoundError) -> Iterator[FoundError]:
        self.traceback = False
        if _EMPTY_MESSAGE.search(error.text):
            self.unfinished, self.lines_left = error, MESSAGE_LINES
        else:
            yield error

    def _continue(self, error: FoundError, line: str) -> Iterator[FoundError]:
        """Add a line to the message, which may begin with separator lines and a title such as
        `- Memory not enough:`."""
        self.lines_left -= 1
        text = "" if _RULE.match(line) else line.strip().removeprefix("- ")
        error.text = f"{error.text.rstrip()} {text}"
        if self.lines_left == 0 or (text and not text.endswith(":")):
            yield from self.end()

    def end(self) -> Iterator[FoundError]:
        """The error that is unfinished at the end of the log, if there is one."""
        if self.unfinished:
            yield self.unfinished
        elif self.traceback:
            yield FoundError("(a traceback that is cut off)", None, self.frame)
        self.unfinished, self.traceback = None, False


def _logged(match: re.Match[str]) -> FoundError:
    """The error in a line of MindSpore's or CANN's logger."""
    module, time, source, text = match.groups()
    file = re.sub(r":\d+.*", "", source or "").rsplit("/", 1)[-1]
    return FoundError(f"[{module} {file}] {text}" if file else f"[{module}] {text}", _time(time))


def _deeper(frame: str | None, match: re.Match[str]) -> str | None:
    """The deepest frame so far in the project's files, or else the deepest frame."""
    path, number, name = match.groups()
    own = _PROJECT.search(path)
    if not own and frame and frame.startswith(("pangu_ms/", "ascend_ops/", "run/")):
        return frame
    return f"{own[1] if own else path.rsplit('/', 1)[-1]}:{number}" + (f" in {name}" if name else "")


def _time(text: str) -> float | None:
    if not (found := _TIME.search(text)):
        return None
    try:
        return datetime.strptime(found[0].replace(" ", "-"), "%Y-%m-%d-%H:%M:%S").timestamp()
    except ValueError:
        return None


def logs_of(directory: JobDirectory) -> list[tuple[int | str, list[Path]]]:
    """(rank or "scheduler", its log files of the last launch, oldest first) for everything that has logs."""
    logs: list[tuple[int | str, list[Path]]] = []
    began = directory.began()
    for path in directory.logs.glob("*"):
        owner: int | str
        if path.name == SCHEDULER:
            owner = SCHEDULER
        elif re.fullmatch(r"rank_\d+", path.name):
            owner = int(path.name.removeprefix("rank_"))
        else:
            continue
        of_cann = written_since(sorted(path.glob("ascend/**/*.log")), began)
        logs.append((owner, [*of_cann, *rotated(path / "output.log", began)]))
    return sorted(logs, key=lambda pair: (isinstance(pair[0], str), pair[0]))


def distinct_errors(
    directory: JobDirectory, cause: dict[str, Any] | None, progress: Callable[[int, int], None]
) -> tuple[list[DistinctError], list[str]]:
    """Collect the errors of all logs.

    Args:
        cause: the event of the first failure; errors in the last lines of its rank come first.
        progress: called with (logs read, logs).

    Returns:
        errors in order of their first occurrence, with the cause first; and messages on files that could not be read.
    """
    errors: dict[_Key, DistinctError] = {}
    unread: list[str] = []
    logs, left_out = logs_of(directory), 0
    for number, (owner, paths) in enumerate(logs):
        progress(number, len(logs))
        for path in paths:
            try:
                written = path.stat().st_mtime
                for found in errors_in(suspect_lines(path)):
                    left_out += not _count(errors, owner, path, written, found)
            except OSError as error:
                unread.append(f"{path}: {error.strerror}")
    progress(len(logs), len(logs))
    if left_out:
        unread.append(f"{left_out} errors beyond the first {MAX_DISTINCT} distinct ones were not counted")
    _mark_cause(errors.values(), cause)
    return sorted(errors.values(), key=lambda error: (not error.cause, error.time)), unread


def _count(errors: dict[_Key, DistinctError], owner: int | str, path: Path, written: float, found: FoundError) -> bool:
    text = found.text.strip()[:MAX_TEXT]
    key = (codes_of(text), normalized(text), found.frame)
    if key not in errors and len(errors) >= MAX_DISTINCT:
        return False
    # An error without a time cannot be later than the last write to its file.
    time = written if found.time is None else found.time
    error = errors.setdefault(key, DistinctError(text, time, path, found.frame, explain(text)))
    if time < error.time:
        error.text, error.time, error.log = text, time, path
    error.count += 1
    error.owners.add(owner)
    return True


def _mark_cause(errors: Iterable[DistinctError], cause: dict[str, Any] | None) -> None:
    if cause is None:
        return
    lines = normalized(failure_lines(cause))
    for error in errors:
        # Without the module and file that _logged puts first, since the launcher's copy of the line has them in another
        # form. A text of three characters would be found in any line.
        shown = error.text.split("] ", 1)[-1] if error.text.startswith("[") else error.text
        error.cause = cause.get("rank") in error.owners and len(shown) > 3 and normalized(shown) in lines


def failure_lines(failure: dict[str, Any]) -> str:
    """The last lines of the log of a failure event's rank, on one line."""
    words = failure.get("words") or ""
    return " ".join((words if isinstance(words, str) else "\n".join(map(str, words))).split())


def failure_summary(failure: dict[str, Any]) -> str:
    """A failure event on one line: what happened, and the last line of the rank's log."""
    words = failure.get("words") or []
    last = f": {str(words[-1]).strip()}" if words and failure.get("kind") == "exit" else ""
    return f"{failure.get('summary', 'unknown')}{last}"
