"""One thread that owns the engines. MindSpore is used in no other thread of a server.

asyncio's side sends it functions to call between two steps, and gets what each step brings by `call_soon_threadsafe`,
once a step. Only asyncio's thread touches the attributes of `EngineThread` that it counts with.
"""

import asyncio
import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.continuation import Continuation, Piece, Request, TokenLogprobs
from pangu_ms.infer.engine import Engine
from pangu_ms.serve.errors import ApiError, internal_error, overloaded
from pangu_ms.serve.settings import Limits

log = logging.getLogger(__name__)
_CHECK_SECONDS = 0.05  # between two looks at the times of requests
_OBSERVE_SECONDS = 0.25  # until asyncio's thread learns of steps that bring it nothing else


@dataclass(frozen=True)
class Update:
    """What a continuation got.

    Attributes:
        choice: number of the continuation among those of its answers.
        piece: new text and tokens.
        num_tokens: tokens that it has in all, with stop tokens.
        cached_tokens: of its prompt, which were not computed anew.
        finish_reason: "" until it ends; "stop" or "length".
        error: why it ends without a result.
        prompt_logprobs: in its first update, of the tokens of the prompt but the first, if they were asked for.
    """

    choice: int
    piece: Piece
    num_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str = ""
    error: ApiError | None = None
    prompt_logprobs: Sequence[TokenLogprobs] = ()


class Observer(Protocol):
    """Is told what happens, in asyncio's thread."""

    def started(self, model: str, waited: float) -> None:
        """A continuation has its first token, `waited` seconds after its request."""

    def step(self, model: str, new_tokens: int, seconds: float) -> None:
        """A step was computed."""


@dataclass(eq=False)
class _Running:
    """A continuation in the engine's thread."""

    answers: "Answers"
    choice: int
    number: int = -1
    first: float | None = None
    told: bool = False
    """Whether there was an update."""


class Answers:
    """The continuations of one API request; iterates over their updates, those of a step together, until all have
    ended.

    Attributes:
        model: name of the model.
        stream: whether there are updates while it is generated, or only one at the end of each continuation.
        submitted: when they were asked for, on the monotonic clock.
    """

    def __init__(self, thread: "EngineThread", model: str, requests: Sequence[Request], stream: bool):
        self.model, self.requests, self.stream = model, requests, stream
        self._thread, self._unfinished = thread, set(range(len(requests)))
        self._updates: list[Update] = []
        self._waits: asyncio.Future[None] | None = None
        self.submitted = time.monotonic()

    def __aiter__(self) -> AsyncIterator[list[Update]]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[list[Update]]:
        ended = 0
        while ended < len(self.requests):
            if not self._updates:
                self._waits = asyncio.get_running_loop().create_future()
                await self._waits
            updates, self._updates = self._updates, []
            ended += sum(bool(update.finish_reason or update.error) for update in updates)
            yield updates

    def put(self, update: Update) -> None:
        """Add an update; in asyncio's thread."""
        if update.choice not in self._unfinished:
            return
        if update.finish_reason or update.error:
            self._end(update.choice)
        self._add(update)

    def _add(self, update: Update) -> None:
        self._updates.append(update)
        if self._waits and not self._waits.done():
            self._waits.set_result(None)

    def cancel(self) -> None:
        """End what has not ended; nobody waits for it any more. A second call does nothing."""
        if not self._unfinished:
            return
        for choice in list(self._unfinished):
            self._end(choice)
        self._thread.cancel(self)

    def fail(self, error: ApiError) -> None:
        """End what has not ended with an error."""
        unfinished = list(self._unfinished)
        self.cancel()
        for choice in unfinished:
            self._add(Update(choice, Piece(), error=error))

    def _end(self, choice: int) -> None:
        self._unfinished.discard(choice)
        self._thread.live[self.model] -= 1
        if not self._unfinished:
            self._thread.answers.discard(self)


