"""Puts continuations into the forms of OpenAI's API: whole answers, and events of streams."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel

from pangu_ms.data.tokenizer import StreamDecoder
from pangu_ms.infer.continuation import Piece, Request, TokenLogprobs
from pangu_ms.serve.engine_thread import Update
from pangu_ms.serve.errors import ApiError
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
    FunctionCall,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
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
        self.no_usage: dict[str, Any] = {"usage": None} if with_usage else {}
        """What OpenAI's events have where the usage comes in the last one."""

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

    @property
    def finished(self) -> bool:
        """Whether all continuations have ended."""
        return all(choice.finish_reason for choice in self.choices)

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

    async def whole(self, updates: AsyncIterator[Sequence[Update]]) -> BaseModel:
        """The answer, when all continuations have ended.

        Raises:
            ApiError: one failed.
        """
        async for together in updates:
            for update in together:
                self.count(update)
                self.add(update)
        return self.answer()

    async def events(self, updates: AsyncIterator[Sequence[Update]]) -> AsyncIterator[Sequence[BaseModel]]:
        """The events of a stream, those that come at a time together.

        Raises:
            ApiError: a continuation failed.
        """
        events = list(self.first_events())
        async for together in updates:
            try:
                for update in together:
                    self.count(update)
                    events += self.events_of(update)
            except ApiError:
                yield events
                raise
            if self.with_usage and self.finished:
                events.append(self.usage_event())
            yield events
            events = []

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
        self._not_begun = set(range(len(self.requests)))

    def _taken(self, update: Update) -> tuple[str, CompletionLogprobs | None]:
        """The text of an update and its log-probabilities; of the first one with the echo."""
        choice, text = update.choice, update.piece.text
        asked, parts = self.requests[choice].sampling.logprobs >= 0, []
        if choice in self._not_begun:
            self._not_begun.discard(choice)
            text = self._echoes[choice] + text
            if asked and self.requests[choice].prompt_logprobs >= 0:
                parts.append(self._of_prompt(choice, update.prompt_logprobs))
        if asked:
            piece, before = update.piece, len(self._echoes[choice])
            begins = [before + begin for begin in piece.begins]
            parts.append(self._logprobs(choice, piece.ids, begins, piece.logprobs))
        return text, _joined(parts)

    def _of_prompt(self, choice: int, found: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        """Nothing comes before the first token: it has no log-probability."""
        ids, decoder, begins, end = self.requests[choice].prompt, StreamDecoder(self.model.tokenizer), [], 0
        for index in ids:
            begins.append(end)
            end += len(decoder.push(index))
        # Tokenizers may change white space, and put a space before a text.
        further = max(0, end - len(self._echoes[choice]))
        return self._logprobs(choice, ids, [max(0, begin - further) for begin in begins], [None, *found])

    def _logprobs(
        self, choice: int, ids: Sequence[int], begins: Sequence[int], found: Sequence[TokenLogprobs | None]
    ) -> CompletionLogprobs:
        spell = _Speller(self.model)
        result = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=None, text_offset=list(begins))
        tops: list[dict[str, float] | None] = []
        for token, one in zip(ids, found):
            result.tokens.append(spell(token))
            result.token_logprobs.append(one.chosen if one else None)
            tops.append({spell(i): value for i, value in (*one.top, (token, one.chosen))} if one else None)
        if self.requests[choice].sampling.logprobs:
            result.top_logprobs = tops
        return result

    def add(self, update: Update) -> None:
        """See Form."""
        mine, (text, logprobs) = self.choices[update.choice], self._taken(update)
        mine.text += text
        if logprobs:
            mine.logprobs.append(logprobs)

    def answer(self) -> Completion:
        """See Form."""
        choices = []
        for index, mine in enumerate(self.choices):
            logprobs = _joined(mine.logprobs)
            choices.append(
                CompletionChoice(index=index, text=mine.text, logprobs=logprobs, finish_reason=mine.finish_reason)
            )
        return Completion(**self.head("text_completion"), choices=choices, usage=self.usage())

    def events_of(self, update: Update) -> Sequence[Completion]:
        """See Form."""
        text, logprobs = self._taken(update)
        reason = update.finish_reason or None
        choice = CompletionChoice(index=update.choice, text=text, logprobs=logprobs, finish_reason=reason)
        return [Completion(**self.head("text_completion"), choices=[choice], **self.no_usage)]

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

    def __init__(self, *args: Any, with_calls: bool = False, **kwargs: Any):
        """See Form; `with_calls`: whether the model may call tools."""
        super().__init__(*args, **kwargs)
        self._speeches = [Speech(self.model, with_calls) for _ in self.requests]

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

    def _reason(self, choice: int, finish_reason: str) -> str:
        return "tool_calls" if finish_reason == "stop" and self._speeches[choice].calls else finish_reason

    def add(self, update: Update) -> None:
        """See Form."""
        self._speeches[update.choice].push(update.piece, ended=bool(update.finish_reason))
        self.choices[update.choice].logprobs += self._logprobs(update.choice, update.piece)

    def answer(self) -> ChatCompletion:
        """See Form."""
        choices = []
        for index, (mine, speech) in enumerate(zip(self.choices, self._speeches)):
            message = AnswerMessage(
                content=speech.content or (None if speech.calls else ""),
                reasoning_content=speech.reasoning or None,
                tool_calls=speech.calls or None,
            )
            logprobs = ChatLogprobs(content=mine.logprobs) if self._asked(index) else None
            reason = self._reason(index, mine.finish_reason)
            choices.append(ChatChoice(index=index, message=message, logprobs=logprobs, finish_reason=reason))
        return ChatCompletion(**self.head("chat.completion"), choices=choices, usage=self.usage())

    def first_events(self) -> Sequence[ChatChunk]:
        """The roles."""
        return [self._event(index, Delta(role="assistant", content="")) for index in range(len(self.requests))]

    def events_of(self, update: Update) -> Sequence[ChatChunk]:
        """See Form."""
        speech, logprobs = self._speeches[update.choice], None
        before = len(speech.calls)
        said = speech.push(update.piece, ended=bool(update.finish_reason))
        if self._asked(update.choice) and update.piece.ids:
            logprobs = ChatLogprobs(content=self._logprobs(update.choice, update.piece))
        parts: dict[str, Any] = {"reasoning_content": said.reasoning, "content": said.content}
        parts["tool_calls"] = [
            ToolCallDelta(index=before + number, **call.model_dump()) for number, call in enumerate(said.calls)
        ]
        delta = Delta(**{name: part for name, part in parts.items() if part})
        events = []
        if delta.model_fields_set or logprobs:
            events.append(self._event(update.choice, delta, logprobs))
        if update.finish_reason:
            reason = self._reason(update.choice, update.finish_reason)
            events.append(self._event(update.choice, Delta(), finish_reason=reason))
        return events

    def _event(
        self, index: int, delta: Delta, logprobs: ChatLogprobs | None = None, finish_reason: str | None = None
    ) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return ChatChunk(**self.head("chat.completion.chunk"), choices=[choice], **self.no_usage)

    def usage_event(self) -> ChatChunk:
        """See Form."""
        return ChatChunk(**self.head("chat.completion.chunk"), choices=[], usage=self.usage())


