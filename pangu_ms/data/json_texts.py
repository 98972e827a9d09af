"""Recognises JSON lines and JSON arrays by their content, and extracts the text of their records."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pangu_ms.data.streams import LONGEST

LINES, ARRAY, TEXT = "JSON lines", "a JSON array", "plain text"
LINE_SUFFIXES = (".jsonl", ".ndjson")
DEFAULT_FIELDS = ("text", "messages")
BOM = b"\xef\xbb\xbf"
_HEAD = 1 << 16
"""Bytes at the beginning of a file that decide its form. If the first line is longer, it is read to its end."""
_ARRAY_BEGIN = re.compile(rb'\s*\[\s*\{\s*["}]')
_WHITE, _DECODER = " \t\r\n", json.JSONDecoder()
_SPACE, _OPENING = re.compile(r"[ \t\r\n]*"), re.compile(r"\ufeff?[ \t\r\n]*\[")
_CLOSING, _NEXT = re.compile(r"[ \t\r\n]*\]"), re.compile(r"[ \t\r\n]*([,\]])")
_MOST_NAMES, _DEEPEST_NAME = 8, 4
"""Limits of the list of field names in an error message: their number, and the depth of nested names."""


def form_of(stream: BinaryIO, suffix: str) -> tuple[str, list[dict]]:
    """The form of a file, and the records at its beginning.

    A file that begins with `[{"` holds a JSON array. Any other file holds JSON lines if its suffix says so or if more
    than half of its first lines are JSON objects; otherwise it is plain text.

    Args:
        stream: the content, positioned at its beginning.
        suffix: the suffix of the file's name, without that of its compression.
    """
    head = stream.read(_HEAD)
    if _ARRAY_BEGIN.match(head.removeprefix(BOM)):
        return ARRAY, _first_of_array(head.removeprefix(BOM))
    begun = head.removeprefix(BOM).lstrip()
    if begun[:1] == b"{" and b"\n" not in begun:
        head += stream.readline(LONGEST)
    found = head.split(b"\n")
    if len(head) == _HEAD and len(found) > 1:
        found.pop()  # the last line is probably cut off
    found = [line for line in found if line.strip()]
    records = [record for record in map(_object, found) if record]
    if suffix in LINE_SUFFIXES or 2 * len(records) > len(found):
        return LINES, records
    return TEXT, []


def _object(line: bytes) -> dict | None:
    try:
        record = parse(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _first_of_array(head: bytes) -> list[dict]:
    text = head.decode("utf-8", "ignore")
    try:
        record, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
    except (ValueError, RecursionError):
        return []
    return [record]


def parse(line: bytes) -> Any:
    """The JSON value of a line. A byte order mark at its beginning is skipped: `cat a b` leaves such marks inside a
    file.

    Raises:
        ValueError: the line is not JSON; the message is the reason.
    """
    try:
        return json.loads(line.removeprefix(BOM).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error


def elements(stream: BinaryIO) -> Iterator[Any]:
    """Yield the values of a JSON array one at a time, so that the whole array is never in memory.

    Raises:
        ValueError: the stream is not exactly one array, or a value is not JSON or is longer than LONGEST.
    """
    text, number = _JsonBuffer(stream), 1
    text.take(_OPENING)
    if text.take_if_next(_CLOSING):
        return text.require_end()
    while True:
        yield text.value(f"value {number} of the array")
        if text.take(_NEXT)[1] == "]":
            return text.require_end()
        number += 1


class _JsonBuffer:
    """A buffer with the unparsed part of a JSON stream, which loads more of the stream when needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._ended = "", 0, False

    def take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Consume what matches `pattern`; only white space may come before it.

        Raises:
            ValueError: something else comes next.
        """
        if found := self.take_if_next(pattern):
            return found
        raise ValueError(f"{self._text[self._at : self._at + 20]!r} is no part of a JSON array")

    def take_if_next(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Like `take`, but returns None if something else comes next."""
        while not (found := pattern.match(self._text, self._at)):
            if self._ended or self._text[self._at : self._at + 20].strip(_WHITE):
                return None
            self._grow()
        self._at = found.end()
        return found

    def value(self, name: str) -> Any:
        """Consume a JSON value and return it; the message of a ValueError begins with `name`."""
        while True:
            if space := _SPACE.match(self._text, self._at):
                self._at = space.end()
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # a number at the end of the buffer may continue in the stream
                    self._at = end
                    return value
            except RecursionError:
                raise ValueError(f"{name}: nested too deeply") from None
            except ValueError as error:
                if self._ended:
                    raise ValueError(f"{name}: {error}") from None
            if len(self._text) - self._at > LONGEST:
                raise ValueError(f"{name}: no JSON, or longer than {LONGEST:,} characters")
            self._grow()

    def require_end(self) -> None:
        """Raise ValueError if anything but white space is left."""
        while not (rest := self._text[self._at :].strip(_WHITE)) and not self._ended:
            self._at = len(self._text)
            self._grow()
        if rest:
            raise ValueError(f"{rest[:20]!r} behind its end; a file holds one array")

    def _grow(self) -> None:
        # The buffer at least doubles. With a fixed step, a long value would be parsed from its beginning too many
        # times.
        block = self._stream.read(max(1 << 20, len(self._text) - self._at))
        self._ended = not block
        try:
            self._text, self._at = self._text[self._at :] + self._decoder.decode(block, final=self._ended), 0
        except UnicodeDecodeError:
            raise ValueError("not UTF-8") from None


