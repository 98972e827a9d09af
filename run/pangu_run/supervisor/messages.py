"""The messages of launchers and ranks, and their validation.

Every received message is validated here first. The result contains only the fields that are defined here, with the
types and bounds that are defined here, and texts without control characters. If a message breaks a rule, the result is
None, and the message is dropped. So no message of a peer can raise an exception later.

    from a rank    {"phase", "step", "time", ...}: see pangu_ms/core/heartbeat.py
    from a host    {"is": "beat", "attempt", "rank", "pid" and the rank's own},
                   {"is": "exit", "attempt", "rank", "code", "time", "words" (last lines of its log), "started", "oom"},
                   {"is": "stacks", "attempt", "rank", "path", "lines"}, {"is": "signal", "name"}
    from the leader    {"do": "welcome"}, {"do": "start", "attempt", "resume", "scheduler" ([host, port] or None)},
                   {"do": "signal", "name"}, {"do": "kill"}, {"do": "stacks", "ranks"}, {"do": "end", "code", "text"}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pangu_ms.core.heartbeat import PHASES
from pangu_ms.core.stop_signals import STOP_SIGNALS
from pangu_run.report.log_lines import clean

Message = dict[str, Any]
Reader = Callable[[Any], Any]
"""A function that validates one field: it returns the value or raises ValueError."""
MAX_NUMBER = 1 << 50
"""Largest value of counts, and of seconds and tokens, which are floats: floats represent all integers up to this
value."""
MAX_ITEMS, MAX_NAME = 1 << 16, 256


def _require(holds: bool, value: Any) -> Any:
    if not holds:
        raise ValueError
    return value


def _whole(least: int, most: int) -> Reader:
    return lambda value: _require(type(value) is int and least <= value <= most, value)


def _one_of(values: tuple[str, ...]) -> Reader:
    return lambda value: _require(type(value) is str and value in values, value)


def _or_none(reader: Reader) -> Reader:
    return lambda value: None if value is None else reader(value)


def _list_of(reader: Reader) -> Reader:
    return lambda value: [reader(item) for item in _require(type(value) is list and len(value) <= MAX_ITEMS, value)]


def _flag(value: Any) -> bool:
    return _require(type(value) is bool, value)


def _number(value: Any) -> float:
    return _require(type(value) in (int, float) and 0 <= value <= MAX_NUMBER, value)  # false for NaN and infinity


def _text(value: Any) -> str:
    return clean(_require(type(value) is str, value).encode(errors="replace").replace(b"\n", b" "))


def _name(value: Any) -> str:
    return _text(_require(type(value) is str and len(value) <= MAX_NAME, value))


def _address(value: Any) -> tuple[str, int]:
    host, port = _require(type(value) is list and len(value) == 2, value)
    return _name(host), _whole(1, 65535)(port)


_count, _attempt, _signal = (
    _whole(0, MAX_NUMBER),
    _whole(1, MAX_NUMBER),
    _one_of(tuple(number.name for number in STOP_SIGNALS)),
)


@dataclass(frozen=True)
class Form:
    """The fields of one kind of message, with their validation."""

    required: Mapping[str, Reader] = field(default_factory=dict)
    optional: Mapping[str, Reader] = field(default_factory=dict)

    def read(self, message: Any) -> Message | None:
        """The message's fields; None if a field is missing or wrong."""
        if not isinstance(message, dict):
            return None
        try:
            given = {name: reader(message[name]) for name, reader in self.required.items()}
            return given | {name: reader(message[name]) for name, reader in self.optional.items() if name in message}
        except (KeyError, ValueError):
            return None


HELLO = Form({"host": _name, "version": _name, "nonce": _name})
"""The first line of either side, which is not authenticated."""
JOIN = Form({"digest": _name})
BEAT = Form(
    {"phase": _one_of(PHASES), "step": _or_none(_count), "time": _number},
    {"tokens_per_second": _number, "saved": _count},
)
_OF_RANK = {"attempt": _attempt, "rank": _count}
HOST_MESSAGES = {
    "beat": Form(_OF_RANK | {"pid": _count} | dict(BEAT.required), BEAT.optional),
    "exit": Form(
        _OF_RANK | {"code": _whole(-128, 255), "time": _number, "words": _list_of(_text), "started": _flag},
        {"oom": _flag},
    ),
    "stacks": Form(_OF_RANK | {"path": _text, "lines": _list_of(_text)}),
    "signal": Form({"name": _signal}),
}
LEADER_COMMANDS = {
    "welcome": Form(),
    "start": Form({"attempt": _attempt, "resume": _flag, "scheduler": _or_none(_address)}),
    "signal": Form({"name": _signal}),
    "kill": Form(),
    "stacks": Form({"ranks": _list_of(_count)}),
    "end": Form({"code": _whole(0, 255), "text": _text}),
}


def from_host(message: Any) -> Message | None:
    """A valid message of another host's launcher."""
    return _read("is", HOST_MESSAGES, message)


def from_leader(message: Any) -> Message | None:
    """A valid command of the leader."""
    return _read("do", LEADER_COMMANDS, message)


def _read(key: str, forms: Mapping[str, Form], message: Any) -> Message | None:
    kind = message.get(key) if isinstance(message, dict) else None
    fields = forms[kind].read(message) if isinstance(kind, str) and kind in forms else None
    return None if fields is None else {key: kind} | fields
