"""Reads and writes messages in protobuf's wire format, without a schema.

The protobuf package is not used, because mindspore cannot be imported after it. Source: protobuf.dev, "Encoding".
"""

from collections.abc import Iterator

Bytes = bytes | memoryview
"""Type of an encoded message. The parts of a message have its type, so that those of a memoryview are not copies."""

VARINT, FIXED64, MESSAGE, FIXED32 = 0, 1, 2, 5  # wire types; groups (3, 4) are not in use
# A varint of 64 bits has at most ten bytes of seven bits each.
_MAX_SHIFT = 63


def fields(message: Bytes) -> Iterator[tuple[int, int | Bytes, Bytes]]:
    """Number, value and whole text of each field of a message.

    Raises:
        ValueError: the bytes end inside a field, or are not a field.
    """
    start = 0
    while start < len(message):
        value: int | Bytes
        tag, at = _varint(message, start)
        size = {FIXED64: 8, FIXED32: 4}.get(tag & 7, 0)
        if tag & 7 == VARINT:
            value, end = _varint(message, at)
        elif size or tag & 7 == MESSAGE:
            size, at = (size, at) if size else _varint(message, at)
            value, end = message[at : at + size], at + size
        else:
            raise ValueError(f"byte {start}: no field")
        if end > len(message):
            raise ValueError(f"byte {start}: cut off")
        yield tag >> 3, value, message[start:end]
        start = end


def values(message: Bytes) -> Iterator[tuple[int, int | Bytes]]:
    """Number and value of each field of a message."""
    return ((number, value) for number, value, _ in fields(message))


def number(value: int | Bytes) -> int:
    """The value of a varint field.

    Raises:
        ValueError: the field has another wire type.
    """
    if not isinstance(value, int):
        raise ValueError("a field that must be a number holds bytes")
    return value


def content(value: int | Bytes) -> Bytes:
    """The bytes of a field with a message, a text or a fixed-size number.

    Raises:
        ValueError: the field is a varint.
    """
    if isinstance(value, int):
        raise ValueError("a field that must hold bytes is a number")
    return value


def signed(value: int | Bytes) -> int:
    """The int32 or int64 that a varint stands for."""
    unsigned = number(value)
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def varint(value: int) -> bytes:
    """Encode an integer with seven bits per byte, the lowest first; a negative one as 64 bits."""
    value &= (1 << 64) - 1
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def number_field(number: int, value: int) -> bytes:
    """A field with a whole number."""
    return varint(number << 3 | VARINT) + varint(value)


def message_field(number: int, content: bytes) -> bytes:
    """A field with a message or a text."""
    return varint(number << 3 | MESSAGE) + varint(len(content)) + content


def _varint(message: Bytes, at: int) -> tuple[int, int]:
    """The number that starts here, and where it ends."""
    value = shift = 0
    while at < len(message) and shift <= _MAX_SHIFT:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError(f"byte {at}: cut off inside a number")
