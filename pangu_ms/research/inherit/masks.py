"""Importance of units by masks that are learned while the weights are frozen. No mindspore import.

The paper says that a learnable criterion is best, but not how it is learned (spec E2.3). This is one possible way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pangu_ms.core.fields import require, require_not_negative, require_positive
from pangu_ms.models.common.batch import Batch
from pangu_ms.research.inherit.scores import Derivatives
from pangu_ms.research.inherit.units import Units

_SMALLEST = 1e-6
"""Lower bound of a mask: the computation of a derivative divides by the mask (gradients.py), which must not be 0."""
_BETA1, _BETA2, _EPS = 0.9, 0.99, 1e-30  # Adam's decay rates, and a summand that only avoids a division by 0
_MULTIPLIER_RATE = 0.05
"""Step size of the penalty's Lagrange multiplier. On a quadratic loss for which 24 of 64 masks were wanted, 46 masks
stayed open without the multiplier, and 29 with it."""


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How masks are learned. The default values are not from the paper."""

    mask_steps: int = 200
    """Steps of Adam, each on one batch; the batches are used cyclically."""
    mask_lr: float = 0.05
    """Adam's learning rate of the logits."""
    mask_start: float = 0.0
    """Initial logit of every mask; 0 is a mask of 1/2. When masks began near 1 (a logit of 3), the derivatives of a
    trained model were noise, and worse units were chosen."""
    mask_first_temperature: float = 1.0
    """A mask is sigmoid(logit / temperature); the temperature falls geometrically from here."""
    mask_last_temperature: float = 0.1
    """The temperature of the last step; a lower one brings the masks nearer to 0 and 1."""
    mask_penalty: float = 1.0
    """Weight of the penalty that pushes the sum of the masks towards the wanted number. It is relative to the root mean
    square of the derivatives of the loss with respect to the masks of a row."""

    def __post_init__(self) -> None:
        require_positive(self, "mask_steps", "mask_lr", "mask_first_temperature", "mask_last_temperature")
        require_not_negative(self, mask_penalty="is no push")
        rule = (
            f"={self.mask_last_temperature}: must not exceed mask_first_temperature={self.mask_first_temperature};"
            " lower it"
        )
        require(self.mask_last_temperature <= self.mask_first_temperature, "mask_last_temperature", rule)


def learn_masks(
    derivatives: Derivatives,
    batches: Sequence[Batch],
    shapes: dict[str, tuple[int, int]],
    wanted: dict[str, int],
    options: MaskOptions,
) -> Iterator[Units]:
    """Learn sigmoid masks that minimise the mean loss, while a penalty pushes the sum of the masks in each row towards
    the wanted number.

    Args:
        derivatives: see scores.py; called once per step.
        batches: at least one.
        shapes: (rows, units) of each group whose masks are learned.
        wanted: number of units to keep in each row, by group.
        options: steps, learning rate, temperatures and penalty.

    Yields:
        The logits after each step. The logits after the last step are the scores of the units.
    """
    logits = {group: np.full(shape, options.mask_start) for group, shape in shapes.items()}
    first, second = ({group: np.zeros(shape) for group, shape in shapes.items()} for _ in range(2))
    penalties = {group: _Penalty(rows, wanted[group] / units) for group, (rows, units) in shapes.items()}
    for step in range(1, options.mask_steps + 1):
        temperature = _temperature(options, step)
        masks = {group: np.maximum(1 / (1 + np.exp(-z / temperature)), _SMALLEST) for group, z in logits.items()}
        _, slopes = derivatives(batches[(step - 1) % len(batches)], masks)
        for group, mask in masks.items():
            slope = slopes[group] + options.mask_penalty * penalties[group].derivative(slopes[group], mask)
            gradient = slope * mask * (1 - mask) / temperature
            first[group] = _BETA1 * first[group] + (1 - _BETA1) * gradient
            # The second moment is one value per row, not per unit. With one per unit, all logits would move by the same
            # amount while the penalty dominates, and their order would be lost.
            second[group] = _BETA2 * second[group] + (1 - _BETA2) * np.mean(gradient**2, axis=1, keepdims=True)
            mean, square = first[group] / (1 - _BETA1**step), second[group] / (1 - _BETA2**step)
            logits[group] = logits[group] - options.mask_lr * mean / (np.sqrt(square) + _EPS)
        yield logits


def _temperature(options: MaskOptions, step: int) -> float:
    done = (step - 1) / max(options.mask_steps - 1, 1)
    return options.mask_first_temperature * (options.mask_last_temperature / options.mask_first_temperature) ** done


class _Penalty:
    """The penalty on the number of open masks in each row, in the form of an augmented Lagrangian: a multiplier grows
    while more masks are open than wanted.

    The penalty is scaled by the root mean square of all derivatives of the loss so far, so that the scale of the loss
    does not matter.
    """

    def __init__(self, rows: int, share: float):
        self.share, self.steps = share, 0
        self.squares, self.multiplier = np.zeros((rows, 1)), np.zeros((rows, 1))

    def derivative(self, slopes: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The derivative of the penalty with respect to each mask of a row.

        Args:
            slopes: derivatives of the loss with respect to the masks, [rows, units].
            mask: the masks, [rows, units].

        Returns:
            [rows, 1], since it is the same for all masks of a row.
        """
        self.steps += 1
        self.squares += np.mean(slopes**2, axis=1, keepdims=True)
        excess = (mask.mean(axis=1, keepdims=True) - self.share) / (1 - self.share)  # share of what must be dropped
        self.multiplier += _MULTIPLIER_RATE * excess
        return (excess + self.multiplier) * np.sqrt(self.squares / self.steps)
