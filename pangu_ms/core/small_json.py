"""Reads JSON that a user or a crash may have damaged. Devices, endless files and deep nesting are refused, so that they
can neither block the reader nor exhaust memory or Python's stack.

Every error is a ValueError that says in a few words what is wrong; the caller adds which file it is and what to do.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 128 << 20
"""Largest file size in bytes; the largest file that is expected, a tokenizer.json of 260,000 pieces, has 33 MB."""
MAX_DEPTH = 100
_CUT = 40
"""Characters of a name that a message shows, and largest number of digits of an integer: transformers writes 10**30 for
"no limit"."""


class Missing(ValueError):
    """There is no such file."""


@dataclass(frozen=True)
class Between:
    """Form of a number from `least` to `most`, NaN excluded; see `misfit`."""

    least: float
    most: float

    def __contains__(self, value: Any) -> bool:
        return self.least <= value <= self.most


TIME = Between(0, 1e11)
"""Form of a time in seconds, since the epoch or between two moments, that a calendar can show."""
Form = type | range | Between | frozenset | None | tuple | list | dict


def read_object(path: Path, finite: bool = True, form: Form = dict) -> dict[str, Any]:
    """The object in a JSON file; see `parse` and `misfit`.

    Raises:
        Missing: there is no file.
        ValueError: what is wrong with it, in a few words.
    """
    found = parse_object(read_bytes(path), finite)
    if wrong := misfit(found, form):
        raise ValueError(wrong)
    return found


def read_bytes(path: Path, limit: int = LIMIT, pipes: bool = False) -> bytes:
    """The content of an ordinary file of at most `limit` bytes.

    Args:
        path: the file.
        limit: largest accepted size; a larger file cannot be the one that was meant.
        pipes: also accept what is not a regular file, such as the /dev/fd/63 of a shell's <(...).

    Raises:
        Missing: there is no file.
        ValueError: what is wrong with it, in a few words.
    """
    try:
        if not pipes and path.exists() and not path.is_file():
            raise ValueError("is not an ordinary file")
        with open(path, "rb") as file:
            # One byte more than allowed shows that there is too much. The size is not asked for: a pipe has none.
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing(error.strerror) from None
    except OSError as error:
        raise ValueError(error.strerror) from None
    if len(content) > limit:
        raise ValueError(f"has more than {limit:,} bytes")
    return content


def parse_object(content: bytes | str, finite: bool = True) -> dict[str, Any]:
    """The JSON object that these bytes encode; see `parse`.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    tree = parse(content, finite)
    if not isinstance(tree, dict):
        raise ValueError(f"a {type(tree).__name__}, not an object")
    return tree


def misfit(value: Any, form: Form, place: str = "") -> str:
    """Say in a few words where a JSON value does not have the expected form; "" if it has.

    Args:
        form: a type (a bool is not an int, an int is also a float); a range or a Between of numbers; a frozenset of
            texts; None for null or a missing key; (form, form) for any of them; [form] for a list of them; {key: form}
            for an object with at least these keys.
        place: path of the value inside the document, for the message.
    """
    if isinstance(form, tuple):
        found = [misfit(value, one, place) for one in form]
        return "" if "" in found else found[0]
    if isinstance(form, list) and isinstance(value, list):
        return next(filter(None, (misfit(item, form[0], f"{place}[{i}]") for i, item in enumerate(value))), "")
    if isinstance(form, dict) and isinstance(value, dict):
        return next(
            filter(None, (misfit(value.get(key), below, f"{place}.{key}".lstrip(".")) for key, below in form.items())),
            "",
        )
    if _fits(value, form):
        return ""
    return f"{place or 'it'} is " + (type(value).__name__ if isinstance(value, (list, dict)) else repr(value)[:_CUT])


def _fits(value: Any, form: Form) -> bool:
    if form is None:
        return value is None
    # type() instead of isinstance(), for which True is an int.
    if isinstance(form, (range, Between)):
        return type(value) in ((int,) if isinstance(form, range) else (int, float)) and value in form
    if isinstance(form, frozenset):
        return isinstance(value, str) and value in form
    return isinstance(form, type) and (type(value) is form or form is float and type(value) is int)


def parse(content: bytes | str, finite: bool = True) -> Any:
    """The JSON value that these bytes encode. Duplicate keys in an object and integers of more than 40 digits are
    refused.

    Args:
        finite: refuse NaN and infinity, which JSON does not have and Python writes.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    hooks: dict[str, Any] = {"parse_constant": _refuse_constant, "parse_float": _float} if finite else {}
    try:
        tree = json.loads(content, object_pairs_hook=_object, parse_int=_whole, **hooks)
        _require_flat(tree)
        return tree
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _require_flat(tree: Any) -> None:
    """Refuse deep nesting: readers recurse with two or three function calls a level."""
    level = [tree] if isinstance(tree, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        below = (value for node in level for value in (node.values() if isinstance(node, dict) else node))
        level = [value for value in below if isinstance(value, (dict, list))]
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"key {next(name for name in made if names.count(name) > 1)[:_CUT]!r} stands twice in one object"
        )
    return made


def _whole(text: str) -> int:
    if len(text) > _CUT:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if number - number != 0:  # infinite
        raise ValueError(f"{text[:_CUT]} is larger than any number")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