class Said(NamedTuple):
    """Parts of what a model says."""

    reasoning: str
    content: str
    calls: Sequence[ToolCall]


class Speech:
    """Splits what a model says into its reasoning, its answer, and its calls of tools: the first and the last stand
    between special tokens.

    Attributes:
        reasoning, content, calls: so far.
    """

    def __init__(self, model: ServedModel, with_calls: bool = False):
        """Begin; `with_calls`: whether there are tools, else calls are a part of the answer."""
        self._tokenizer = model.tokenizer
        self._next: dict[tuple[str, int], str] = {}
        """The part that begins at a mark, by the part before it."""
        marks = {"reasoning": model.template.thinking, "call": model.template.calls if with_calls else None}
        for part, pair in marks.items():
            if pair:
                self._next["content", pair[0]] = part
                self._next[part, pair[1]] = "content"
        self._marks = {token for _, token in self._next}
        self.reasoning, self.content = "", ""
        self.calls: list[ToolCall] = []
        self._part, self._call, self._position = "content", "", 0

    def push(self, piece: Piece, ended: bool = False) -> Said:
        """Add a piece; returns its parts.

        Args:
            piece: the next one.
            ended: whether it is the last one. A call that is not whole is a part of the answer then.
        """
        found, calls = {"reasoning": "", "content": "", "call": ""}, []
        begin, done = self._position, 0  # of the piece in the whole text; what of it is taken
        for index, at in zip(piece.ids, piece.begins) if self._marks else ():
            if index in self._marks:
                mark = max(0, at - begin)
                found[self._part] += piece.text[done:mark]
                # The marks are special, and have no text; or their text is left out.
                done = mark + len(self._tokenizer.text_bytes(index).decode())
                part = self._next.get((self._part, index), self._part)
                if self._part == "call" != part:
                    made = _calls(self._call + found["call"])
                    if not made:
                        found["content"] += self._call + found["call"]
                    calls += made
                    self._call = found["call"] = ""
                self._part = part
        found[self._part] += piece.text[done:]
        self._call += found["call"]
        if ended:
            found["content"] += self._call
            self._call = ""
        self._position += len(piece.text)
        self.reasoning += found["reasoning"]
        self.content += found["content"]
        self.calls += calls
        return Said(found["reasoning"], found["content"], calls)


def _calls(text: str) -> list[ToolCall]:
    """The calls that a model wrote: a JSON object, or a list of them, each with a name and arguments; [] if it is
    none."""
    try:
        values = json.loads(text)
        values = values if isinstance(values, list) else [values]
        calls = []
        for value in values:
            name, arguments = value["name"], value.get("arguments", {})
            if not isinstance(name, str):
                return []
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            function = FunctionCall(name=name, arguments=arguments)
            calls.append(ToolCall(id=f"call_{uuid.uuid4().hex}", function=function))
        return calls
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return []


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
