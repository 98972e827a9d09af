"""Turns messages into token ids by a Jinja2 template, as `apply_chat_template` of transformers does; but text of a
client never becomes a special token, so that nobody can forge a turn.

A guard, which no client knows, is put around each of the client's texts and into each spelling of a special piece in
them before the template sees them. In what the template makes, only spellings without a guard are special pieces; the
text between them is encoded as text, without the guards.
"""

import functools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox

from pangu_ms.core import small_json
from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer

BUNDLED = ("openpangu", "plain")
_TURN = ("[unused9]", "[unused10]")  # begin and end of a turn of openPangu
_THINKING = (("[unused16]", "[unused17]"), ("<think>", "</think>"))  # openPangu; others
_CALLS = (  # openPangu 1, openPangu 2; others
    ("[unused11]", "[unused12]"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<tool_call>", "</tool_call>"),
)
Marks = tuple[int, int]
"""Tokens at the beginning and at the end of a reasoning, or of calls of tools."""


class TemplateError(GenerationError):
    """Messages that a template refuses."""


class ChatTemplate:
    """A template with its tokenizer.

    Attributes:
        where: what messages call it.
        takes_tools: whether it shows tools to the model.
        stop_ids: tokens that end an answer, besides those of the tokenizer.
        thinking: the tokens around a reasoning, or None.
        calls: the tokens around calls of tools, which are JSON, or None.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, where: str):
        """Compile a template.

        Raises:
            GenerationError: it is not Jinja2.
        """
        self.where, self._tokenizer = where, tokenizer
        environment = _environment()
        try:
            names = jinja2.meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise GenerationError(
                f"{where}: is no chat template: {error}; write it in Jinja2, as for transformers"
            ) from None
        self.takes_tools, self._takes_calls = "tools" in names, "tool_calls" in source
        self._special_ids = frozenset(tokenizer.markers.values())
        # A single character cannot be cut in two by a guard: it stays text.
        self._markers = {piece: i for piece, i in tokenizer.markers.items() if len(piece) > 1}
        longest_first = sorted(self._markers, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        sep = "<sep>" if "<sep>" in self._markers else tokenizer.piece_of(tokenizer.eot_id)
        self._variables = {
            "bos_token": "".join(map(tokenizer.piece_of, tokenizer.first_ids)),
            "eos_token": tokenizer.piece_of(tokenizer.eot_id),
            "end_of_turn": sep,
        }
        ends = (sep if "end_of_turn" in names else "", _TURN[1] if _TURN[1] in source else "")
        self.stop_ids = tuple(self._markers[end] for end in ends if end in self._markers)
        self.thinking, self.calls = self._first_known(_THINKING), self._first_known(_CALLS)

    def _first_known(self, pairs: Sequence[tuple[str, str]]) -> Marks | None:
        """The first of the pairs that the vocabulary has."""
        for begin, end in pairs:
            if begin in self._markers and end in self._markers:
                return self._markers[begin], self._markers[end]
        return None

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, generate: bool = True
    ) -> tuple[int, ...]:
        """Ids of a chat.

        Args:
            messages: with role and content, as in OpenAI's API.
            tools: what the model may call.
            generate: whether an answer follows.

        Raises:
            TemplateError: the template does not take such messages or tools.
            DataError: a text is no Unicode.
        """
        if tools and not self.takes_tools:
            raise TemplateError("tools: the model's chat template has none; leave them out")
        if not self._takes_calls and any(message.get("tool_calls") for message in messages):
            raise TemplateError("messages: the model's chat template has no tool_calls; leave them out")
        guard = secrets.token_hex(16)
        protected = _map_texts(
            {"messages": list(messages), "tools": list(tools) if tools else None}, self._guarded(guard)
        )
        for safe, message in zip(protected["messages"], messages):
            safe["role"] = message["role"]  # templates compare it; the server has checked it
        text = self._rendered(protected, generate)
        return (*self._with_first(self._ids(text, guard)),)

    def render(self, messages: Sequence[Mapping[str, Any]], generate: bool = True) -> str:
        """The text of a chat whose texts are trusted, such as those of a benchmark, for `encode_prompt`: special pieces
        are spelt out, and a text may spell one.

        Raises:
            TemplateError: the template does not take such messages.
        """
        return self._rendered({"messages": [dict(message) for message in messages], "tools": None}, generate)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that `render` made, or of the beginning of one."""
        return self._with_first(self._ids(text, ""))

    def _with_first(self, ids: list[int]) -> list[int]:
        """Ids that begin as every prompt of the model does."""
        first = self._tokenizer.first_ids
        return ids if tuple(ids[: len(first)]) == first else [*first, *ids]

    def _rendered(self, variables: Mapping[str, Any], generate: bool) -> str:
        try:
            return self._template.render(**variables, **self._variables, add_generation_prompt=generate)
        except TemplateError:
            raise
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TemplateError(f"messages: the model's chat template does not take them: {error}") from None

    def _guarded(self, guard: str) -> Callable[[str], str]:
        """A function that protects a client's text. White space at its ends stays outside, where templates strip it."""

        def cut(match: re.Match[str]) -> str:
            return match[0][0] + guard + match[0][1:]

        def protect(text: str) -> str:
            core = text.strip()
            if not core:
                return text
            begin = text.index(core)
            # Cut at every character that may begin a piece: pieces may overlap.
            for _ in range(len(core)):
                broken = self._special.sub(cut, core)
                if broken == core:
                    break
                core = broken
            return text[:begin] + guard + core + guard + text[begin + len(text.strip()) :]

        return protect

    def _ids(self, text: str, guard: str) -> list[int]:
        """Special pieces without a guard are special; all else is text."""
        ids: list[int] = []
        begin = 0
        for match in self._special.finditer(text):
            ids += self._plain(text[begin : match.start()].replace(guard, ""), begin > 0)
            ids.append(self._markers[match[0]])
            begin = match.end()
        return ids + self._plain(text[begin:].replace(guard, ""), begin > 0)

    def _plain(self, text: str, behind_special: bool) -> list[int]:
        """Ids of a text; a piece that marks structure is spelt by its characters."""
        if not text:
            return []
        encode = self._tokenizer.encode_behind_special if behind_special else self._tokenizer.encode
        ids: list[int] = []
        for index in encode(text):
            if index not in self._special_ids:
                ids.append(index)
                continue
            for character in self._tokenizer.piece_of(index):
                ids += self._character(character)
        return ids

    def _character(self, character: str) -> list[int]:
        """Ids of one character, without the space that encoding may put before a text."""
        whole = self._tokenizer.id_of(character)
        if whole is not None and whole not in self._special_ids:
            return [whole]
        pieces = (self._tokenizer.id_of(f"<0x{byte:02X}>") for byte in character.encode())
        return [i for i in pieces if i is not None]


def load_chat_template(given: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of a model.

    Args:
        given: "auto" (the tokenizer's own; else openPangu's, if the vocabulary has its pieces; else a plain one), one
            of BUNDLED, or a file.
        tokenizer: the model's.

    Raises:
        GenerationError: there is no such file, or it is no template.
        DataError: the tokenizer's own is damaged.
    """
    if given == "auto":
        if own := tokenizer.chat_template:
            return ChatTemplate(own, tokenizer, "the tokenizer's chat template")
        given = "openpangu" if all(piece in tokenizer.markers for piece in _TURN) else "plain"
    if given == "openpangu" and not all(piece in tokenizer.markers for piece in _TURN):
        raise GenerationError(f"--chat-template openpangu: the vocabulary has no {_TURN[0]}; use plain, or name a file")
    if given in BUNDLED:
        source = (resources.files(__package__) / "templates" / f"{given}.jinja").read_text(encoding="utf-8")
        return ChatTemplate(source.rstrip("\n"), tokenizer, given)
    try:
        source = small_json.read_bytes(Path(given)).decode("utf-8-sig")
    except ValueError as error:
        raise GenerationError(
            f"--chat-template {given}: cannot be read ({error}); name a file, or one of auto, {', '.join(BUNDLED)}"
        ) from None
    return ChatTemplate(source, tokenizer, given)


@functools.cache
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """As that of transformers, whose templates are written for it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _refuse(message: str) -> NoReturn:
    raise TemplateError(f"messages: {message}")


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)


_FIELDS = frozenset(
    "messages tools role content name reasoning_content refusal tool_calls tool_call_id id type function arguments"
    " description parameters properties required items enum strict".split()
)
_TYPES = ("function", "object", "array", "string", "number", "integer", "boolean", "null")


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with other texts, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        changed = {}
        for key, one in value.items():
            # Templates ask for the API's fields by name, and compare the types of a schema.
            key = key if key in _FIELDS else change(key)
            changed[key] = one if key == "type" and one in _TYPES else _map_texts(one, change)
        return changed
    if isinstance(value, Sequence):
        return [_map_texts(one, change) for one in value]
    return value
