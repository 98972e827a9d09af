"""Registry of the functions that read the extra inputs of model families, one function per name. No mindspore import.

A family declares names in `ModelConfig.extra_inputs`; the functions make the arrays from records, row numbers and ids.
"""

from collections.abc import Callable, Iterable

import numpy as np

from pangu_ms.core.errors import DataError
from pangu_ms.data.records import RecordSet

Source = Callable[[RecordSet, np.ndarray, np.ndarray], np.ndarray]
"""Called with records, row numbers (int64 [B]) and the rows' ids (int32 [B, S+1]); returns an array whose first
dimension is B."""
SOURCES: dict[str, Source] = {}
"""The function of each extra input, by the name of the input."""


def require_sources(names: Iterable[str]) -> None:
    """Raise DataError for an input that no function can read."""
    for name in names:
        if name not in SOURCES:
            raise DataError(f"{name}: the model reads this input, and no records have it; known: {sorted(SOURCES)}")


def read_extra(names: Iterable[str], records: RecordSet, rows: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The extra inputs of rows by name, in the order of the names."""
    return {name: SOURCES[name](records, rows, ids) for name in names}
