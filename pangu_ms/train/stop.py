"""Stop signals: the running step ends, a checkpoint is committed, the process exits with EXIT_STOPPED. No mindspore import."""

import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last one is Slurm's --signal=USR1, before a job's time is over


class StopSignal:
    """Within this context STOP_SIGNALS are noted, not obeyed; a second SIGINT is obeyed."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "StopSignal":
        heard = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()  # Python allows no others
        self.previous = {s: signal.signal(s, self._note) for s in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
