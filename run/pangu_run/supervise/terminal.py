"""The launcher's terminal: one rank has it, byte for byte, so that its progress bar lives; of the others only errors are shown, with their rank."""

import os
import re
import sys

from pangu_run.supervise.aside import Aside

_ERROR = re.compile(rb"(?:^|\s)(?:\w+Error|Traceback|\[(?:ERROR|CRITICAL)\]|FATAL|core dumped)\b")
_CLEAR_LINE = b"\r\x1b[K"
MAX_LINE = 400
LAST_WORDS_S = 5.0


class Terminal:
    """Where output of this host's ranks goes beside their logs."""

    def __init__(self, stream_rank: int | None):
        self.stream_rank = stream_rank
        self.is_tty = sys.stderr.isatty()
        self._aside = Aside("terminal")
        self._rest: dict[int, bytes] = {}

    def show(self, rank: int, content: bytes, stdout: bool) -> None:
        """Pass the streamed rank's bytes on; of another rank show the lines that tell of an error."""
        if rank == self.stream_rank:
            self._write(1 if stdout else 2, content)
            return
        *lines, self._rest[rank] = (self._rest.get(rank, b"") + content).split(b"\n")
        self._rest[rank] = self._rest[rank][-MAX_LINE:]
        for line in lines:
            if _ERROR.search(line):
                self._say(f"[rank {rank}] ".encode() + line[:MAX_LINE])

    def tell(self, text: str) -> None:
        """A line of the launcher's own."""
        self._say(text.encode())

    def _say(self, line: bytes) -> None:
        self._write(2, (_CLEAR_LINE if self.is_tty else b"") + line + b"\n")  # a bar draws itself anew

    def _write(self, descriptor: int, content: bytes) -> None:
        self._aside.do(lambda: _write(descriptor, content), len(content))  # of what nobody reads for long the log has the rest

    def close(self) -> None:
        """Give the last words LAST_WORDS_S to be written."""
        self._aside.close(LAST_WORDS_S)


def _write(descriptor: int, content: bytes) -> None:
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    except OSError:
        pass  # nobody reads: a closed terminal (nohup) does not end the job, and the log has it
