"""The routes of the server: OpenAI's API over an EngineThread."""

import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pangu_ms import __version__
from pangu_ms.core.errors import DataError
from pangu_ms.infer.continuation import Request as EngineRequest
from pangu_ms.serve.engine_thread import EngineThread, Update
from pangu_ms.serve.errors import REFUSED, ApiError, internal_error
from pangu_ms.serve.forms import ChatForm, CompletionForm, Form
from pangu_ms.serve.limits import WITHOUT_KEY, LimitBodies, RequireKey
from pangu_ms.serve.metrics import Metrics
from pangu_ms.serve.models import Models, ServedModel
from pangu_ms.serve.page import PATHS, add_page
from pangu_ms.serve.protocol import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    DetokenizeRequest,
    ErrorAnswer,
    ModelCard,
    ModelList,
    TokenizeRequest,
)
from pangu_ms.serve.requests import MakeGuide, chat_ids, chat_requests, completion_requests
from pangu_ms.serve.settings import Limits
from pangu_ms.serve.structured import asks_for_a_form

log = logging.getLogger(__name__)
T = TypeVar("T")
_SHORT_BODY = 2048  # bytes, whose encoding takes a millisecond or two
_CLIENT_GONE = 499  # nginx's status of a client that left; nobody reads the answer
_UNSUPPORTED = {
    "embeddings": "the models of this server make no embeddings",
    "responses": "use /v1/chat/completions",
    "audio/speech": "this server reads and writes text only",
    "audio/transcriptions": "this server reads and writes text only",
    "images/generations": "this server reads and writes text only",
    "moderations": "there is no moderation",
}
"""Paths of OpenAI's API that are refused by name."""


@dataclass(frozen=True)
class Settings:
    """How a server behaves towards its clients."""

    limits: Limits = field(default_factory=Limits)
    api_keys: Sequence[str] = ()
    """Without any, everybody is answered."""
    cors_origins: Sequence[str] = ()
    """Origins of web pages that may ask, or "*"."""
    root_path: str = ""
    """Prefix of all paths that a proxy in front of the server removes."""
    log_requests: bool = False
    """Whether prompts are written to the log."""
    page: bool = True
    """Whether there is a chat page at /."""


class Server:
    """What the routes share."""

    def __init__(self, models: Models, thread: EngineThread, metrics: Metrics, settings: Settings):
        self.models, self.thread, self.metrics, self.settings = models, thread, metrics, settings
        self._compiling: anyio.CapacityLimiter | None = None

    async def guide(self, model: ServedModel, body: CompletionRequest | ChatRequest) -> MakeGuide | None:
        """What makes the guide of a request. Forms are compiled one after the other: other requests neither wait for a
        thread nor lose the processors to them."""
        if not asks_for_a_form(body):
            return None
        self._compiling = self._compiling or anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(model.grammars.of, body, limiter=self._compiling)

    async def answer(
        self, request: Request, requests: list[EngineRequest], form: Form, stream: bool, begun: float
    ) -> Response:
        """Generate, and answer as a whole or as a stream."""
        name = form.model.name
        answers = self.thread.submit(name, requests, stream)
        self.metrics.prompt_tokens.labels(name).inc(form.usage().prompt_tokens)
        if self.settings.log_requests:
            for one in requests:
                log.info("%s: prompt: %r", form.id, form.model.tokenizer.decode(one.prompt))

        def ended() -> None:
            """At the end of an answer, or of its connection."""
            if not form.finished:
                answers.cancel()
                self.metrics.disconnected.labels(name).inc(not form.failed)
            self.metrics.cached_tokens.labels(name).inc(form.usage().prompt_tokens_details.cached_tokens)
            self.metrics.whole.labels(name).observe(time.monotonic() - begun)

        try:
            updates = aiter(answers)
            if not stream:
                whole = await self._unless_gone(request, name, form.whole(updates))
                ended()
                return _json(whole)
            # Errors before the first token have a status of their own.
            first = await self._unless_gone(request, name, anext(updates))
            for update in first:
                if update.error:
                    raise update.error
            return EventStream(_sse(form, _chain(first, updates)), ended)
        except BaseException:
            answers.cancel()
            raise

    async def _unless_gone(self, request: Request, model: str, work: Awaitable[T]) -> T:
        """The result of `work`, unless the client leaves before."""
        result: list[T] = []
        failure: list[Exception] = []
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                result.append(await work)
            except Exception as error:  # a task group would put it into a group of exceptions
                failure.append(error)
            group.cancel_scope.cancel()
        if result:
            return result[0]
        if failure:
            raise failure[0]
        self.metrics.disconnected.labels(model).inc()
        raise ApiError(_CLIENT_GONE, "The client has left.", code="client_gone")