class EngineThread:
    """Computes the steps of the engines of all models, in turns.

    Attributes:
        state: "loading", "ready", "draining" (what runs ends, nothing new begins) or "stopped".
        failure: what ended the thread, or None.
        slots: by name of the model; empty until the models are loaded.
        live: continuations that wait or run, by name of the model.
        answers: those that have not ended.
        engines: for readers of counts; their methods belong to the thread.
    """

    def __init__(self, limits: Limits, observer: Observer | None = None, on_change: Callable[[], None] | None = None):
        """Make a thread; `start` starts it.

        Args:
            limits: of the queue and of time.
            observer: is told what happens.
            on_change: called in asyncio's thread when `state` has become "ready" or "stopped".
        """
        self.limits, self.observer, self._on_change = limits, observer, on_change
        self.state, self.failure = "loading", None  # type: str, BaseException | None
        self.engines: Mapping[str, Engine] = {}
        self.slots: dict[str, int] = {}
        self.live: dict[str, int] = {}
        self.answers: set[Answers] = set()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: dict[tuple[str, int], _Running] = {}
        self._outbox: list[Callable[[], None]] = []
        self._steps: list[tuple[str, int, float]] = []
        """The steps that the observer was not told of: name, new tokens, seconds."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._next_check = self._next_observation = self._next_events = 0.0
        self._sends_events = True
        """Whether streams get what is new: one wake-up and one write for several steps."""

    # In asyncio's thread

    def start(self, load: Callable[[], Mapping[str, Engine]]) -> None:
        """Start the thread from the running event loop.

        Args:
            load: called in the thread; its engines are those of the models, by name.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, args=(load,), name="engine", daemon=True)
        self._thread.start()

    async def join(self) -> None:
        """Stop the thread after its step. Not while it loads models, which takes long and cannot be interrupted."""
        self._inbox.put(None)
        if self._thread and (self.engines or self.state == "stopped"):
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    @property
    def alive(self) -> bool:
        """Whether the thread still computes."""
        return bool(self._thread and self._thread.is_alive())

    def drain(self) -> None:
        """Begin nothing new."""
        if self.state in ("loading", "ready"):
            self._change("draining")

    def require_ready(self) -> None:
        """Raise ApiError unless requests are taken."""
        if self.state == "loading":
            raise overloaded("The model is being loaded. Try again later.", 5, 503, "model_loading")
        if self.state == "draining":
            raise overloaded("The server is about to end. Send the request to another one.", 5, 503, "shutting_down")
        if self.state == "stopped":
            raise internal_error("The engine has stopped.")

    def submit(self, model: str, requests: Sequence[Request], stream: bool = True) -> Answers:
        """Hand requests to the engine of a model; `stream` is that of Answers.

        Raises:
            ApiError: the queue is full, there are more than can ever wait, or no requests are taken.
        """
        self.require_ready()
        room = self.slots[model] + self.limits.queue
        if len(requests) > room:
            raise ApiError(
                400, f"{len(requests)} continuations are more than this server takes at a time ({room}).", param="n"
            )
        if self.live[model] + len(requests) > room:
            raise overloaded(
                f"{self.live[model]} requests run or wait, and {room} are the most at a time. Try again later.",
                self._retry_after(model),
            )
        answers = Answers(self, model, requests, stream)
        self.live[model] += len(requests)
        self.answers.add(answers)
        self._inbox.put(lambda: self._submit(answers))
        return answers

    def _retry_after(self, model: str) -> int:
        """Seconds: the longer the queue, the later."""
        return max(1, min(30, self.live[model] // max(1, self.slots[model])))

    def cancel(self, answers: Answers) -> None:
        """End the continuations of `answers`; see `Answers.cancel`."""
        self.answers.discard(answers)
        self._inbox.put(lambda: self._cancel(answers))

    def _change(self, state: str) -> None:
        self.state = state
        if self._on_change:
            self._on_change()

    def _loaded(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines
        self.slots = {name: engine.decoder.shape.batch_size for name, engine in engines.items()}
        self.live = dict.fromkeys(engines, 0)
        if self.state == "loading":
            self._change("ready")

    def _stopped(self, failure: BaseException | None) -> None:
        self.failure = failure
        for answers in list(self.answers):
            answers.fail(internal_error("The engine has stopped."))
        self._change("stopped")

    # In the engine's thread

    def _main(self, load: Callable[[], Mapping[str, Engine]]) -> None:
        failure: BaseException | None = None
        try:
            self._engines = load()
            self._tell(lambda: self._loaded(self._engines))
            self._deliver()
            while self._take_calls():
                self._sends_events = (now := time.monotonic()) >= self._next_events
                if self._sends_events:
                    self._next_events = now + self.limits.stream_interval
                for name, engine in self._engines.items():
                    if engine.busy:
                        self._step(name, engine)
                self._deliver(time.monotonic() >= self._next_observation)
        except BaseException as error:  # whatever it is, the server must learn of it
            failure = error
        self._tell(lambda: self._stopped(failure))
        self._deliver()

    def _take_calls(self) -> bool:
        """Call what was sent; waits for it while no engine has anything to do. Whether the thread goes on."""
        busy = any(engine.busy for engine in self._engines.values())
        if not busy:
            self._deliver()
        while True:
            try:
                call = self._inbox.get(block=not busy)
            except queue.Empty:
                return True
            if call is None:
                return False
            call()
            self._deliver()
            busy = True

    def _tell(self, call: Callable[[], None]) -> None:
        self._outbox.append(call)

    def _deliver(self, steps: bool = True) -> None:
        """Let asyncio's thread do what `_tell` has collected. That takes Python's lock and a processor from the next
        step: without `steps`, those that the observer was not told of are no reason to wake it."""
        if not (self._outbox or (steps and self._steps)):
            return
        calls, self._outbox = self._outbox, []
        observed, self._steps = self._steps, []
        self._next_observation = time.monotonic() + _OBSERVE_SECONDS
        observer = self.observer

        def deliver() -> None:
            for call in calls:
                call()
            if observer:
                for step in observed:
                    observer.step(*step)

        assert self._loop
        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed: nobody listens
            log.debug("updates after the end of the event loop")

    def _submit(self, answers: Answers) -> None:
        engine = self._engines[answers.model]
        for choice, request in enumerate(answers.requests):
            running = _Running(answers, choice)
            request = dataclasses.replace(request, arrival=engine.now())
            try:
                running.number = engine.submit(request, functools.partial(self._token, running))
            except GenerationError as error:
                self._send(running, Update(choice, Piece(), error=ApiError(400, str(error))))
                continue
            self._running[answers.model, running.number] = running

    def _cancel(self, answers: Answers) -> None:
        for key, running in list(self._running.items()):
            if running.answers is answers:
                del self._running[key]
                self._engines[answers.model].cancel(running.number)

    def _step(self, name: str, engine: Engine) -> None:
        begin, before = time.monotonic(), engine.counts.new_tokens
        for number, continuation in engine.step():
            running = self._running.pop((name, number))
            if continuation.error and continuation.of_request:
                update = Update(running.choice, Piece(), error=ApiError(400, continuation.error))
            elif continuation.error:
                log.error("%s: %s", name, continuation.error)
                update = Update(running.choice, Piece(), error=internal_error(continuation.error))
            else:
                update = _update(running, continuation, continuation.finish_reason)
            self._send(running, update)
        end = time.monotonic()
        self._steps.append((name, engine.counts.new_tokens - before, end - begin))
        if end >= self._next_check:
            self._next_check = end + _CHECK_SECONDS
            self._end_late(end)

    def _token(self, running: _Running, continuation: Continuation) -> None:
        if running.first is None:
            running.first = time.monotonic()
            waited, observer = running.first - running.answers.submitted, self.observer
            if observer:
                self._tell(lambda: observer.started(running.answers.model, waited))
        if continuation.finish_reason or not running.answers.stream:
            return  # `step` returns it at its end
        if running.told and not self._sends_events:
            return
        update = _update(running, continuation, "")
        if update.piece.text or update.piece.ids:
            self._send(running, update)
            running.told = True

    def _end_late(self, now: float) -> None:
        """End continuations whose time is over."""
        waiting = {(name, one.id) for name, engine in self._engines.items() for one in engine.table.waiting}
        for key, running in list(self._running.items()):
            engine = self._engines[key[0]]
            if running.first is None and key in waiting and now - running.answers.submitted > self.limits.queue_timeout:
                error = overloaded("The request waited too long. Try again later.", 5, 503, "queue_timeout")
                update = Update(running.choice, Piece(), error=error)
                engine.cancel(running.number)
            elif running.first is not None and now - running.first > self.limits.generation_timeout:
                continuation = engine.cancel(running.number)
                continuation.finish_reason = "length"
                update = _update(running, continuation, "length")
            else:
                continue
            del self._running[key]
            self._send(running, update)

    def _send(self, running: _Running, update: Update) -> None:
        self._tell(lambda: running.answers.put(update))


def _update(running: _Running, continuation: Continuation, finish_reason: str) -> Update:
    count, cached = len(continuation.ids), continuation.cached_tokens
    of_prompt = () if running.told else continuation.prompt_logprobs
    return Update(running.choice, continuation.take(), count, cached, finish_reason, prompt_logprobs=of_prompt)
