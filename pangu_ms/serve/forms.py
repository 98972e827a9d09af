"""Puts continuations into the forms of OpenAI's API: whole answers, and events of streams."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from pangu_ms.infer.continuation import Piece, Request, TokenLogprobs
from pangu_ms.serve.chat_template import Thinking
from pangu_ms.serve.engine_thread import Update
from pangu_ms.serve.models import ServedModel
from pangu_ms.serve.protocol import (
    AnswerMessage,
    CachedTokens,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    TokenLogprob,
    TopLogprob,
    Usage,
)


@dataclass
class _Choice:
    """What one continuation has so far."""

    num_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str = ""
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)


class Form(ABC):
    """The form of the answers to one request.

    Attributes:
        kind: the beginning of the answer's id.
        failed: whether a continuation ended with an error.
    """

    kind: str

    def __init__(self, model: ServedModel, requests: Sequence[Request], with_usage: bool = False):
        """Begin an answer.

        Args:
            model: that answers.
            requests: the continuations of the answer; those of one prompt follow each other, and the first of them has
                the sample 0.
            with_usage: whether a stream ends with the usage.
        """
        self.model, self.requests, self.with_usage = model, requests, with_usage
        self.id, self.created = f"{self.kind}-{uuid.uuid4().hex}", int(time.time())
        self.choices, self.failed = [_Choice() for _ in requests], False

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that all answers have."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name}

    def usage(self) -> Usage:
        """Tokens so far; a prompt counts once, however many continuations it has."""
        prompts = sum(len(one.prompt) for one in self.requests if not one.sample)
        cached = sum(mine.cached_tokens for mine, one in zip(self.choices, self.requests) if not one.sample)
        made = sum(choice.num_tokens for choice in self.choices)
        return Usage(
            prompt_tokens=prompts,
            completion_tokens=made,
            total_tokens=prompts + made,
            prompt_tokens_details=CachedTokens(cached_tokens=cached),
        )

    def count(self, update: Update) -> None:
        """Take over what an update says of the counts.

        Raises:
            ApiError: the continuation failed.
        """
        if update.error:
            self.failed = True
            raise update.error
        mine = self.choices[update.choice]
        mine.num_tokens, mine.cached_tokens = update.num_tokens, update.cached_tokens
        mine.finish_reason = update.finish_reason

    async def whole(self, updates: AsyncIterator[Update]) -> BaseModel:
        """The answer, when all continuations have ended.

        Raises:
            ApiError: one failed.
        """
        async for update in updates:
            self.count(update)
            self.add(update)
        return self.answer()

    async def events(self, updates: AsyncIterator[Update]) -> AsyncIterator[BaseModel]:
        """The events of a stream.

        Raises:
            ApiError: a continuation failed.
        """
        for event in self.first_events():
            yield event
        async for update in updates:
            self.count(update)
            for event in self.events_of(update):
                yield event
        if self.with_usage:
            yield self.usage_event()

    @abstractmethod
    def add(self, update: Update) -> None:
        """Keep an update for `answer`."""

    @abstractmethod
    def answer(self) -> BaseModel:
        """The whole answer."""

    def first_events(self) -> Sequence[BaseModel]:
        """Events before all others."""
        return ()

    @abstractmethod
    def events_of(self, update: Update) -> Sequence[BaseModel]:
        """Events of an update."""

    @abstractmethod
    def usage_event(self) -> BaseModel:
        """The event that has no choices but the usage."""


class CompletionForm(Form):
    """Of /v1/completions."""

    kind = "cmpl"

    def __init__(self, *args: Any, echoes: Sequence[str] = (), **kwargs: Any):
        """See Form; `echoes` are the texts before the continuations, if the request asks for them."""
        super().__init__(*args, **kwargs)
        self._echoes = echoes or [""] * len(self.requests)

    def _logprobs(self, choice: int, piece: Piece) -> CompletionLogprobs | None:
        if self.requests[choice].sampling.logprobs < 0:
            return None
        spell, before = _Speller(self.model), len(self._echoes[choice])
        tops = [{spell(i): value for i, value in one.top} for one in piece.logprobs]
        return CompletionLogprobs(
            tokens=[spell(i) for i in piece.ids],
            token_logprobs=[one.chosen for one in piece.logprobs],
            top_logprobs=tops if self.requests[choice].sampling.logprobs else None,
            text_offset=[before + begin for begin in piece.begins],
        )

    def add(self, update: Update) -> None:
        """See Form."""
        mine = self.choices[update.choice]
        mine.text += update.piece.text
        if found := self._logprobs(update.choice, update.piece):
            mine.logprobs.append(found)

    def answer(self) -> Completion:
        """See Form."""
        choices = []
        for index, mine in enumerate(self.choices):
            text = self._echoes[index] + mine.text
            choices.append(
                CompletionChoice(
                    index=index, text=text, logprobs=_joined(mine.logprobs), finish_reason=mine.finish_reason
                )
            )
        return Completion(**self.head("text_completion"), choices=choices, usage=self.usage())

    def first_events(self) -> Sequence[Completion]:
        """The echoes."""
        echoed = [(index, text) for index, text in enumerate(self._echoes) if text]
        return [
            self._event(CompletionChoice(index=index, text=text, logprobs=None, finish_reason=None))
            for index, text in echoed
        ]

    def events_of(self, update: Update) -> Sequence[Completion]:
        """See Form."""
        logprobs = self._logprobs(update.choice, update.piece)
        reason = update.finish_reason or None
        choice = CompletionChoice(index=update.choice, text=update.piece.text, logprobs=logprobs, finish_reason=reason)
        return [self._event(choice)]

    def _event(self, choice: CompletionChoice) -> Completion:
        return Completion(**self.head("text_completion"), choices=[choice])

    def usage_event(self) -> Completion:
        """See Form."""
        return Completion(**self.head("text_completion"), choices=[], usage=self.usage())


def _joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs | None:
    if not parts:
        return None
    tops = [top for part in parts for top in part.top_logprobs or ()]
    return CompletionLogprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[value for part in parts for value in part.token_logprobs],
        top_logprobs=tops if parts[0].top_logprobs is not None else None,
        text_offset=[offset for part in parts for offset in part.text_offset],
    )


class ChatForm(Form):
    """Of /v1/chat/completions."""

    kind = "chatcmpl"

    def __init__(self, *args: Any, **kwargs: Any):
        """See Form."""
        super().__init__(*args, **kwargs)
        self._splitters = [_Reasoning(self.model, self.model.template.thinking) for _ in self.requests]

    def _logprobs(self, choice: int, piece: Piece) -> list[TokenLogprob]:
        return [self._token(index, found) for index, found in zip(piece.ids, piece.logprobs)]

    def _token(self, index: int, found: TokenLogprobs) -> TokenLogprob:
        spell, tokenizer = _Speller(self.model), self.model.tokenizer

        def of(token: int, value: float) -> dict[str, Any]:
            return {"token": spell(token), "logprob": value, "bytes": list(tokenizer.text_bytes(token))}

        tops = [TopLogprob(**of(token, value)) for token, value in found.top]
        return TokenLogprob(**of(index, found.chosen), top_logprobs=tops)

    def _asked(self, choice: int) -> bool:
        return self.requests[choice].sampling.logprobs >= 0

    def add(self, update: Update) -> None:
        """See Form."""
        self._splitters[update.choice].push(update.piece)
        self.choices[update.choice].logprobs += self._logprobs(update.choice, update.piece)

    def answer(self) -> ChatCompletion:
        """See Form."""
        choices = []
        for index, (mine, split) in enumerate(zip(self.choices, self._splitters)):
            message = AnswerMessage(content=split.content, reasoning_content=split.reasoning or None)
            logprobs = ChatLogprobs(content=mine.logprobs) if self._asked(index) else None
            choices.append(
                ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=mine.finish_reason)
            )
        return ChatCompletion(**self.head("chat.completion"), choices=choices, usage=self.usage())

    def first_events(self) -> Sequence[ChatChunk]:
        """The roles."""
        return [self._event(index, Delta(role="assistant", content="")) for index in range(len(self.requests))]

    def events_of(self, update: Update) -> Sequence[ChatChunk]:
        """See Form."""
        reasoning, content = self._splitters[update.choice].push(update.piece)
        logprobs = None
        if self._asked(update.choice) and update.piece.ids:
            logprobs = ChatLogprobs(content=self._logprobs(update.choice, update.piece))
        events = []
        if reasoning or content or logprobs:
            parts = {"reasoning_content": reasoning, "content": content}
            delta = Delta(**{name: text for name, text in parts.items() if text})
            events.append(self._event(update.choice, delta, logprobs))
        if update.finish_reason:
            events.append(self._event(update.choice, Delta(), finish_reason=update.finish_reason))
        return events

    def _event(
        self, index: int, delta: Delta, logprobs: ChatLogprobs | None = None, finish_reason: str | None = None
    ) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return ChatChunk(**self.head("chat.completion.chunk"), choices=[choice])

    def usage_event(self) -> ChatChunk:
        """See Form."""
        return ChatChunk(**self.head("chat.completion.chunk"), choices=[], usage=self.usage())


class _Reasoning:
    """Splits what a model says into its reasoning, which it puts between two special tokens, and its answer."""

    def __init__(self, model: ServedModel, thinking: Thinking | None):
        self._model, self._thinking = model, thinking
        self.reasoning, self.content = "", ""
        self._inside, self._position = False, 0

    def push(self, piece: Piece) -> tuple[str, str]:
        """Add a piece; returns its parts: reasoning and answer."""
        found = {True: "", False: ""}
        begin, done = self._position, 0  # of the piece in the whole text; what of it is taken
        for index, at in zip(piece.ids, piece.begins) if self._thinking else ():
            if index in (self._thinking or ()):
                mark = max(0, at - begin)
                found[self._inside] += piece.text[done:mark]
                # The marks are special, and have no text; or their text is left out.
                done = mark + len(self._model.tokenizer.text_bytes(index).decode())
                self._inside = index == (self._thinking or (-1,))[0]
        found[self._inside] += piece.text[done:]
        self._position += len(piece.text)
        self.reasoning += found[True]
        self.content += found[False]
        return found[True], found[False]


class _Speller:
    """Spells single tokens: bytes that are no text as \\x escapes, special pieces by their names."""

    def __init__(self, model: ServedModel):
        self._tokenizer = model.tokenizer

    def __call__(self, index: int) -> str:
        content = self._tokenizer.text_bytes(index)
        if not content:
            return self._tokenizer.piece_of(index)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