class EventStream(StreamingResponse):
    """Server-sent events; `ended` is called at their end, also if the client leaves."""

    def __init__(self, events: AsyncIterator[bytes], ended: Callable[[], None]):
        super().__init__(events, media_type="text/event-stream", headers=_NO_BUFFERS)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


_DONE = "data: [DONE]\n\n"
_NO_BUFFERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass each event on at once
_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


async def _chain(first: Sequence[Update], rest: AsyncIterator[Sequence[Update]]) -> AsyncIterator[Sequence[Update]]:
    yield first
    async for one in rest:
        yield one


async def _sse(form: Form, updates: AsyncIterator[Sequence[Update]]) -> AsyncIterator[bytes]:
    """The lines of a form's events, those that come at a time together; an error is the last one."""
    try:
        async for together in form.events(updates):
            # As OpenAI does, without the fields that say nothing.
            lines = [f"data: {event.model_dump_json(exclude_unset=True)}\n\n" for event in together]
            if form.finished:
                lines.append(_DONE)
            if lines:
                yield "".join(lines).encode()
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n{_DONE}".encode()


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def create_app(models: Models, thread: EngineThread, metrics: Metrics, settings: Settings) -> FastAPI:
    """The ASGI application.

    Args:
        models: by name.
        thread: computes them; it is started with the application, and stopped at its end.
        metrics: the observer of `thread`.
        settings: limits, keys and the like.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        thread.start(models.engines)
        yield
        await thread.join()

    app = FastAPI(
        title="PanGu",
        version=__version__,
        lifespan=lifespan,
        root_path=settings.root_path,
        docs_url=None,  # its page would load scripts of another host
        redoc_url=None,
        responses={"default": {"model": ErrorAnswer, "description": "The request is refused."}},
    )
    app.state.server = server = Server(models, thread, metrics, settings)
    metrics.watch(thread)
    _add_generation(app, server)
    _add_information(app, server)
    _add_refusals(app)
    if settings.page:
        add_page(app)
    _handle_errors(app)
    app.add_middleware(LimitBodies, limits=settings.limits)
    if settings.api_keys:
        open_paths = (*WITHOUT_KEY, *PATHS) if settings.page else WITHOUT_KEY
        app.add_middleware(RequireKey, keys=settings.api_keys, without=open_paths)
    app.add_middleware(_CountAnswers, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


async def _prepared(request: Request, work: Callable[..., T], *arguments: Any) -> T:
    """What a body asks for. Another thread would have to wait for Python's lock, which the engine's thread has most of
    the time: that takes longer than a short body."""
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) <= _SHORT_BODY:
        return work(*arguments)
    return await _in_thread(work, *arguments)


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What may take a while, such as encoding a long prompt, does not hold up the other requests."""
    return await anyio.to_thread.run_sync(work, *arguments)


