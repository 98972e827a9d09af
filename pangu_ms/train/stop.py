"""Stop signals: after one the running step is finished, a checkpoint is committed, and the process exits with
EXIT_STOPPED. No mindspore import."""

import contextlib

from pangu_ms.core import stop_signals


class StopSignal:
    """Within this context STOP_SIGNALS are only recorded; a second SIGINT raises KeyboardInterrupt.

    After a command has left the context with its state saved, further signals are ignored: see `stop_signals.handled`.
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
