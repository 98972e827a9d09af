"""A number of bytes as text."""

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
