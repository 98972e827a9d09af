"""Signals that ask a process to stop: when they are handled, and when they are ignored.

A signal that comes after the last save must not change the exit code any more. So from then until the interpreter has
ended these signals are ignored; with the default handlers of the system they would kill the process.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pangu_ms.core.exit_codes import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""SIGUSR1 comes from Slurm's --signal=USR1 before a job's time is over, SIGHUP from a terminal that was closed."""

_is_command = False
"""Whether this process runs one command and then ends; see `command`."""


def not_ignored() -> list[signal.Signals]:
    """STOP_SIGNALS without those that this process is to ignore, as set by the process that started it: SIGHUP under
    nohup, SIGINT in a script's background job."""
    if threading.current_thread() is not threading.main_thread():
        return []  # Python allows handlers in the main thread only
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def ignore() -> None:
    """Ignore the stop signals from here on."""
    for number in not_ignored():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def handled(handler: Callable[[str], None]) -> Iterator[None]:
    """Within this context call `handler` with the name of each stop signal; it must not block.

    Afterwards the earlier handlers are restored; but if a signal has come to a command (see `command`), its process
    ignores further ones, since it is about to end.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler(signal.Signals(number).name)

    before = {number: signal.signal(number, record) for number in not_ignored()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            if signal.getsignal(number) is record:  # otherwise `ignore` was called meanwhile
                signal.signal(number, signal.SIG_IGN if _is_command and received else earlier)


@contextlib.contextmanager
def command(stops: bool) -> Iterator[None]:
    """This process runs one command, and ends after this context.

    Args:
        stops: whether the command can stop cleanly, by `handled`. Until it enters `handled`, a signal ends the process
            with EXIT_STOPPED, and Ctrl-C raises KeyboardInterrupt as usual.
    """
    global _is_command
    _is_command = True
    if stops:
        for number in not_ignored():
            signal.signal(number, _exit_stopped)
    try:
        yield
    finally:
        # The exit code is decided. When Python ends it replaces its own handlers by the system's, but it leaves SIG_IGN
        # in place.
        ignore()


def _exit_stopped(number: int, frame: FrameType | None) -> None:
    # A further signal must not disturb the end of the process.
    ignore()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(EXIT_STOPPED)
