"""Reads the file of a rank table as a JSON object, and reports the faults of the file itself."""

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.core.console import printable

MAX_BYTES = 32 << 20
"""Maximum size of a table. A table of 2048 ranks takes 0.3 MB, so a larger file is not a rank table."""
MAX_LEVELS = 32
"""Maximum nesting. A table has six levels; additional keys may add some."""
BOM = b"\xef\xbb\xbf"
KNOWN_NAMES = ("jobstart_hccl.json", "hccl.json")
"""File names of ModelArts and of Ascend Operator; on ModelArts, RANK_TABLE_FILE names the directory of the file."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a rank table."""

    location: str
    """`server_list[1].device[3].rank_id`, `line 3 column 7`, or `file`."""
    found: str
    rule: str
    """The rule, and what to do."""

    def as_dict(self) -> dict[str, str]:
        """The fault as `pangu ranktable check --json` prints it."""
        return {"place": self.location, "found": self.found, "rule": self.rule}

    def __str__(self) -> str:
        return printable(f"{self.location}: {self.found}; {self.rule}", keep="")


class _Unusable(Exception):
    """A fault after which nothing further can be checked."""

    def __init__(self, location: str, found: str, rule: str):
        self.fault = Fault(location, found, rule)


class JsonObject(dict):
    """A JSON object that records which of its keys occur more than once; the last value counts."""

    doubled: tuple[str, ...] = ()


def load(path: Path | str, lenient: bool = False) -> tuple[JsonObject | None, list[Fault]]:
    """Read a file that should hold one JSON object.

    Args:
        path: the file.
        lenient: accept a byte order mark.

    Returns:
        the object, None if there is none; and the faults.
    """
    faults: list[Fault] = []
    try:
        text = _text(_bytes(Path(path)), faults, lenient)
        value = _value(text, faults)
    except _Unusable as error:
        return None, [*faults, error.fault]
    return value, faults


def _bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = [name for name in KNOWN_NAMES if (path / name).is_file()]
            raise _Unusable(
                "file",
                "is a directory",
                f"a rank table is a file; name {path / inside[0] if inside else 'the file in it'}",
            )
        if not stat.S_ISREG(status.st_mode):
            raise _Unusable(
                "file", "is not a regular file", "every rank reads it again; save it as a file and name that"
            )
        if status.st_size > MAX_BYTES:
            raise _Unusable(
                "file",
                f"has {status.st_size >> 20} MiB",
                f"a rank table has at most {MAX_BYTES >> 20} MiB; name the right file",
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _Unusable(
            "file",
            "is not there",
            "name another, make one (`pangu ranktable make`) or wait for it (`pangu ranktable wait`)",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _Unusable(
            "file",
            f"cannot be read ({getattr(error, 'strerror', None) or error})",
            "name a file that this user can read",
        ) from error


def _text(data: bytes, faults: list[Fault], lenient: bool) -> str:
    if data.startswith(BOM):
        data = data[len(BOM) :]
        if not lenient:
            faults.append(
                Fault(
                    "line 1 column 1",
                    "a byte order mark",
                    "HCCL reads plain UTF-8; `pangu ranktable convert` writes the file without it",
                )
            )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Unusable(
            f"line {line}", f"byte 0x{data[error.start]:02x} is not UTF-8", "rank tables are UTF-8; save the file so"
        ) from error
    if not text.strip():
        raise _Unusable(
            "file", "is empty", "wait for who writes it (`pangu ranktable wait`), or make one (`pangu ranktable make`)"
        )
    return text


def _value(text: str, faults: list[Fault]) -> JsonObject:
    constants: list[str] = []
    try:
        # NaN and Infinity are read as None (the result of append) and reported below.
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=constants.append)
    except json.JSONDecodeError as error:
        raise _syntax(text, error) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # a number with more digits than Python converts
        raise _Unusable(
            "file", "has a number of thousands of digits", "numbers in a rank table are small; name the right file"
        ) from error
    if not isinstance(value, JsonObject):
        raise _Unusable("file", f"is {_kind(value)}", "a rank table is one JSON object {...}; name the right file")
    faults += [
        Fault("file", f"has {name}", "JSON has no such value; write a string") for name in dict.fromkeys(constants)
    ]
    faults += _doubled(value, "")
    return value


def _syntax(text: str, error: json.JSONDecodeError) -> _Unusable:
    location = f"line {error.lineno} column {error.colno}"
    line = text.splitlines()[error.lineno - 1].strip() if error.lineno <= len(text.splitlines()) else ""
    if "//" in line or line.startswith("#"):
        return _Unusable(location, "a comment", "JSON has no comments; remove it")
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return _Unusable(
            location,
            "the file ends in the middle",
            "it is truncated or still being written; copy it again, or `pangu ranktable wait`",
        )
    return _Unusable(location, error.msg[0].lower() + error.msg[1:], "must be JSON; mend this line")


def _pairs(pairs: list[tuple[str, Any]]) -> JsonObject:
    made = JsonObject(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        made.doubled = tuple(name for name in made if names.count(name) > 1)
    return made


def _doubled(value: Any, location: str, levels: int = MAX_LEVELS) -> list[Fault]:
    if not levels:
        raise _too_deep()
    faults = []
    if isinstance(value, JsonObject):
        rule = "a key stands once in an object; remove all but one"
        faults += [Fault(join(location, name), "is given more than once", rule) for name in value.doubled]
        below = [(item, join(location, name)) for name, item in value.items()]
    else:
        below = [(item, f"{location}[{i}]") for i, item in enumerate(value)]
    for item, where in below:
        if isinstance(item, (dict, list)):
            faults += _doubled(item, where, levels - 1)
    return faults


def _too_deep() -> _Unusable:
    return _Unusable("file", "is nested too deeply", "a rank table has at most six levels; name the right file")


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def join(location: str, name: str) -> str:
    """Location of a member of an object."""
    name = name if name.isascii() and name.isprintable() else json.dumps(name)
    return f"{location}.{name}" if location else name
