"""What a model says to an item, what is right, and how a metric compares both. numpy only."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What a model says to one item; of each type of task other fields are set.

    Attributes:
        choice: choice: index of the best candidate.
        label: choice: its label.
        text: generation: the generated text, without a stop string.
        assignment: assignment: for each blank the index of the candidate that fills it.
        nats: perplexity: minus the log-probability of the continuation.
        num_tokens: perplexity: its tokens.
    """

    choice: int = -1
    label: str = ""
    text: str = ""
    assignment: tuple[int, ...] = ()
    nats: float = 0.0
    num_tokens: int = 0


@dataclass(frozen=True)
class Gold:
    """What is right for one item; of each type of task other fields are set.

    Attributes:
        choice: choice: index of the right candidate.
        label: choice: its label.
        answers: generation: the texts that count as right, of which there is at least one.
        assignment: assignment: for each blank the index of the candidate that belongs there.
    """

    choice: int = -1
    label: str = ""
    answers: tuple[str, ...] = ()
    assignment: tuple[int, ...] = ()

    def to_json(self) -> Any:
        """It as it stands in records."""
        return self.label or list(self.answers) or list(self.assignment) or None


def _unchanged(value: float) -> float:
    return value


def perplexity_of(nats: float) -> float:
    """e to the mean loss; a loss that no float holds the power of is cut at 700."""
    return math.exp(min(nats, 700.0))


@dataclass(frozen=True)
class Metric:
    """A measure of predictions: a mean over items.

    Attributes:
        item: (value, weight) of one item, such as (1.0, 1.0) for a right choice, or (nats per token, tokens).
        task_type: the type of the tasks whose predictions it reads.
        finish: makes what is shown of the weighted mean, such as `perplexity_of`.
        percent: whether it is shown in percent, as published scores are.
        lower_is_better: as for perplexity.
    """

    item: Callable[[Prediction, Gold], tuple[float, float]]
    task_type: str
    finish: Callable[[float], float] = _unchanged
    percent: bool = True
    lower_is_better: bool = False


@dataclass(frozen=True)
class Estimate:
    """A mean over items, and how far it would vary over other items of the same kind.

    Attributes:
        mean: weighted mean of the values; NaN without items.
        standard_error: of the mean; with equal weights it is the standard deviation of the sample (n - 1) divided by
            the root of n. NaN with fewer than two items.
        items: how many there are.
    """

    mean: float
    standard_error: float
    items: int

    @classmethod
    def of(cls, values: Sequence[float], weights: Sequence[float] | None = None) -> "Estimate":
        """The estimate from values of items; `weights` are 1 by default. With other weights the mean is a ratio of two
        sums, whose standard error is that of its linearisation."""
        value, n = np.asarray(values, np.float64), len(values)
        weight = np.ones(n) if weights is None else np.asarray(weights, np.float64)
        if not n or not weight.sum():
            return cls(math.nan, math.nan, n)
        mean = float((value * weight).sum() / weight.sum())
        if n < 2:
            return cls(mean, math.nan, n)
        spread = float(np.sqrt((((value - mean) * weight) ** 2).sum() * n / (n - 1)) / weight.sum())
        return cls(mean, spread, n)
