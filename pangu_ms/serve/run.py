"""Runs the application with uvicorn until a signal, or until the engine's thread ends."""

import asyncio
import contextlib
import errno
import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from pangu_ms.core.console import tell
from pangu_ms.core.errors import GenerationError, UserError
from pangu_ms.serve.app import Settings, create_app
from pangu_ms.serve.connection import connection_class
from pangu_ms.serve.engine_thread import EngineThread
from pangu_ms.serve.errors import overloaded
from pangu_ms.serve.metrics import Metrics
from pangu_ms.serve.models import Models

log = logging.getLogger(__name__)
_ENGINE_FAILED = 1
_OTHER_FILES = 256
"""Open files of the process that are no connections, at most."""
_LOG_SECONDS = 60.0
"""Between two lines of one kind on connections."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        GenerationError: the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise GenerationError(f"--port {port}: must be 0 to 65535; 0 takes any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)  # two sockets with SO_REUSEADDR may be bound to one port, but not listen on it
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        of_port = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        advice = "name a free port (0: any)" if of_port else "name an address of this machine, such as 127.0.0.1 or ::1"
        raise GenerationError(f"--host {host} --port {port}: {reason}; {advice}") from None
    return bound


class OncePer(logging.Filter):
    """Lets a message pass once in some seconds, with the number of those that did not pass since: clients that speak no
    HTTP, or more than may be connected, would fill the disk."""

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds = seconds
        self._passed: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging."""
        if record.levelno != logging.WARNING or record.args:  # uvicorn's warnings of connections are constants
            return True
        text = str(record.msg)
        last, left_out = self._passed.get(text, (-math.inf, 0))
        now = time.monotonic()
        if now - last < self._seconds:
            self._passed[text] = last, left_out + 1
            return False
        self._passed[text] = now, 0
        if left_out:
            record.msg = f"{text} ({left_out} more in the last {now - last:.0f} s)"
        return True


class _Uvicorn(uvicorn.Server):
    """A server that, when it is told to end, first lets running requests end while it refuses new ones."""

    def __init__(self, config: uvicorn.Config, thread: EngineThread, drain_timeout: float):
        super().__init__(config)
        self._thread, self._drain_timeout = thread, drain_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drained: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of SIGTERM and SIGINT. uvicorn's own would send the signal again at the end, which kills the process."""
        if self._loop is None:  # nothing runs yet
            self.should_exit = True
        elif self._thread.state in ("draining", "stopped"):
            self.force_exit = self.should_exit = True  # the second one
        else:
            self._loop.call_soon_threadsafe(self._begin_to_drain, signal.Signals(sig).name)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def _begin_to_drain(self, name: str) -> None:
        tell(f"pangu serve: {name}: running requests end; new ones are refused")
        self._thread.drain()
        self._drained = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        end = time.monotonic() + self._drain_timeout
        while self._thread.answers and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for answers in list(self._thread.answers):
            answers.fail(overloaded("The server ends.", 5, 503, "shutting_down"))
        self.should_exit = True


def make_server(
    models: Models, settings: Settings, bound: socket.socket, on_ready: Callable[[str], None]
) -> tuple[_Uvicorn, EngineThread]:
    """A server that is not started, and the engine's thread that it will start; see `run`."""
    metrics, limits = Metrics(), settings.limits

    def on_change() -> None:
        if thread.state == "ready":
            on_ready(_url(bound))
        if thread.state == "stopped" and thread.failure:
            server.should_exit = True

    thread = EngineThread(limits, metrics, on_change)
    config = uvicorn.Config(
        create_app(models, thread, metrics, settings),
        http=connection_class(limits.body_timeout, limits.send_timeout),
        ws="none",
        loop="asyncio",
        log_config=None,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=max(1, int(limits.send_timeout)),
        root_path=settings.root_path,
    )
    connections = logging.getLogger("uvicorn.error")
    if not any(isinstance(one, OncePer) for one in connections.filters):
        connections.addFilter(OncePer(_LOG_SECONDS))
    server = _Uvicorn(config, thread, limits.drain_timeout)
    return server, thread


def run(models: Models, settings: Settings, bound: socket.socket, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Args:
        models: they are loaded in the engine's thread while /health answers already.
        settings: of the application.
        bound: where to listen.
        on_ready: called with the URL when requests are taken.

    Raises:
        UserError: a model cannot be loaded.
    """
    allow_files(settings.limits.connections + _OTHER_FILES)
    server, thread = make_server(models, settings, bound, on_ready)
    server.run(sockets=[bound])
    if thread.alive:  # a model is being loaded, or a second signal came: MindSpore cannot be interrupted
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    if isinstance(thread.failure, UserError):
        raise thread.failure
    if thread.failure:
        log.error("the engine's thread ended", exc_info=thread.failure)
        tell(f"pangu serve: the engine has stopped: {type(thread.failure).__name__}; see above; start it again")
        return _ENGINE_FAILED
    return 0


def allow_files(number: int) -> None:
    """Let this process have so many open files, as far as it may: services and shells begin with 1,024, and without a
    free one nobody could connect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        most = number if hard == resource.RLIM_INFINITY else min(number, hard)
        with contextlib.suppress(ValueError, OSError):  # more than the kernel has
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
