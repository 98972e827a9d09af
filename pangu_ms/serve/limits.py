"""What is checked before a route sees a request: API keys, and the size and time of bodies. Plain ASGI."""

import hashlib
import hmac
from collections.abc import Collection, Iterable

import anyio
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pangu_ms.serve.errors import ApiError
from pangu_ms.serve.settings import Limits

WITHOUT_KEY = ("/health", "/ready")
"""Paths that probes ask without a key."""


class RequireKey:
    """Answers 401 to requests without one of the keys."""

    def __init__(self, app: ASGIApp, keys: Iterable[str], without: Collection[str] = WITHOUT_KEY):
        self.app, self._without = app, without
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or _path(scope) in self._without or self._known(scope):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "Incorrect or missing API key. Send it in the header `Authorization: Bearer KEY`.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response(scope)(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        # All digests are compared, each in constant time.
        found = [hmac.compare_digest(digest, one) for one in self._digests]
        return any(found) and kind.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", ""))


class LimitBodies:
    """Ends requests whose bodies are too large or take too long."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app = app
        self._most, self._seconds = int(limits.body_mib * 2**20), limits.body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size, whole = 0, False
        deadline = anyio.current_time() + self._seconds

        async def limited() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            with anyio.move_on_at(deadline) as late:
                message = await receive()
            if late.cancelled_caught:
                raise HTTPException(408, f"The body did not arrive within {self._seconds:g} s.", _CLOSE)
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self._most:
                if not whole:
                    await self._discard(receive, deadline)
                raise self._too_large()
            return message

        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared[:20]) > self._most:
            error = ApiError(413, self._too_large().detail, code="request_too_large", headers=_CLOSE)
            if not any(name == b"expect" for name, _ in scope["headers"]):
                await self._discard(receive, deadline)
            await error.response(scope)(scope, receive, send)
            return
        await self.app(scope, limited, send)

    async def _discard(self, receive: Receive, deadline: float) -> None:
        """Read the rest of a body, up to a limit. A connection that is closed with unread data is reset, and many
        clients then never read the answer."""
        rest = _DISCARDED * self._most
        with anyio.move_on_at(deadline):
            while rest > 0:
                message = await receive()
                rest -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The body is larger than {self._most} bytes.", _CLOSE)


_DISCARDED = 16  # times the largest body
_CLOSE = {"Connection": "close"}
