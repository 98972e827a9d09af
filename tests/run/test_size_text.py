"""A number of bytes is told in a unit that suits it."""

import pytest

from pangu_ms.core.size_text import size_text


@pytest.mark.parametrize(
    "num_bytes, text",
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (1 << 19, "512 KiB"),
        (3 << 19, "1.5 MiB"),
        ((1 << 30) - 1, "1024 MiB"),
        (1 << 30, "1.0 GiB"),
        (3 << 39, "1,536.0 GiB"),
    ],
)
def test_unit_by_size(num_bytes, text):
    assert size_text(num_bytes) == text


def test_form_of_gib():
    assert [size_text(size, "g") for size in (32 << 30, 3 << 29, 20 << 20)] == ["32 GiB", "1.5 GiB", "20 MiB"]