def text_and_domain(record: Any, field: str | None, default_domain: str) -> tuple[str, str]:
    """The text of a record, and its domain.

    Args:
        record: a JSON value.
        field: name of the field with the text, `a.b` for b inside a; by default `text`, or else `messages`. Its value
            is a string or a conversation.
        default_domain: the domain of a record that names none.

    Raises:
        ValueError: the record has no text; the message is the reason.
    """
    if not isinstance(record, dict):
        raise ValueError(f"no field {field or DEFAULT_FIELDS[0]}: it is no JSON object")
    names = (field,) if field else DEFAULT_FIELDS
    name = next((name for name in names if look_up(record, name) is not None), names[0])
    text, domain = look_up(record, name), record.get("domain") or default_domain
    if text is None:
        raise ValueError(f"no field {name}; there are {shown_names(record)}")
    if isinstance(text, list):
        text = conversation(text, name)
    for label, value in ((name, text), ("domain", domain)):
        if not isinstance(value, str):
            raise ValueError(f"{label} is {type(value).__name__}, not a string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{label} has a lone surrogate") from None
    return text, domain


def look_up(record: dict, name: str) -> Any:
    """The value of `name`, or of b inside a for `a.b`; None if there is none."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def conversation(messages: list, name: str) -> str:
    """Format a conversation as plain text, with one line `role: content` per message.

    Args:
        messages: objects with role and content. The content is a string or, in OpenAI's format, a list of parts, some
            of which have a text.
        name: name of the field, for the error message.

    Raises:
        ValueError: an element is not such an object.
    """
    lines = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list):
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(text for text in texts if isinstance(text, str))
        if not (isinstance(role, str) and isinstance(content, str)):
            raise ValueError(f"{name} is a list, but not of messages with role and content")
        lines.append(f"{role}: {content}")
    return "\n".join(lines)


def has_field(record: dict, field: str | None) -> bool:
    """Whether a record has the field that its text is taken from."""
    return any(look_up(record, name) is not None for name in ((field,) if field else DEFAULT_FIELDS))


def field_names(record: dict, prefix: str = "", depth: int = 1) -> Iterator[str]:
    """Names of the fields that are strings or lists, nested ones as `a.b`."""
    for name, value in record.items():
        if isinstance(value, (str, list)):
            yield prefix + name
        elif isinstance(value, dict) and depth < _DEEPEST_NAME:
            yield from field_names(value, f"{prefix}{name}.", depth + 1)


def shown_names(record: dict) -> str:
    """The names of a record's fields, abbreviated for an error message."""
    names = list(field_names(record))
    return (", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")) or "none with text"
