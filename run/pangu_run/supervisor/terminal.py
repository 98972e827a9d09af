"""The launcher's terminal: one rank has it, with its progress bar; of the others only errors are shown, with their
rank.

What ranks and peers say cannot steer a terminal; a file or a pipe gets the one rank's output byte for byte.
"""

import codecs
import os
import re
import sys

from pangu_ms.core.console import printable
from pangu_run.report.log_lines import clean
from pangu_run.supervisor.background import Aside

_ERROR = re.compile(rb"(?:^|\s)(?:\w+Error|Traceback|\[(?:ERROR|CRITICAL)\]|FATAL|core dumped)\b")
_CLEAR_LINE = b"\r\x1b[K"
_OF_A_BAR = re.compile(r"(\x1b\[\d*[AK])")
"""Up, and clear to the line's end."""
_BEGUN = re.compile(r"\x1b(\[\d{,3})?\Z")
MAX_LINE = 400
LAST_WORDS_S = 5.0


class Terminal:
    """Where output of this host's ranks goes beside their logs."""

    def __init__(self, stream_rank: int | None):
        self.stream_rank = stream_rank
        self.is_tty = sys.stderr.isatty()
        self._aside = Aside("terminal")
        self._rest: dict[int, bytes] = {}
        self._streams = [_Harmless(), _Harmless()]

    def show(self, rank: int, content: bytes, stdout: bool) -> None:
        """Pass the streamed rank's bytes on; of another rank show the lines that tell of an error."""
        if rank == self.stream_rank:
            self._write(1 if stdout else 2, self._streams[stdout].take(content) if self.is_tty else content)
            return
        *lines, self._rest[rank] = (self._rest.get(rank, b"") + content).split(b"\n")
        self._rest[rank] = self._rest[rank][-MAX_LINE:]
        for line in lines:
            if _ERROR.search(line):
                self._say(f"[rank {rank}] {clean(line[:MAX_LINE])}")

    def tell(self, text: str) -> None:
        """A line of the launcher's own."""
        self._say(printable(text))

    def _say(self, line: str) -> None:
        self._write(2, (_CLEAR_LINE if self.is_tty else b"") + line.encode() + b"\n")  # a bar draws itself anew

    def _write(self, descriptor: int, content: bytes) -> None:
        self._aside.do(
            lambda: _write(descriptor, content), len(content)
        )  # of what nobody reads for long the log has the rest

    def close(self) -> None:
        """Give the last words LAST_WORDS_S to be written."""
        self._aside.close(LAST_WORDS_S)


class _Harmless:
    """A stream of bytes to a terminal: what a progress bar needs is kept, nothing else that steers."""

    def __init__(self) -> None:
        self._decoder, self._begun = codecs.getincrementaldecoder("utf-8")("replace"), ""

    def take(self, content: bytes) -> bytes:
        """What is to be shown of the next bytes; a sequence that has only begun waits for its end."""
        text = self._begun + self._decoder.decode(content)
        begun = _BEGUN.search(text)
        self._begun = begun[0] if begun else ""
        parts = _OF_A_BAR.split(text[: begun.start()] if begun else text)
        return "".join(part if place % 2 else printable(part, "\r\n\t") for place, part in enumerate(parts)).encode()


def _write(descriptor: int, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError:
        pass  # nobody reads: a closed terminal (nohup) does not end the job, and the log has it