def _add_generation(app: FastAPI, server: Server) -> None:
    most = server.settings.limits.choices

    @app.post("/v1/completions", response_model=Completion, responses=_STREAMED)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        begun, model = time.monotonic(), server.models.find(body.model)
        server.thread.require_ready()
        guide = await server.guide(model, body)
        requests, texts = await _prepared(request, completion_requests, model, body, most, guide)
        form = CompletionForm(model, requests, _with_usage(body), echoes=texts if body.echo else ())
        return await server.answer(request, requests, form, bool(body.stream), begun)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAMED)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a chat."""
        begun, model = time.monotonic(), server.models.find(body.model)
        server.thread.require_ready()
        guide = await server.guide(model, body)
        requests = await _prepared(request, chat_requests, model, body, most, guide)
        calls = bool(body.tools) and body.tool_choice != "none"
        form = ChatForm(model, requests, _with_usage(body), with_calls=calls)
        return await server.answer(request, requests, form, bool(body.stream), begun)


def _with_usage(body: CompletionRequest | ChatRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _add_information(app: FastAPI, server: Server) -> None:
    models, thread = server.models, server.thread

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """The models of this server."""
        return ModelList(data=[_card(model) for model in models.values()])

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> ModelCard:
        """One of them."""
        return _card(models.find(name))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Tokens of a prompt or of a chat."""
        model = models.find(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "Give either prompt or messages.", param="prompt")
        try:
            if body.messages is not None:
                ids = await _in_thread(chat_ids, model, body.messages)
            else:
                ids = await _in_thread(model.encode, body.prompt)
        except DataError as error:
            raise ApiError(400, str(error), param="prompt") from None
        return {"tokens": ids, "count": len(ids), "max_model_len": model.shape.max_length}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        """The text of tokens."""
        try:
            return {"prompt": await _in_thread(models.find(body.model).tokenizer.decode, body.tokens)}
        except DataError as error:
            raise ApiError(400, str(error), param="tokens") from None

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process works."""
        if thread.state == "stopped":
            raise internal_error("The engine has stopped.")
        return {"status": thread.state}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether requests are taken."""
        thread.require_ready()
        return {"status": thread.state}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _card(model: ServedModel) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        max_model_len=model.shape.max_length,
        domains=list(model.domains.names),
        vocab_size=model.tokenizer.vocab_size,
        eod_token_id=model.tokenizer.eod_id,
        unk_token_id=model.tokenizer.unk_id,
    )


def _add_refusals(app: FastAPI) -> None:
    for path, advice in _UNSUPPORTED.items():

        async def refuse(path: str = path, advice: str = advice) -> Response:
            raise ApiError(400, f"/v1/{path} is not supported: {advice}.", code="unsupported_endpoint")

        app.add_api_route(f"/v1/{path}", _without_arguments(refuse), methods=["POST"], include_in_schema=False)


def _without_arguments(
    route: Callable[[], Coroutine[Any, Any, Response]],
) -> Callable[[], Coroutine[Any, Any, Response]]:
    """FastAPI would read arguments with defaults from the query."""

    async def call() -> Response:
        return await route()

    return call


def _handle_errors(app: FastAPI) -> None:
    """Every error has OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response(request.scope)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _of_validation(error.errors()).response(request.scope)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code
        message, code = str(error.detail), _CODES.get(status)
        if status == 400:  # FastAPI's, of what json raises besides JSONDecodeError
            message = "We could not parse the JSON body of your request: no UTF-8, too deeply nested, or a huge number."
        if status in (404, 405):
            message = f"{request.method} {request.url.path[:200]}: there is no such path or method."
        return ApiError(status, message, code=code, headers=error.headers).response(request.scope)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        response = internal_error().response(request.scope)
        response.headers["Connection"] = "close"  # Starlette raises the error again, for which uvicorn closes it
        return response


_CODES = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}


def _of_validation(errors: Sequence[Any]) -> ApiError:
    """The answer to a body that is none of its model."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    # Where a field has several types, pydantic adds the one that it speaks of.
    names = itertools.takewhile(lambda part: part.isdigit() or (part.isidentifier() and part != "str"), place)
    param = ".".join(names)[:200]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"We could not parse the JSON body of your request: {detail}.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        name = ".".join(place)[:200]
        message = f"Unrecognized request argument supplied: {name}"
        return ApiError(400, message, param=name, code="unknown_parameter")
    if not place:
        message = "The body must be a JSON object, sent with `Content-Type: application/json`."
        return ApiError(400, message, code="invalid_type")
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: {param}", param=param, code="missing_required_parameter")
    return ApiError(400, f"Invalid {param}: {first['msg']}", param=param, code="invalid_value")


class _CountAnswers:
    """Counts answers by path and status, and errors by their code; paths of no route count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        begun = False

        def count(status: int) -> None:
            nonlocal begun
            begun = True
            route = scope.get("route")
            path = route.path if route else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            if REFUSED in scope and scope["method"] == "POST" and status != _CLIENT_GONE:
                self._metrics.rejected.labels(scope[REFUSED]).inc()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:  # Starlette answers it outside of all middleware
            if not begun:
                scope[REFUSED] = internal_error().code
                count(500)
            raise
