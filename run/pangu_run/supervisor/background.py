"""Work that may block for long, such as a disk that stalls or a terminal that nobody reads: done in order by a thread
of its own.

The launcher's event loop must never wait for either: other hosts would take it for dead, and ranks would wait for their
pipes.
"""

import asyncio
import contextlib
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any

LIMIT_BYTES = 64 << 20


class Aside:
    """One thread and its queue."""

    def __init__(self, name: str):
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], int] | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], Any], size: int = 0) -> bool:
        """Do it in turn; False, and not at all, where LIMIT_BYTES (`size` of each) wait already."""
        if size and self._waiting + size > LIMIT_BYTES:
            return False
        self._waiting += size
        self._queue.put((work, size))
        return True

    def ask(self, work: Callable[[], Any], use: Callable[[Any], None]) -> None:
        """Do it in turn, and call `use` with its result in the running event loop."""
        loop = asyncio.get_running_loop()

        def answer() -> None:
            result = work()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(use, result)

        self.do(answer)

    async def result(self, work: Callable[[], Any]) -> Any:
        """Do it in turn, and wait for its result while the event loop goes on."""
        done = asyncio.get_running_loop().create_future()
        self.ask(work, lambda result: None if done.done() else done.set_result(result))
        return await done

    def close(self, seconds: float) -> None:
        """Wait until all is done, but not for ever."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, size = item
            try:
                work()
            except Exception:
                traceback.print_exc()  # an error of ours: shown, but the launcher must not go deaf by it
            self._waiting -= size
