"""Builds a model from a configuration, and sets its weights from a seed or from named arrays.

registry.py describes the interface of a family's model. The parameters of a model are weights (trainable or not) and
the state of its KVCaches; `weights` and `caches` distinguish them by the class of the cell.
"""

from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.init import initial_value, initial_values
from pangu_ms.models.common.layers import CacheShape, KVCache
from pangu_ms.models.registry import FAMILIES

__all__ = [
    "build_model",
    "caches",
    "fill",
    "initial_value",
    "initial_values",
    "initialize",
    "to_arrays",
    "value_of",
    "weights",
]


def build_model(config: ModelConfig, cache: CacheShape | None = None) -> nn.Cell:
    """The model of a configuration, all zeros; with `cache` it can `extend` token by token."""
    model = FAMILIES[config.family].model(config, cache)
    model.has_balance_loss = config.has_balance_loss
    specs = config.parameters()
    for weight in weights(model):
        weight.requires_grad = specs[weight.name].trainable
    return model


def caches(model: nn.Cell) -> list[Parameter]:
    """The state of a generation: the cached keys and values of every attention layer."""
    return [
        state for _, cell in model.cells_and_names() if isinstance(cell, KVCache) for state in (cell.keys, cell.values)
    ]


def weights(model: nn.Cell) -> list[Parameter]:
    """The parameters that a checkpoint contains: all except the caches, trainable or not, in the model's order."""
    states = {id(state) for state in caches(model)}
    return [parameter for parameter in model.get_parameters() if id(parameter) not in states]


def initialize(model: nn.Cell, config: ModelConfig, seed: int) -> None:
    """Give every weight its initial value."""
    fill(weights(model), dict(initial_values(config, seed)))


def fill(parameters: Iterable[Parameter], tensors: dict[str, np.ndarray]) -> None:
    """Set parameters from arrays of the same names and shapes (the caller has checked both).

    Raises:
        CheckpointError: see `value_of`.
    """
    for parameter in parameters:
        parameter.set_data(Tensor(value_of(parameter, tensors[parameter.name])))


def value_of(parameter: Parameter, array: np.ndarray) -> np.ndarray:
    """The array in the form that the parameter needs: contiguous, in its dtype.

    Raises:
        CheckpointError: the array is floating-point and the parameter an integer, or the other way round.
    """
    dtype = np.dtype(ms.dtype_to_nptype(parameter.dtype))
    if array.dtype.kind != dtype.kind:
        raise CheckpointError(
            f"{parameter.name}: is stored as {array.dtype}; the model has it as {dtype}; use the checkpoint of this"
            " model"
        )
    return np.ascontiguousarray(array, dtype)


def to_arrays(parameters: list[Parameter]) -> dict[str, np.ndarray]:
    """Parameters as numpy arrays by name."""
    return {p.name: p.asnumpy() for p in parameters}
