"""Logs of ranks: writes them with rotation, and reads their last lines."""

import os
import re
from pathlib import Path

from pangu_run.report.log_lines import clean, lines_of

MAX_BYTES, KEEP = 64 << 20, 10
"""Size in bytes at which a log is rotated, and number of files that are kept of each log: 640 MiB per rank at most."""
SHOWN_LINES, TAIL_BYTES = 12, 64 << 10
"""Number of last lines that are shown of a log, and number of bytes that are read from its end for them."""
CRASH = re.compile(r"Fatal Python error: (Segmentation fault|Aborted|Bus error|Illegal instruction|Floating)")


class RotatingLog:
    """Writes bytes to PATH, a new file for each process. When the file has MAX_BYTES, it becomes PATH.1, PATH.1 becomes
    PATH.2, and so on; the oldest of KEEP files is deleted."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, keep: int = KEEP):
        self.path, self.max_bytes, self.keep = path, max_bytes, keep
        # Unbuffered: what was written is in the file even if the launcher is killed.
        self._file = open(path, "ab", buffering=0)
        if self._file.tell():
            self._rotate()
        self.error: OSError | None = None
        """The error because of which output was dropped, such as a full disk: a rank does not fail because of its
        log."""

    def write(self, content: bytes) -> None:
        """Append bytes; a full disk does not raise an exception."""
        try:
            if self._file.tell() + len(content) > self.max_bytes and self._file.tell():
                self._rotate()
            while content:  # an unbuffered write may write only a part
                content = content[self._file.write(content) :]
        except OSError as error:
            self.error = self.error or error

    def _rotate(self) -> None:
        for number in range(self.keep - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            if newer.exists():
                os.replace(newer, older)
        full, self._file = self._file, open(self.path, "ab", buffering=0)
        full.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def last_lines(path: Path, count: int = SHOWN_LINES) -> list[str]:
    """The last non-empty lines of one file, cleaned by `log_lines.clean`; "(nothing)" if there are none.

    If native code crashed, the lines start with the first line about the crash, since the stack that follows begins
    with the innermost call.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = [line for line in map(clean, lines_of(file)) if line]
    except FileNotFoundError:
        lines = []
    crash = next((index for index, line in enumerate(lines) if CRASH.match(line)), -count)
    return lines[crash:][:count] or ["(nothing)"]
