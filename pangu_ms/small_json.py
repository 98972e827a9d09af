"""JSON files of others: read whole, but neither a device, nor without end, nor nested until Python gives up."""

import json
from pathlib import Path
from typing import Any

LIMIT = 128 << 20
"""Bytes; the largest such file, a tokenizer.json of 260,000 pieces, has 33 MB."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    return parse_object(read_bytes(path))


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """The content of an ordinary file of at most `limit` bytes.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("is not an ordinary file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(error.strerror) from None
    if len(content) > limit:
        raise ValueError(f"has more than {limit:,} bytes")
    return content


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object that these bytes are.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    try:
        tree = json.loads(content)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"a {type(tree).__name__}, not an object")
    return tree
