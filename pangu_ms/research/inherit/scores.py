"""Importance of units by their weights, or by the loss's derivatives: the higher, the more worth keeping. No mindspore
import."""

from collections.abc import Callable, Iterable

import numpy as np

from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.inherit.units import GROUPS, Units, unit_shapes, unit_sums

CRITERIA = ("l1", "l2", "taylor", "learned", "random")
NEED_DATA = ("taylor", "learned")

Derivatives = Callable[[Batch, Units], tuple[float, Units]]
"""Mean loss of a batch with the units' slices multiplied by masks (a group left out: by 1), and its derivative in each
mask."""


def norm_scores(config: ModelConfig, tensors: dict[str, np.ndarray], criterion: str) -> Units:
    """l1 or l2 norm over all weights of each unit: of its layer for heads and neurons, of the whole model for
    channels."""
    if criterion == "l1":
        return unit_sums(config, lambda name: np.abs(tensors[name]))
    squares = unit_sums(config, lambda name: np.square(tensors[name], dtype=np.float64))
    return {group: np.sqrt(sums) for group, sums in squares.items()}


def taylor_scores(derivatives: Derivatives, batches: Iterable[Batch]) -> Units:
    """|sum over the unit's slices of weight * gradient of the mean loss|, added up over the batches.

    The sum is the loss's derivative in a mask on the unit, so the score is to first order what dropping the unit
    changes. The absolute value is taken batch by batch: over much data the signed sum tends to 0 in a trained model,
    where gradients vanish.

    Source: spec E2.3.
    """
    changes = [derivatives(batch, {})[1] for batch in batches]
    return {group: sum(np.abs(change[group]) for change in changes) for group in GROUPS}


def random_scores(config: ModelConfig, seed: int) -> Units:
    """Uniform in [0, 1): the baseline of spec E2.3."""
    return {
        group: np.random.default_rng([seed, i]).random(unit_shapes(config)[group]) for i, group in enumerate(GROUPS)
    }
