"""Scores the importance of units by their weights or by derivatives of the loss. Units with higher scores are kept. No
mindspore import."""

from collections.abc import Callable, Iterable

import numpy as np

from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.inherit.units import GROUPS, Units, unit_shapes, unit_sums

CRITERIA = ("l1", "l2", "taylor", "learned", "random")
NEED_DATA = ("taylor", "learned")

Derivatives = Callable[[Batch, Units], tuple[float, Units]]
"""Called with a batch and masks that multiply the weights of the units (all masks of a missing group are 1); returns
the mean loss and its derivative with respect to each mask."""


def norm_scores(config: ModelConfig, tensors: dict[str, np.ndarray], criterion: str) -> Units:
    """The l1 or l2 norm of all weights of each unit. A head or neuron has weights in one layer; a channel has weights
    in the whole model."""
    if criterion == "l1":
        return unit_sums(config, lambda name: np.abs(tensors[name]))
    squares = unit_sums(config, lambda name: np.square(tensors[name], dtype=np.float64))
    return {group: np.sqrt(sums) for group, sums in squares.items()}


def taylor_scores(derivatives: Derivatives, batches: Iterable[Batch]) -> Units:
    """The sum over batches of |sum over the unit's weights of weight * gradient of the mean loss|.

    The inner sum is the derivative of the loss with respect to a mask on the unit. To first order it is the change of
    the loss when the unit is dropped. The absolute value is taken per batch, because the gradients of a trained model
    vanish on average, so that the signed sum over much data tends to 0.

    Source: spec E2.3.
    """
    changes = [derivatives(batch, {})[1] for batch in batches]
    return {group: sum(np.abs(change[group]) for change in changes) for group in GROUPS}


def random_scores(config: ModelConfig, seed: int) -> Units:
    """Random scores, uniform in [0, 1): the baseline of spec E2.3."""
    generators = {group: np.random.default_rng([seed, i]) for i, group in enumerate(GROUPS)}
    return {group: generator.random(unit_shapes(config)[group]) for group, generator in generators.items()}
