"""Stop signals: the running step ends, a checkpoint is committed, the process exits with EXIT_STOPPED. No mindspore
import."""

import contextlib

from pangu_ms.core import stop_signals


class StopSignal:
    """Within this context STOP_SIGNALS are noted, not obeyed; a second SIGINT is obeyed.

    Once a command has left it, with its state saved, no signal counts any more: see `stop_signals.handled`.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupts, self._leaving = 0, False

    def __enter__(self) -> "StopSignal":
        self._context = contextlib.ExitStack()
        self._context.enter_context(stop_signals.handled(self._note))
        return self

    def __exit__(self, *exception: object) -> None:
        self._leaving = True
        self._context.close()

    def _note(self, name: str) -> None:
        self.received = self.received or name
        self._interrupts += name == "SIGINT"
        if self._interrupts > 1 and not self._leaving:
            raise KeyboardInterrupt
