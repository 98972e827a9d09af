"""Answers the turns of a chat by a server with OpenAI's API. The standard library alone, so that it needs no extra."""

import http.client
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pangu_ms import __version__
from pangu_ms.core.errors import GenerationError
from pangu_ms.serve.conversation import Answer, Message, OnText

_CONNECT_SECONDS = 20.0
_POLL_SECONDS = 0.1  # between two looks at whether the user stops the answer
_MOST_BYTES = 1 << 20  # of a line, or of the answer to a mistake


class _Refused(GenerationError):
    """The server refuses a request.

    Attributes:
        code: OpenAI's code of the error.
    """

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


@dataclass
class ServerBackend:
    """See Backend.

    Attributes:
        url: of the server, with or without /v1.
        name: of the model there; "": the only one that the server has.
        options: further fields of each request, such as temperature.
        api_key: sent to the server; "" for none.
    """

    url: str
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    api_key: str = ""

    def __post_init__(self) -> None:
        """Ask the server for its models.

        Raises:
            GenerationError: there is no such server, or it has no such model.
        """
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise self._wrong(str(error)) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise self._wrong("is no address")
        self._address, self._secure = (parts.hostname, port), parts.scheme == "https"
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        models = self._models()
        if not self.name and len(models) == 1:
            (self.name,) = models
        if self.name not in models:
            found = f"--model {self.name}: the server has no such model" if self.name else "--model: missing"
            raise GenerationError(f"{found}; name one of {', '.join(models) or 'its models, of which it lists none'}")
        self.context = models[self.name]

    def _wrong(self, what: str) -> GenerationError:
        return GenerationError(f"--url {self.url}: {what}; write it as http://HOST:PORT")

    def _models(self) -> dict[str, int]:
        """The server's models, and the context of each; 0 if it does not say."""
        connection, response = self._send("GET", "/models")
        try:
            data = json.loads(response.read(_MOST_BYTES))["data"]
            return {str(one["id"]): int(one.get("max_model_len") or 0) for one in data}
        except (ValueError, LookupError, TypeError, AttributeError, OSError, http.client.HTTPException):
            raise self._wrong(
                f"{self._path}/models gives no list of models, so it is no server of OpenAI's API"
            ) from None
        finally:
            connection.close()

    def answer(
        self, system: Sequence[Message], messages: Sequence[Message], on_text: OnText, stopped: Callable[[], bool]
    ) -> Answer:
        """See Backend."""
        dropped = 0
        while True:
            try:
                return self._answer([*system, *messages[dropped:]], on_text, stopped, dropped)
            except _Refused as error:
                left = len(messages) - dropped
                if error.code != "context_length_exceeded" or left < 2:
                    raise
                dropped += max(2, left // 4 * 2)  # half of it, so that the next turns find the rest in the cache

    def _answer(self, messages: list[Message], on_text: OnText, stopped: Callable[[], bool], dropped: int) -> Answer:
        body = {"model": self.name, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        connection, response = self._send("POST", "/chat/completions", body | dict(self.options))
        text, reason = "", ""
        usage: dict[str, Any] = {}
        try:
            for event in _events(connection, response, stopped):
                if "error" in event:
                    raise _refusal(event, "the server")
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    delta = choice.get("delta") or {}
                    content = delta.get("content") or ""
                    on_text(delta.get("reasoning_content") or "", content)
                    text += content
                    reason = choice.get("finish_reason") or reason
        except (LookupError, TypeError, AttributeError):
            raise GenerationError(f"{self.url}: what it streams is not of OpenAI's API") from None
        finally:
            connection.close()
        if not reason and not stopped():
            raise GenerationError(f"{self.url}: the server has left in the middle of its answer; ask again")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        made = usage.get("completion_tokens", 0)
        return Answer(text, reason or "cancelled", usage.get("prompt_tokens", 0), cached, made, dropped)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request; returns the beginning of an answer of status 200."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(*self._address, timeout=_CONNECT_SECONDS)
        headers = {"Accept": "text/event-stream, application/json", "User-Agent": f"pangu-chat/{__version__}"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        try:
            connection.connect()
            connection.sock.settimeout(None)  # a long prompt takes its time
            connection.request(method, self._path + path, content, headers)
            response = connection.getresponse()
            if response.status == 200:
                return connection, response
            refused = response.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise GenerationError(f"{self.url}: {reason}; start the server, or name another one") from None
        connection.close()
        try:
            event = json.loads(refused)
        except ValueError:
            event = None
        raise _refusal(event, f"{self.url}: status {response.status}")


def _refusal(event: Any, where: str) -> _Refused:
    """The error of an answer of OpenAI's form."""
    error = event.get("error") if isinstance(event, dict) else None
    if isinstance(error, dict) and error.get("message"):
        return _Refused(f"{where}: {error['message']}", str(error.get("code")))
    return _Refused(f"{where}: without a message")


def _events(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, stopped: Callable[[], bool]
) -> Iterator[dict[str, Any]]:
    """The events of a stream until its end, or until `stopped`. They are read in a thread: a signal does not end a
    call that waits for a socket."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        try:
            while line := response.readline(_MOST_BYTES):
                lines.put(line)
        except (OSError, http.client.HTTPException, ValueError, AttributeError):  # it was closed
            pass
        lines.put(b"")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while not stopped():
            try:
                line = lines.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if not line or line.strip() == b"data: [DONE]":
                return
            if line.startswith(b"data:"):
                try:
                    event = json.loads(line.removeprefix(b"data:"))
                except ValueError:
                    raise GenerationError("the server's stream is no JSON") from None
                yield event
    finally:
        if sock := connection.sock:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # the server has closed it
                pass
        reader.join(5)
