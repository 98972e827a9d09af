"""JSON that a user or a crash may have damaged: read whole, but no device, nothing without end, nothing nested until Python gives up.

Every error is a ValueError that says in a few words what is wrong; who reads the file says which file and what to do.
"""

import json
from pathlib import Path
from typing import Any

LIMIT = 128 << 20
"""Bytes; the largest such file, a tokenizer.json of 260,000 pieces, has 33 MB."""
_CUT = 40  # characters of a name that are shown, and digits of a whole number: transformers writes 10**30 for "no limit"


class Missing(ValueError):
    """There is no such file."""


def read_object(path: Path, finite: bool = True) -> dict[str, Any]:
    """The object in a JSON file; see `parse`.

    Raises:
        Missing: there is no file.
        ValueError: what is wrong with it, in a few words.
    """
    return parse_object(read_bytes(path), finite)


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """The content of an ordinary file of at most `limit` bytes.

    Raises:
        Missing: there is no file.
        ValueError: what is wrong with it, in a few words.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("is not an ordinary file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Missing(error.strerror) from None
    except OSError as error:
        raise ValueError(error.strerror) from None
    if len(content) > limit:
        raise ValueError(f"has more than {limit:,} bytes")
    return content


def parse_object(content: bytes | str, finite: bool = True) -> dict[str, Any]:
    """The JSON object that these bytes are; see `parse`.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    tree = parse(content, finite)
    if not isinstance(tree, dict):
        raise ValueError(f"a {type(tree).__name__}, not an object")
    return tree


def parse(content: bytes | str, finite: bool = True) -> Any:
    """The JSON value that these bytes are: no key twice in an object, no whole number of more than 40 digits.

    Args:
        finite: refuse NaN and infinity, which JSON does not have and Python writes.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    hooks: dict[str, Any] = {"parse_constant": _refused, "parse_float": _float} if finite else {}
    try:
        return json.loads(content, object_pairs_hook=_object, parse_int=_whole, **hooks)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in made if names.count(name) > 1)[:_CUT]!r} stands twice in one object")
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


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
