"""The units of a model, each of which inheritance keeps or drops as a whole, and the slices of parameters that belong
to them. No mindspore import.

    channels    hidden channels, the same ones in the whole model
    heads       in each layer, a key-value head with the query heads that share it
    neurons     in each layer, a channel of the feed-forward network

The slices of a unit are its positions along the group's axis, in all parameters that have this axis. Values of units
are arrays [rows, units], with one row per layer; the channels have a single row.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pangu_ms.models.common.config import ModelConfig, ParameterSpec

GROUPS = ("channels", "heads", "neurons")
GROUP_OF_AXIS = {"embed": "channels", "heads": "heads", "kv_heads": "heads", "ffn": "neurons"}

Units = dict[str, np.ndarray]
"""Values of the units of each group, [rows, units]."""


def query_heads_per_unit(config: ModelConfig) -> int:
    """Number of query heads that share one key-value head."""
    return config.num_heads // config.num_kv_heads


def unit_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, units) of each group."""
    heads = config.num_heads // query_heads_per_unit(config)
    return {
        "channels": (1, config.hidden_size),
        "heads": (config.num_layers, heads),
        "neurons": (config.num_layers, config.ffn_hidden_size),
    }


def parameters_by_layer(config: ModelConfig) -> Iterator[tuple[int | None, str, ParameterSpec]]:
    """Every parameter in the model's order: its layer (None outside of the layers), its name without the layer's
    prefix, and its spec."""
    before, behind = config.outer_parameters()
    yield from ((None, name, spec) for name, spec in before.items())
    for layer in range(config.num_layers):
        yield from ((layer, name, spec) for name, spec in config.layer_parameters(layer).items())
    yield from ((None, name, spec) for name, spec in behind.items())


def full_name(config: ModelConfig, layer: int | None, name: str) -> str:
    """The parameter's name in the model."""
    return name if layer is None else f"{config.layer_names()[layer]}.{name}"


def _unit_dims(layer: int | None, spec: ParameterSpec) -> Iterator[tuple[int, str, int]]:
    """Yield, for each dimension of a parameter that is divided into units: the dimension, the group of units, and the
    row of the group's values."""
    for dim, axis in enumerate(spec.axes):
        if axis in GROUP_OF_AXIS:
            group = GROUP_OF_AXIS[axis]
            if group == "channels":
                yield dim, group, 0
            else:
                assert layer is not None, f"{group} belong to a layer"
                yield dim, group, layer


def unit_sums(config: ModelConfig, values: Callable[[str], np.ndarray]) -> Units:
    """Sum arrays over the slices of each unit. The arrays have the shapes of the parameters.

    Args:
        config: configuration of the model.
        values: called with the name of a parameter; returns its array.

    Returns:
        float64 by group.
    """
    shapes = unit_shapes(config)
    sums = {group: np.zeros(shape) for group, shape in shapes.items()}
    for layer, name, spec in parameters_by_layer(config):
        dims = list(_unit_dims(layer, spec))
        if not dims:
            continue
        array = values(full_name(config, layer, name))
        for dim, group, row in dims:
            others = tuple(d for d in range(array.ndim) if d != dim)
            sums[group][row] += array.sum(axis=others, dtype=np.float64).reshape(shapes[group][1], -1).sum(axis=1)
    return sums


def masked(config: ModelConfig, tensors: dict[str, np.ndarray], masks: Units) -> dict[str, np.ndarray]:
    """Multiply the slices of each unit by its mask. All masks of a group that `masks` lacks are 1."""
    result = {}
    for layer, name, spec in parameters_by_layer(config):
        full = full_name(config, layer, name)
        array = tensors[full]
        for dim, group, row in _unit_dims(layer, spec):
            if group in masks:
                mask = masks[group][row].astype(np.float32)
                along_dim = [-1 if d == dim else 1 for d in range(array.ndim)]
                array = array * np.repeat(mask, array.shape[dim] // len(mask)).reshape(along_dim)
        result[full] = array
    return result
