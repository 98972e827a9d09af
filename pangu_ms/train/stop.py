"""Stop signals: the running step ends, a checkpoint is committed, the process exits with EXIT_STOPPED. No mindspore import."""

import signal
import threading
from types import FrameType

EXIT_STOPPED = 75  # EX_TEMPFAIL: a scheduler should start the job again


class StopSignal:
    """Within this context SIGTERM and SIGINT are noted, not obeyed; a second SIGINT is obeyed."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "StopSignal":
        heard = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()  # Python allows no others
        self.previous = {s: signal.signal(s, self._note) for s in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
