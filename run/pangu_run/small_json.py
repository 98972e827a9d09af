"""JSON that a user or a crash may have damaged: read whole, but no device, nothing without end, nothing nested until Python gives up.

Every error is a ValueError that says in a few words what is wrong; who reads the file says which file and what to do.
"""

import json
from pathlib import Path
from typing import Any

LIMIT = 128 << 20
"""Bytes; the largest such file, a tokenizer.json of 260,000 pieces, has 33 MB."""
MAX_DEPTH = 100
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


def read_bytes(path: Path, limit: int = LIMIT, pipes: bool = False) -> bytes:
    """The content of an ordinary file of at most `limit` bytes.

    Args:
        path: the file.
        limit: beyond which it is another file than the one that was meant.
        pipes: take anything that can be read, such as the /dev/fd/63 of a shell's <(...).

    Raises:
        Missing: there is no file.
        ValueError: what is wrong with it, in a few words.
    """
    try:
        if not pipes and path.exists() and not path.is_file():
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
        tree = json.loads(content, object_pairs_hook=_object, parse_int=_whole, **hooks)
        _require_flat(tree)
        return tree
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _require_flat(tree: Any) -> None:
    """Who reads it goes down by calls of functions, two or three for each level."""
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
