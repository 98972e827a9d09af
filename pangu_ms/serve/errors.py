"""Answers that refuse a request, in the form of OpenAI's API."""

from collections.abc import Mapping

from starlette.responses import JSONResponse
from starlette.types import Scope

REFUSED = "pangu.refused"
"""Key of a scope: the code of the error with which the request is answered."""


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: of the HTTP answer.
        message: for the client: what was found, and what to do. It names no path.
        kind: OpenAI's type of the error.
        param: the field that is wrong, or None.
        code: what a program may test; of a wrong request `invalid_value` unless given.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.headers = param, dict(headers or {})
        self.code = "invalid_value" if code is None and status == 400 else code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the answer. What it repeats of a request may hold lone surrogates, which UTF-8 does not have."""
        fields = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": {name: text and _encodable(text) for name, text in fields.items()}}

    def response(self, scope: Scope) -> JSONResponse:
        """The answer to the request of `scope`, in which its code is noted."""
        scope[REFUSED] = self.code or self.kind
        return JSONResponse(self.body(), self.status, self.headers)


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def overloaded(message: str, retry_after: int, status: int = 429, code: str = "rate_limit_exceeded") -> ApiError:
    """An answer to a request that may succeed later.

    Args:
        message: why it is refused.
        retry_after: seconds.
        status: 429 if there are too many requests, 503 if the server does not answer any now.
        code: see ApiError.
    """
    kind = "rate_limit_error" if status == 429 else "server_error"
    return ApiError(status, message, kind, code=code, headers={"Retry-After": str(retry_after)})


def internal_error(message: str = "The server had an error while it answered your request.") -> ApiError:
    """An answer to a request that is not at fault."""
    return ApiError(500, message, "server_error", code="internal_error")
