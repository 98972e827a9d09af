"""Work that may block for long, such as a write to a disk that stalls or to a terminal that nobody reads.

The launcher's event loop must never wait for such work: the other hosts would consider this one lost, and ranks would
block on full pipes. So a thread does the work, in the order in which it was queued.
"""

import asyncio
import contextlib
import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any

MAX_QUEUED_BYTES = 64 << 20


class BackgroundWorker:
    """A thread with a queue of calls."""

    def __init__(self, name: str):
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], int] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], size: int = 0) -> bool:
        """Queue a call.

        Args:
            work: the call.
            size: bytes that the call keeps in memory while it is queued; calls without a size are never refused.

        Returns:
            False if this would exceed MAX_QUEUED_BYTES; then the call is not made.
        """
        if size and self._queued_bytes + size > MAX_QUEUED_BYTES:
            return False
        self._queued_bytes += size
        self._queue.put((work, size))
        return True

    def submit_with_callback(self, work: Callable[[], Any], callback: Callable[[Any], None]) -> None:
        """Queue a call; `callback` is called with its result in the event loop that runs now."""
        loop = asyncio.get_running_loop()

        def call() -> None:
            result = work()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(callback, result)

        self.submit(call)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Queue a call and return its result; the event loop continues meanwhile."""
        done = asyncio.get_running_loop().create_future()
        self.submit_with_callback(work, lambda result: None if done.done() else done.set_result(result))
        return await done

    def close(self, seconds: float) -> None:
        """Wait until all queued work is done, for at most `seconds`."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, size = item
            try:
                work()
            except Exception:
                traceback.print_exc()  # a bug of ours: show it, and go on with the rest of the queue
            self._queued_bytes -= size
