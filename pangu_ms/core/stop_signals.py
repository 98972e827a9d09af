"""Signals that ask a process to stop: from when on they are heard, and when no more.

A command that was told to stop is stopping: whatever else comes may end it at once (Ctrl-C twice, while it says so),
but never changes the exit code of what is saved already. So between the last save and the interpreter's end these
signals are ignored, not given back to the system, which would kill.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pangu_ms.core.exit_codes import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""SIGUSR1 is Slurm's --signal=USR1, before a job's time is over; SIGHUP a terminal that went away."""

_is_command = False


def heard() -> list[signal.Signals]:
    """STOP_SIGNALS but those that whoever started this process has it ignore (SIGHUP under nohup, SIGINT behind a
    script's &)."""
    if threading.current_thread() is not threading.main_thread():
        return []  # Python allows no handlers there
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def ignore() -> None:
    """From here on they mean nothing."""
    for number in heard():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def handled(use: Callable[[str], None]) -> Iterator[None]:
    """Within this context `use` is called with the name of each signal that comes; it must not wait.

    Afterwards the handlers from before are back, but for a command that was told to stop: its process ignores what else
    comes.
    """
    came = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        use(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in heard()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # what is ignored by now stays so
                signal.signal(number, signal.SIG_IGN if _is_command and came else handler)


@contextlib.contextmanager
def command(stops: bool) -> Iterator[None]:
    """This process is one command, and ends with this context.

    Args:
        stops: the command knows how to stop, by `handled`; until it has begun, a signal ends it in order with
            EXIT_STOPPED; Ctrl-C as ever.
    """
    global _is_command
    _is_command = True
    if stops:
        for number in heard():
            signal.signal(number, _leave)
    try:
        yield
    finally:
        # the exit code stands; Python gives handlers of its own, but not this, back to the system before it
        # ends
        ignore()


def _leave(number: int, frame: FrameType | None) -> None:
    ignore()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(EXIT_STOPPED)
