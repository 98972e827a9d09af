"""Continuations of a given form: a JSON value, a choice, a match of a regular expression; by the library llguidance."""

import functools
import json
import re
import threading
from collections.abc import Callable
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.sampling import Guide
from pangu_ms.serve.errors import ApiError
from pangu_ms.serve.protocol import Sampled

# Of white space between the tokens of JSON a weak model would otherwise write as much as it may, until max_tokens.
_JSON = {"whitespace_pattern": r"\x20?"}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Grammars:
    """Makes guides for the continuations of one tokenizer. Its methods may be called in any thread."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._matcher = functools.lru_cache(maxsize=64)(self._compiled)

    def of(self, body: Sampled) -> Callable[[], Guide] | None:
        """What makes the guide of a request; None if the text may be any.

        Raises:
            ApiError: the request names several forms, or one that cannot be used.
        """
        asked = _grammars(body)
        if not asked:
            return None
        if len(asked) > 1:
            raise ApiError(400, f"{' and '.join(asked)} exclude each other; leave one out.", param=list(asked)[1])
        ((param, grammar),) = asked.items()
        with self._lock:
            matcher, fault = self._matcher(grammar)
        if fault:
            raise ApiError(400, f"{param}: {fault}", param=param)
        return lambda: self._guide(matcher)

    def _guide(self, matcher: llguidance.LLMatcher) -> "_Guide":
        return _Guide(matcher.deep_copy(), self._size, self._never)

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
                self._guide(matcher).allowed()
            except GenerationError as error:
                fault = str(error)
        return matcher, " ".join(fault.split())[:300]


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
        expression = "|".join(re.escape(choice) for choice in body.guided_choice)
        found["guided_choice"] = llguidance.LLMatcher.grammar_from_regex(expression)
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


def _lost(reason: str) -> GenerationError:
    reason = reason.partition("<state>")[0]  # behind it the library repeats what was generated
    return GenerationError(f"the form of the text cannot be followed: {' '.join(reason.split())[:200]}")
