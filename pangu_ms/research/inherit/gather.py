"""A student's parameters from its teacher's: each one is the teacher's, gathered along every axis. No mindspore
import."""

import numpy as np

from pangu_ms.models.common.config import ModelConfig, ParameterSpec
from pangu_ms.models.common.init import initial_value
from pangu_ms.research.inherit.selection import Selection
from pangu_ms.research.inherit.units import GROUP_OF_AXIS, full_name, places, unit_shapes

HEAD, WORD_TABLE = "head.weight", "word_embedding.weight"


def gather(
    teacher: ModelConfig, tensors: dict[str, np.ndarray], student: ModelConfig, selection: Selection, seed: int = 1
) -> dict[str, np.ndarray]:
    """The parameters of `student`, which `fit.require_fit` has found to fit.

    What is kept whole is the teacher's array itself, bit for bit. What the teacher lacks has the initial value of
    `student`; so have the added lines of axes that may grow (siaf_term, bottleneck), and these axes give their first
    lines where they shrink. An untied head of a tied teacher is its word table. Where the student has fewer heads of
    keys and values for its query heads, each is the mean of the teacher's.

    The norms' divisor is taken over fewer channels: where the dropped ones were zero, RMSNorm's output shrinks by
    sqrt(E' / E); where they were as large as the kept ones, it stays. The gains are inherited as they are, for training
    to mend.

    Args:
        teacher: configuration of `tensors`.
        tensors: float32 by name.
        selection: which parts of the teacher.
        seed: of initial values.

    Returns:
        float32 by name, in the student's order.

    Source: spec E2.3; means of heads: spec E2.5.
    """
    inherited, shapes = {}, student.parameter_shapes()
    for layer, name, spec in places(student):
        own = full_name(student, layer, name)
        source = tensors.get(full_name(teacher, None if layer is None else selection.layers[layer], name))
        if source is None and name == HEAD:
            source = tensors[WORD_TABLE]
        if source is not None:
            for dim, axis in enumerate(spec.axes):
                source = _take(source, dim, _positions(teacher, student, selection, axis, layer))
        inherited[own] = _completed(source, spec, own, shapes[own], seed)
    return inherited


def _positions(
    teacher: ModelConfig, student: ModelConfig, selection: Selection, axis: str, layer: int | None
) -> np.ndarray:
    """Places along a teacher's axis, int64 [new length, M]: a new line is the mean of M old ones."""
    if axis == "vocab":
        return selection.vocab[:, None]
    size = teacher.axis_sizes()[axis]
    if axis not in GROUP_OF_AXIS:
        return np.arange(min(size, student.axis_sizes()[axis]))[:, None]
    group = GROUP_OF_AXIS[axis]
    units = getattr(selection, group)[0 if group == "channels" else layer]
    width = size // unit_shapes(teacher)[group][1]
    pools = units.reshape(student.num_kv_heads if axis == "kv_heads" else len(units), 1, -1)
    return (pools * width + np.arange(width)[:, None]).reshape(-1, pools.shape[-1])


def _take(array: np.ndarray, dim: int, positions: np.ndarray) -> np.ndarray:
    if positions.shape[1] > 1:
        return np.take(array, positions, axis=dim).mean(axis=dim + 1)
    if np.array_equal(positions[:, 0], np.arange(array.shape[dim])):
        return array
    return np.take(array, positions[:, 0], axis=dim)


def _completed(
    source: np.ndarray | None, spec: ParameterSpec, name: str, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """`source` where it has the whole shape, else initial values with `source` in the first lines."""
    if source is not None and source.shape == shape:
        return source
    value = initial_value(spec, name, shape, seed)
    if source is not None:
        value[tuple(slice(length) for length in source.shape)] = source
    return value
