"""uvicorn's connection with two limits of time that it lacks: for clients that do not send a request, and for those
that do not read the answer."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def connection_class(request_timeout: float, send_timeout: float) -> type[asyncio.Protocol]:
    """The class of connections for `uvicorn.Config(http=...)`.

    Args:
        request_timeout: seconds in which the headers of a request must arrive, from the begin of the connection or the
            end of the last answer. (Between requests uvicorn's timeout_keep_alive holds until the first byte.)
        send_timeout: seconds after which a connection ends whose client does not read what was sent.
    """

    class Connection(H11Protocol):
        _request_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop("_request_timer")
            self._stop("_write_timer")
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop("_request_timer")
            elif self._request_timer is None:
                self._wait_for_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop("_write_timer")
            self._write_timer = self.loop.call_later(send_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop("_write_timer")

        def _wait_for_request(self) -> None:
            self._request_timer = self.loop.call_later(request_timeout, self.transport.abort)

        def _stop(self, name: str) -> None:
            if timer := getattr(self, name):
                timer.cancel()
                setattr(self, name, None)

    return Connection
