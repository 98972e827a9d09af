"""What of a teacher a student keeps. No mindspore import."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.inherit.units import GROUPS, Units, query_heads_per_unit, unit_shapes


@dataclass(frozen=True, eq=False)
class Selection:
    """Numbers of the teacher's parts in the student's order: all ascending, int64. See units.py for the groups."""

    layers: tuple[int, ...]
    """Teacher's layer of each of the student's L' layers."""
    channels: np.ndarray
    """[1, E']."""
    heads: np.ndarray
    """[L', units]: heads of keys and values, each with its query heads."""
    neurons: np.ndarray
    """[L', F']."""
    vocab: np.ndarray
    """[V']: old id of each new one."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {"layers": list(self.layers)} | {name: getattr(self, name).tolist() for name in (*GROUPS, "vocab")}


def select(
    teacher: ModelConfig, student: ModelConfig, layers: Sequence[int], scores: Units, vocab: np.ndarray | None = None
) -> Selection:
    """Keep the units with the highest scores.

    Args:
        layers: teacher's layer of each student layer.
        scores: by group [rows, units of the teacher], rows as the student has; a group of which all is kept may be left
            out.
        vocab: int64 [V'], old id of each new one; None keeps the first ids in order.
    """
    wanted = wanted_units(teacher, student)
    kept = {
        group: _highest(scores.get(group, np.zeros(shape)), wanted[group])
        for group, shape in _student_rows(teacher, student).items()
    }
    return Selection(
        tuple(layers), **kept, vocab=np.arange(student.vocab_size) if vocab is None else np.asarray(vocab, np.int64)
    )


def wanted_units(teacher: ModelConfig, student: ModelConfig) -> dict[str, int]:
    """How many of the teacher's units of each group (in each layer) the student keeps."""
    heads = student.num_heads // query_heads_per_unit(teacher)
    return {"channels": student.hidden_size, "heads": heads, "neurons": student.ffn_hidden_size}


def _student_rows(teacher: ModelConfig, student: ModelConfig) -> dict[str, tuple[int, int]]:
    return {
        group: (1 if group == "channels" else student.num_layers, units)
        for group, (_, units) in unit_shapes(teacher).items()
    }


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the `count` highest of each row, ascending; of equal ones the first."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)


def spaced_layers(
    teacher: ModelConfig, student: ModelConfig, keep_first: int = 3, keep_last: int = 3
) -> tuple[int, ...]:
    """The first and last layers, and uniformly spaced ones between.

    Raises:
        ConfigError: the student has too few layers for them.

    Source: spec E2.3 (first 3, last 3; 29 -> 20).
    """
    old, new = teacher.num_layers, student.num_layers
    if old == new:
        return tuple(range(old))
    count, between = new - keep_first - keep_last, old - keep_first - keep_last
    if min(keep_first, keep_last, count) < 0:
        raise ConfigError(
            f"model.num_layers={new}: the first {keep_first} and the last {keep_last} layers must find room in it; "
            "lower --keep-first and --keep-last (0 or more), or name the layers with --layers"
        )
    middle = (keep_first + (2 * i + 1) * between // (2 * count) for i in range(count))
    return (*range(keep_first), *middle, *range(old - keep_last, old))


def check_layers(teacher: ModelConfig, student: ModelConfig, layers: Sequence[int]) -> None:
    """Raise ConfigError unless these layers of the teacher can be the student's."""
    shown, names = ",".join(map(str, layers)), teacher.layer_names()
    ascending = all(a < b for a, b in zip(layers, layers[1:]))
    if len(layers) != student.num_layers or not ascending or not 0 <= layers[0] <= layers[-1] < teacher.num_layers:
        rule = (
            f"must be model.num_layers={student.num_layers} different ones in order, from 0 to {teacher.num_layers - 1}"
        )
        raise ConfigError(f"--layers {shown}: {len(layers)} layers: {rule}; correct the list or set model.num_layers")
    for own, layer in zip(student.layer_names(), layers):
        if own.rstrip("0123456789") != names[layer].rstrip("0123456789"):
            last = f"the last is the {names[-1]} and is inherited by the last"
            raise ConfigError(
                f"--layers {shown}: the student's {own} from {names[layer]}: {last}; end the list with"
                f" {teacher.num_layers - 1}"
            )
