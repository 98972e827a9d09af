"""Makes a student's parameters from its teacher's, gathered along every axis. No mindspore import."""

import numpy as np

from pangu_ms.models.common.config import ModelConfig, ParameterSpec
from pangu_ms.models.common.init import initial_value
from pangu_ms.research.inherit.selection import Selection
from pangu_ms.research.inherit.units import GROUP_OF_AXIS, full_name, parameters_by_layer, unit_shapes

HEAD, WORD_TABLE = "head.weight", "word_embedding.weight"


def gather(
    teacher: ModelConfig, tensors: dict[str, np.ndarray], student: ModelConfig, selection: Selection, seed: int = 1
) -> dict[str, np.ndarray]:
    """Make the parameters of a student. `fit.require_fit` must have accepted teacher and student.

    * A parameter that is kept as a whole is the teacher's array itself, bit for bit.
    * A parameter that the teacher lacks gets its initial value.
    * The axes siaf_term and bottleneck may grow or shrink. Along them the first entries are inherited; additional
      entries of the student get their initial value.
    * If the teacher's output head is tied and the student's is not, the student's head is the teacher's word embedding.
    * If more query heads share a key-value head in the student than in the teacher, each such head is the mean of the
      teacher's heads.

    Gains of norms are inherited unchanged, although the student's norm averages over fewer channels. If the dropped
    channels were zero, RMSNorm's output shrinks by sqrt(E' / E); if they were as large as the kept ones, it stays the
    same. Training adapts the gains.

    Args:
        teacher: configuration of `tensors`.
        tensors: float32 by name, tables of integers int32.
        student: configuration of the student.
        selection: the parts of the teacher that the student keeps.
        seed: seed of initial values.

    Returns:
        float32 by name, in the student's order.

    Source: spec E2.3; means of heads: spec E2.5.
    """
    inherited, shapes = {}, student.parameter_shapes()
    for layer, name, spec in parameters_by_layer(student):
        own = full_name(student, layer, name)
        source = tensors.get(full_name(teacher, None if layer is None else selection.layers[layer], name))
        if source is None and name == HEAD:
            source = tensors[WORD_TABLE]
        if source is not None:
            for dim, axis in enumerate(spec.axes):
                source = _take(source, dim, _positions(teacher, student, selection, axis, layer))
        inherited[own] = _fill_up(source, spec, own, shapes[own], seed)
    return inherited


def _positions(
    teacher: ModelConfig, student: ModelConfig, selection: Selection, axis: str, layer: int | None
) -> np.ndarray:
    """For each position of the student along an axis, the M positions of the teacher whose mean it becomes: int64 [new
    length, M]."""
    if axis in ("vocab", "token"):
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


def _fill_up(
    source: np.ndarray | None, spec: ParameterSpec, name: str, shape: tuple[int, ...], seed: int
) -> np.ndarray:
    """`source` if it has the full shape, else the initial value whose first entries along each axis are replaced by
    `source`."""
    if source is not None and source.shape == shape:
        return source
    value = initial_value(spec, name, shape, seed)
    if source is not None:
        value[tuple(slice(length) for length in source.shape)] = source
    return value
