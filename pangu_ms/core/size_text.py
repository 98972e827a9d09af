"""A number of bytes as text, and back."""

import re

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def size_text(num_bytes: float, gib_format: str = ",.1f") -> str:
    """A number of bytes in the largest unit of which it is at least one: "5.4 GiB", "512 MiB", "1.6 KiB", "12 bytes".

    Args:
        num_bytes: not negative.
        gib_format: format of a number of GiB; smaller units show two digits at least.
    """
    for unit, name in _UNITS:
        if (number := num_bytes / unit) >= 1:
            form = gib_format if name == "GiB" else ".0f" if number >= 10 else ".1f"
            return f"{number:{form}} {name}"
    return f"{num_bytes:.0f} bytes"


_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_size(text: str) -> int:
    """The number of bytes that a text such as "4GB" (10^9), "500 MiB" (2^20) or "65536" stands for.

    Raises:
        ValueError: it is no such text, or less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    factor = _BYTES.get(match[2].upper()) if match else None
    if match is None or factor is None or (number := int(float(match[1]) * factor)) < 1:
        raise ValueError(f"{text!r:.40}: must be a size of at least one byte, such as 4GB, 500MB or 2GiB")
    return number
