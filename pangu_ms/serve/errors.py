"""Answers that refuse a request, in the form of OpenAI's API."""

from collections.abc import Mapping


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: of the HTTP answer.
        message: for the client: what was found, and what to do. It names no path.
        kind: OpenAI's type of the error.
        param: the field that is wrong, or None.
        code: what a program may test.
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
        self.param, self.code, self.headers = param, code, dict(headers or {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


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
