"""The launcher's terminal. It shows the output of one rank, with its progress bar, and the error lines of all other
ranks, with the number of the rank.

Control sequences in the output of ranks and in messages of other hosts are removed, except those that a progress bar
needs. If stdout is a file or a pipe, it gets the output of the one rank byte for byte.
"""

import codecs
import os
import re
import sys

from pangu_ms.core.console import printable
from pangu_run.report.log_lines import clean
from pangu_run.supervisor.background import BackgroundWorker

# What is shown of the ranks whose output is not streamed.
_ERROR_LINE = re.compile(rb"(?:^|\s)(?:\w+Error|Traceback|\[(?:ERROR|CRITICAL)\]|FATAL|core dumped)\b")
_CLEAR_LINE = b"\r\x1b[K"
_BAR_SEQUENCE = re.compile(r"(\x1b\[\d*[AK])")
"""Control sequences of a progress bar: move the cursor up, and clear to the end of the line."""
_UNFINISHED_SEQUENCE = re.compile(r"\x1b(\[\d{,3})?\Z")
MAX_LINE = 400
"""Number of bytes that are shown of an error line."""
FLUSH_S = 5.0
"""Seconds that `close` waits for a terminal that nobody reads."""


class Terminal:
    """Shows the output of this host's ranks, which is also in their logs."""

    def __init__(self, stream_rank: int | None):
        self.stream_rank = stream_rank
        self.is_tty = sys.stderr.isatty()
        self._worker = BackgroundWorker("terminal")
        self._unfinished: dict[int, bytes] = {}
        """For each rank, the unfinished last line of its output."""
        self._filters = {True: _ControlFilter(), False: _ControlFilter()}
        """Filters of stdout (True) and stderr (False)."""

    def write_output(self, rank: int, content: bytes, stdout: bool) -> None:
        """Show the output of the streamed rank; of another rank, show only lines that report errors."""
        if rank == self.stream_rank:
            self._write(1 if stdout else 2, self._filters[stdout].filter(content) if self.is_tty else content)
            return
        *lines, self._unfinished[rank] = (self._unfinished.get(rank, b"") + content).split(b"\n")
        self._unfinished[rank] = self._unfinished[rank][-MAX_LINE:]
        for line in lines:
            if _ERROR_LINE.search(line):
                self._write_line(f"[rank {rank}] {clean(line[:MAX_LINE])}")

    def print_line(self, text: str) -> None:
        """Show a line of the launcher itself."""
        self._write_line(printable(text))

    def _write_line(self, line: str) -> None:
        # On a terminal the line replaces the progress bar of the rank, which is then drawn again below it.
        self._write(2, (_CLEAR_LINE if self.is_tty else b"") + line.encode() + b"\n")

    def _write(self, descriptor: int, content: bytes) -> None:
        # If nobody reads the terminal, the queue fills up and output is dropped; it is still in the rank's log.
        self._worker.submit(lambda: _write(descriptor, content), len(content))

    def close(self) -> None:
        """Wait up to FLUSH_S until everything is written."""
        self._worker.close(FLUSH_S)


class _ControlFilter:
    """Removes control sequences from a stream of bytes, except those of a progress bar."""

    def __init__(self) -> None:
        self._decoder, self._unfinished = codecs.getincrementaldecoder("utf-8")("replace"), ""

    def filter(self, content: bytes) -> bytes:
        """The part of the next bytes that is shown; an incomplete sequence is kept until the bytes after it arrive."""
        text = self._unfinished + self._decoder.decode(content)
        unfinished = _UNFINISHED_SEQUENCE.search(text)
        self._unfinished = unfinished[0] if unfinished else ""
        parts = _BAR_SEQUENCE.split(text[: unfinished.start()] if unfinished else text)
        parts[::2] = [printable(part, "\r\n\t") for part in parts[::2]]  # the others are sequences of a progress bar
        return "".join(parts).encode()


def _write(descriptor: int, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError:
        pass  # a closed terminal (nohup) does not end the job, and the log has the output
