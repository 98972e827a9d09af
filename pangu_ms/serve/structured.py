"""Continuations of a given form: a JSON value or a match of a regular expression, by the library llguidance; or one of
some texts, which needs no grammar: the library would take seconds for thousands of them, in the engine's thread too."""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np

from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.sampling import Guide, GuideError
from pangu_ms.serve.errors import ApiError
from pangu_ms.serve.protocol import Sampled

# Of white space between the tokens of JSON a weak model would otherwise write as much as it may, until max_tokens.
_JSON = {"whitespace_pattern": r"\x20?"}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_FOLLOWED = 200
"""Tokens of a form that are looked at before it is taken."""


class Grammars:
    """Makes guides for the continuations of one tokenizer. Its methods may be called in any thread."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._matcher = functools.lru_cache(maxsize=64)(self._compiled)

    def of(self, body: Sampled) -> Callable[[], Guide] | None:
        """What makes the guide of a request; None if the text may be any. This may take a second.

        Raises:
            ApiError: the request names several forms, or one that cannot be used.
        """
        asked = _grammars(body)
        if not asked:
            return None
        if len(asked) > 1:
            raise ApiError(400, f"{' and '.join(asked)} exclude each other; leave one out.", param=list(asked)[1])
        ((param, grammar),) = asked.items()
        if body.guided_choice is not None:
            choices = Choices(body.guided_choice, self._spelling)
            return lambda: _ChoiceGuide(choices)
        matcher, fault = self._matcher(grammar)
        if fault:
            raise ApiError(400, f"{param}: {fault}", param=param)
        return lambda: self._guide(matcher)

    def _guide(self, matcher: llguidance.LLMatcher) -> "_Guide":
        return _Guide(matcher.deep_copy(), self._size, self._never)

    @functools.cached_property
    def _spelling(self) -> "_Spelling":
        return _Spelling(self._tokenizer)

    @functools.cached_property
    def _never(self) -> np.ndarray:
        """int [n]: pieces without text. llguidance may allow them where no other token fits."""
        wrapped, stops = _Pieces(self._tokenizer), self._tokenizer.stop_ids
        return np.array([i for i in wrapped.special_token_ids if i not in stops], np.int64)

    @functools.cached_property
    def _pieces(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Pieces(self._tokenizer)), eos_token=list(self._tokenizer.stop_ids)
        )

    @property
    def _size(self) -> int:
        return self._tokenizer.vocab_size

    def _compiled(self, grammar: str) -> tuple[llguidance.LLMatcher, str]:
        matcher = llguidance.LLMatcher(self._pieces, grammar, log_level=0)
        fault = matcher.get_error() if matcher.is_error() else ""
        if not fault:
            try:
                self._follow(self._guide(matcher))
            except GuideError as error:
                fault = str(error)
        return matcher, " ".join(fault.split())[:300]

    def _follow(self, guide: "_Guide") -> None:
        """Raise GuideError if a form ends where no token continues it: as far as there is only one way to go."""
        for _ in range(_FOLLOWED):
            ways = np.flatnonzero(guide.allowed())
            if len(ways) > 1 or ways[0] in self._tokenizer.stop_ids:
                return
            guide.accept(int(ways[0]))


def asks_for_a_form(body: Sampled) -> bool:
    """Whether the text may not be any."""
    guided = (body.guided_json, body.guided_regex, body.guided_choice)
    return bool(body.response_format) or any(one is not None for one in guided)


def _grammars(body: Sampled) -> dict[str, str]:
    """The grammar of each field that asks for one."""
    found: dict[str, str] = {}
    form = body.response_format
    if form and form.type == "json_object":
        found["response_format"] = _json(_ANY_OBJECT, "response_format")
    if form and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise ApiError(400, "response_format: json_schema needs a schema.", param="response_format")
        found["response_format"] = _json(form.json_schema.schema_, "response_format")
    if body.guided_json is not None:
        found["guided_json"] = _json(body.guided_json, "guided_json")
    if body.guided_regex is not None:
        found["guided_regex"] = llguidance.LLMatcher.grammar_from_regex(body.guided_regex)
    if body.guided_choice is not None:
        found["guided_choice"] = ""
    return found


def _json(schema: dict[str, Any], param: str) -> str:
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON)  # type: ignore[arg-type]
    except ValueError as error:
        raise ApiError(400, f"{param}: {str(error)[:300]}", param=param) from None


class _Pieces:
    """A vocabulary as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.stop_ids[0], tokenizer.bos_id
        contents = [tokenizer.text_bytes(i) for i in range(tokenizer.vocab_size)]
        special = {*tokenizer.special_ids, *tokenizer.stop_ids}
        self.special_token_ids = [i for i, content in enumerate(contents) if not content or i in special]
        self.tokens = [content if content and i not in special else b"<%d>" % i for i, content in enumerate(contents)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class _Guide:
    """Of one continuation."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int, never: np.ndarray):
        self._matcher, self._size, self._never = matcher, size, never
        self._mask = llguidance.numpy.allocate_token_bitmask(1, size)

    def allowed(self) -> np.ndarray:
        try:
            llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        except Exception as error:  # the continuation ends with it, not the engine
            raise _lost(str(error)) from error
        if self._matcher.is_error():
            raise _lost(self._matcher.get_error())
        allowed = np.unpackbits(self._mask.view(np.uint8)[0], count=self._size, bitorder="little").astype(bool)
        allowed[self._never] = False
        if not allowed.any():
            raise _lost("no token of the vocabulary continues it")
        return allowed

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)


class _Spelling:
    """Which tokens spell which bytes.

    Attributes:
        size: of the vocabulary.
        tokens: the tokens of each sequence of bytes.
        longest: bytes of the longest.
        ends: stop tokens.
        spells_all: whether there is a token for every byte.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.size, self.ends, self._tokenizer = tokenizer.vocab_size, list(tokenizer.stop_ids), tokenizer
        self._special = {*tokenizer.special_ids, *tokenizer.stop_ids}
        self.tokens: dict[bytes, list[int]] = {}
        for index in range(self.size):
            if content := self.content(index):
                self.tokens.setdefault(content, []).append(index)
        self.longest = max(map(len, self.tokens), default=1)
        self.spells_all = all(bytes([byte]) in self.tokens for byte in range(256))

    def content(self, index: int) -> bytes:
        """The bytes that a token spells."""
        return b"" if index in self._special else self._tokenizer.text_bytes(index)

    def ends_of(self, text: bytes) -> bytearray | None:
        """For each position of a text, whether tokens spell what is behind it; None: at all positions."""
        if self.spells_all:
            return None
        found = bytearray(len(text) + 1)
        found[len(text)] = 1
        for begin in range(len(text) - 1, -1, -1):
            for end in range(begin + 1, min(begin + self.longest, len(text)) + 1):
                if found[end] and text[begin:end] in self.tokens:
                    found[begin] = 1
                    break
        return found


class Choices:
    """Texts of which a continuation is to be one."""

    def __init__(self, texts: Sequence[str], spelling: _Spelling):
        """Find out how they can be spelt.

        Raises:
            ApiError: one of them cannot.
        """
        self.spelling = spelling
        self.spelt: dict[bytes, bytearray | None] = {}
        for text in texts:
            content = text.encode(errors="replace")
            self.spelt[content] = spelling.ends_of(content)
            if (found := self.spelt[content]) is not None and not found[0]:
                message = f"guided_choice: {text[:100]!r}: no tokens of the vocabulary spell it; leave it out"
                raise ApiError(400, message, param="guided_choice")
        self.first = self.allowed(list(self.spelt), 0)

    def allowed(self, left: Sequence[bytes], position: int) -> np.ndarray:
        """The tokens that may come where `left` have the same bytes before `position`."""
        tokens = self.spelling.tokens
        allowed = np.zeros(self.spelling.size, bool)
        done: set[bytes] = set()
        for content in left:
            if len(content) == position:
                allowed[self.spelling.ends] = True
            spelt = self.spelt[content]
            for end in range(position + 1, min(position + self.spelling.longest, len(content)) + 1):
                part = content[position:end]
                if part not in done and part in tokens and (spelt is None or spelt[end]):
                    done.add(part)
                    allowed[tokens[part]] = True
        return allowed


class _ChoiceGuide:
    """Of one continuation."""

    def __init__(self, choices: Choices):
        self._choices, self._left, self._text = choices, list(choices.spelt), b""

    def allowed(self) -> np.ndarray:
        if not self._text:
            return self._choices.first
        allowed = self._choices.allowed(self._left, len(self._text))
        if not allowed.any():
            raise _lost("no token of the vocabulary continues it")
        return allowed

    def accept(self, token: int) -> None:
        part = self._choices.spelling.content(token)
        position = len(self._text)
        self._text += part
        self._left = [content for content in self._left if part and content.startswith(part, position)]


def _lost(reason: str) -> GuideError:
    reason = reason.partition("<state>")[0]  # behind it the library repeats what was generated
    return GuideError(f"the form of the text cannot be followed: {' '.join(reason.split())[:200]}")
