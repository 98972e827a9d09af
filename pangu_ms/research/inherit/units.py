"""Units of a model that can be kept or dropped as a whole, and the slices of parameters that belong to each. No
mindspore import.

    channels    hidden channels, the same ones in the whole model
    heads       in each layer, a head of keys and values with the query heads that share it
    neurons     in each layer, a channel of the feed-forward network

A unit's slices are all places along its axis of all parameters that have it. Values by unit are arrays [rows, units]: a
row for each layer, one row for the channels.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pangu_ms.models.common.config import ModelConfig, ParameterSpec

GROUPS = ("channels", "heads", "neurons")
GROUP_OF_AXIS = {"embed": "channels", "heads": "heads", "kv_heads": "heads", "ffn": "neurons"}

Units = dict[str, np.ndarray]
"""By group: [rows, units]."""


def query_heads_per_unit(config: ModelConfig) -> int:
    """Query heads that share one head of keys and values."""
    return config.num_heads // getattr(config, "num_kv_heads", config.num_heads)


def unit_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, units) of each group."""
    heads = config.num_heads // query_heads_per_unit(config)
    return {
        "channels": (1, config.hidden_size),
        "heads": (config.num_layers, heads),
        "neurons": (config.num_layers, config.ffn_hidden_size),
    }


def places(config: ModelConfig) -> Iterator[tuple[int | None, str, ParameterSpec]]:
    """Layer (None outside of them), name behind the layer's prefix, and description of every parameter, in the model's
    order."""
    before, behind = config.outer_parameters()
    yield from ((None, name, spec) for name, spec in before.items())
    for layer in range(config.num_layers):
        yield from ((layer, name, spec) for name, spec in config.layer_parameters(layer).items())
    yield from ((None, name, spec) for name, spec in behind.items())


def full_name(config: ModelConfig, layer: int | None, name: str) -> str:
    """The parameter's name in the model."""
    return name if layer is None else f"{config.layer_names()[layer]}.{name}"


def _unit_dims(layer: int | None, spec: ParameterSpec) -> Iterator[tuple[int, str, int]]:
    """Dimension, group and row for each dimension of a parameter that units share."""
    for dim, axis in enumerate(spec.axes):
        if axis in GROUP_OF_AXIS:
            group = GROUP_OF_AXIS[axis]
            if group == "channels":
                yield dim, group, 0
            else:
                assert layer is not None, f"{group} belong to a layer"
                yield dim, group, layer


def unit_sums(config: ModelConfig, values: Callable[[str], np.ndarray]) -> Units:
    """Sums over each unit's slices of arrays shaped like the parameters; `values` gives one by its name. float64."""
    shapes = unit_shapes(config)
    sums = {group: np.zeros(shape) for group, shape in shapes.items()}
    for layer, name, spec in places(config):
        dims = list(_unit_dims(layer, spec))
        if not dims:
            continue
        array = values(full_name(config, layer, name))
        for dim, group, row in dims:
            others = tuple(d for d in range(array.ndim) if d != dim)
            sums[group][row] += array.sum(axis=others, dtype=np.float64).reshape(shapes[group][1], -1).sum(axis=1)
    return sums


def masked(config: ModelConfig, tensors: dict[str, np.ndarray], masks: Units) -> dict[str, np.ndarray]:
    """The parameters with each unit's slices multiplied by the unit's mask; a group may be left out."""
    result = {}
    for layer, name, spec in places(config):
        full = full_name(config, layer, name)
        array = tensors[full]
        for dim, group, row in _unit_dims(layer, spec):
            if group in masks:
                mask = masks[group][row].astype(np.float32)
                array = array * np.repeat(mask, array.shape[dim] // len(mask)).reshape(
                    [-1 if d == dim else 1 for d in range(array.ndim)]
                )
        result[full] = array
    return result
