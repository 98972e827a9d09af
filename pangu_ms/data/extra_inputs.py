"""Registry of the functions that read the extra inputs of model families, one function per name. No mindspore import.

A family declares names in `ModelConfig.extra_inputs`; the functions make the arrays from the model's configuration,
records, row numbers and ids.
"""

from collections.abc import Callable, Iterable

import numpy as np

from pangu_ms.core.errors import DataError
from pangu_ms.data.domains import model_indices
from pangu_ms.data.records import RecordSet
from pangu_ms.models.common.config import ModelConfig

Source = Callable[[ModelConfig, RecordSet, np.ndarray, np.ndarray], np.ndarray]
"""Called with the model's configuration, records, row numbers (int64 [B]) and the rows' ids (int32 [B, S+1]); returns
an array whose first dimension is B."""


def read_domain(model: ModelConfig, records: RecordSet, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The Source of "domain": the index of each row's domain in `model.domains`, int32 [B]."""
    domains = model_indices(records.domain_names, model)[records.domain_of(rows)]
    assert (domains >= 0).all(), "loaders refuse domains that the model lacks"
    return domains


SOURCES: dict[str, Source] = {"domain": read_domain}
"""The function of each extra input, by the name of the input."""


def require_sources(names: Iterable[str]) -> None:
    """Raise DataError for an input that no function can read."""
    for name in names:
        if name not in SOURCES:
            raise DataError(f"{name}: the model reads this input, and no records have it; known: {sorted(SOURCES)}")


def read_extra(
    model: ModelConfig | None, records: RecordSet, rows: np.ndarray, ids: np.ndarray
) -> dict[str, np.ndarray]:
    """The extra inputs of a model for some rows by name, in the model's order; none without a model."""
    return {name: SOURCES[name](model, records, rows, ids) for name in model.extra_inputs()} if model else {}
