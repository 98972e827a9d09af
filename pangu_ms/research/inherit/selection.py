"""Selects the layers and units of a teacher that a student keeps. No mindspore import."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.inherit.units import GROUPS, Units, query_heads_per_unit, unit_shapes


@dataclass(frozen=True, eq=False)
class Selection:
    """The parts of the teacher that the student keeps, as ascending int64 indices. See units.py for the groups."""

    layers: tuple[int, ...]
    """The teacher's layer for each of the student's L' layers."""
    channels: np.ndarray
    """[1, E']: hidden channels."""
    heads: np.ndarray
    """[L', units]: key-value heads, each with its query heads."""
    neurons: np.ndarray
    """[L', F']: feed-forward channels."""
    vocab: np.ndarray
    """[V']: the old id of each new id."""

    def to_json(self) -> dict[str, Any]:
        """The selection as JSON values."""
        return {"layers": list(self.layers)} | {name: getattr(self, name).tolist() for name in (*GROUPS, "vocab")}


def select(
    teacher: ModelConfig, student: ModelConfig, layers: Sequence[int], scores: Units, vocab: np.ndarray | None = None
) -> Selection:
    """Keep the units with the highest scores.

    Args:
        teacher, student: their configurations.
        layers: the teacher's layer for each layer of the student.
        scores: by group [rows of the student, units of the teacher]. A group whose units are all kept may be left out.
        vocab: int64 [V'], the old id of each new id; None keeps the first ids in order.
    """
    wanted = wanted_units(teacher, student)
    kept = {}
    for group, (_, units) in unit_shapes(teacher).items():
        rows = 1 if group == "channels" else student.num_layers
        kept[group] = _highest(scores.get(group, np.zeros((rows, units))), wanted[group])
    old_ids = np.arange(student.vocab_size) if vocab is None else np.asarray(vocab, np.int64)
    return Selection(tuple(layers), **kept, vocab=old_ids)


def wanted_units(teacher: ModelConfig, student: ModelConfig) -> dict[str, int]:
    """How many units the student keeps of each group, in each layer for heads and neurons."""
    heads = student.num_heads // query_heads_per_unit(teacher)
    return {"channels": student.hidden_size, "heads": heads, "neurons": student.ffn_hidden_size}


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest scores of each row, ascending; among equal scores the first ones are taken."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)


def spaced_layers(
    teacher: ModelConfig, student: ModelConfig, keep_first: int = 3, keep_last: int = 3
) -> tuple[int, ...]:
    """Choose the first and the last layers of the teacher, and uniformly spaced layers between them.

    Raises:
        ConfigError: the student has fewer layers than `keep_first` + `keep_last`.

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
    """Raise ConfigError unless the student's layers can come from these layers of the teacher."""
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
