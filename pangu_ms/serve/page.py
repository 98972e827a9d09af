"""The chat page at `/`: static files, which ask the API as any other client does."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, Response

_DIRECTORY = Path(__file__).with_name("page")
_FILES = {"/": "index.html", "/page/chat.css": "chat.css", "/page/chat.js": "chat.js", "/page/icon.svg": "icon.svg"}
PATHS = tuple(_FILES)
"""Paths of the page. Nobody needs a key for them: they are the same for everybody."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    # The page cannot make HTML of texts, even if a change of it tried to.
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI) -> None:
    """Add the page's routes. They are no part of the API, nor of its document."""
    for path, name in _FILES.items():
        app.add_api_route(path, _sender(_DIRECTORY / name), methods=["GET", "HEAD"], include_in_schema=False)


def _sender(path: Path) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def send() -> Response:
        return FileResponse(path, headers=_HEADERS)

    return send
