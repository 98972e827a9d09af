"""Progress bars: a live line on a terminal; in a log file, a new line every LOG_INTERVAL_S seconds."""

import os
import sys
from typing import Any, TextIO

from pangu_ms.core.console import raw

LOG_INTERVAL_S = 20.0
USUAL_COLUMNS = 80
_LOG_LINE = "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(enabled: bool = True, **options: Any) -> Any:
    """A tqdm bar on stderr; `options` are tqdm's arguments."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        width = {"dynamic_ncols": True} if _columns(sys.stderr) else {"ncols": USUAL_COLUMNS}
        # tqdm guesses from the speed so far how many iterations it need not draw. When they become slower, maxinterval
        # bounds its silence; the default is 10 s.
        return tqdm(file=raw(sys.stderr), disable=not enabled, mininterval=0.2, maxinterval=0.2, **width, **options)
    times = dict.fromkeys(("mininterval", "maxinterval", "delay"), LOG_INTERVAL_S)
    return tqdm(file=_Lines(sys.stderr), disable=not enabled, bar_format=_LOG_LINE, **times, **options)


def _columns(terminal: TextIO) -> int:
    """Width of a terminal; 0 where it does not know its size, as over some serial lines and in some containers."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns
    except OSError:
        return 0


class _Lines:
    """A stream that writes each state of a tqdm bar as a line of its own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, drawn: str) -> None:
        if text := drawn.strip():
            self._stream.write(text + "\n")

    def flush(self) -> None:
        self._stream.flush()
