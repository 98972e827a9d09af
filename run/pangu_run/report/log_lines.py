"""Reads logs that may be large, rotated, truncated or not text, and never reads a whole file into memory."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pangu_ms.core.console import printable

MAX_LINE = 4096
"""Maximum number of bytes that are shown of a line."""
BLOCK = 1 << 16
"""Bytes of one read."""
POLL_S = 0.2
CUT = " ...[cut]"
_CONTROL = re.compile(r"(?:\x1b\[|\x9b)[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def rotated(log: Path, since: float = 0.0) -> list[Path]:
    """The existing files of a log that were modified after a time, oldest first: log.2, log.1, log."""
    numbers = sorted(
        (int(path.suffix[1:]) for path in log.parent.glob(f"{log.name}.*") if path.suffix[1:].isdigit()), reverse=True
    )
    files = [log.with_name(f"{log.name}.{number}") for number in numbers] + ([log] if log.is_file() else [])
    return written_since(files, since) if since else files


def written_since(files: Iterable[Path], since: float) -> list[Path]:
    """The files that were modified after a time."""
    found = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # renamed since its name was looked up
            if path.stat().st_mtime >= since:
                found.append(path)
    return found


def clean(line: bytes) -> str:
    """A line as text that is safe for a terminal: without colours and control sequences. Of a progress bar only its
    last state is kept."""
    # A progress bar draws its states over each other, with \r between them.
    shown = next((part for part in reversed(line.split(b"\r")) if part.strip()), b"")
    return printable(_CONTROL.sub("", shown[:MAX_LINE].decode(errors="replace"))).rstrip() + (
        CUT if len(shown) > MAX_LINE else ""
    )


def bounded(unfinished: bytes) -> bytes:
    """The part to keep of a line whose end has not been read yet: its beginning, or the end of a progress bar."""
    return unfinished[-2 * MAX_LINE :] if b"\r" in unfinished else unfinished[: 2 * MAX_LINE]


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines from the current position to the end."""
    rest = b""
    while block := file.read(BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        rest = bounded(rest)
        yield from lines
    if rest:
        yield rest


def tail(log: Path, count: int, since: float = 0.0) -> list[str]:
    """The last `count` lines of a log, read from as many of its rotated files as needed, if they were modified after a
    time."""
    lines: list[str] = []
    for path in reversed(rotated(log, since)):
        if len(lines) >= count:
            break
        with open(path, "rb") as file:
            file.seek(_start_of_last(file, count - len(lines)))
            lines = [*map(clean, lines_of(file)), *lines]
    return lines


def _start_of_last(file: BinaryIO, count: int) -> int:
    """Offset at which the last `count` lines begin."""
    size = position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - BLOCK)
        file.seek(start)
        block = file.read(position - start)
        found = len(block)
        while (found := block.rfind(b"\n", 0, found)) >= 0:
            if start + found == size - 1:
                continue  # the newline that ends the last line
            count -= 1
            if count == 0:
                return start + found + 1
        position = start
    return 0


def follow(log: Path, ended: Callable[[], bool], count: int) -> Iterator[str]:
    """The last `count` lines of a log's current file, then all new lines, also after rotations, until the job has
    ended.

    Args:
        ended: whether the job has ended; called before each read, so that the last lines are read, too.
    """
    file, rest = _open(log), b""
    if file:
        file.seek(_start_of_last(file, count) if count else file.seek(0, os.SEEK_END))
    while True:
        over = ended()
        file = file or _open(log)
        while file:
            if block := file.read(BLOCK):
                *lines, rest = (rest + block).split(b"\n")
                rest = bounded(rest)
                yield from map(clean, lines)
            elif following := _following(file, log):
                file = following
            else:
                break
        if over:
            break
        time.sleep(POLL_S)
    if rest:
        yield clean(rest)


def _following(file: BinaryIO, log: Path) -> BinaryIO | None:
    """The file to continue with at the end of a file: the same file from its beginning if it was truncated, the next
    newer file if it was rotated; None if there is nothing new."""
    files = rotated(log)
    own = os.fstat(file.fileno())  # after the names were read, since nothing is appended to a renamed file
    if own.st_size != file.tell():
        file.seek(0 if own.st_size < file.tell() else file.tell())
        return file
    inodes = [path.stat().st_ino for path in files if path.exists()]
    # A file that is not among them has been deleted by the rotation.
    newer = files[inodes.index(own.st_ino) + 1 :] if own.st_ino in inodes else files
    following = _open(newer[0]) if newer else None
    if following:
        file.close()
    return following


def _open(path: Path) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None
