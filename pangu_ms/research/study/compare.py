"""What the studies share: checks of seeds and models, and statistics over seeds. No mindspore import."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.pi.config import PiConfig

ERRORS = 2.0
"""A difference below this many standard errors is reported as not distinguishable from noise."""


def require_seeds(seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Raise ConfigError unless the seeds are different and no override sets a seed as well."""
    for override in overrides:
        if override.startswith(("train.seed=", "data.seed=")):
            raise ConfigError(f"{override}: a study sets the seeds itself; use --seeds")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {','.join(map(str, seeds))}: must be different whole numbers from 0, such as 1,2,3")


def require_pi(model: ModelConfig, reason: str) -> PiConfig:
    """Return the model if it is a PanGu-pi.

    Args:
        reason: why no other family can be studied, for the error message.

    Raises:
        ConfigError: the model is of another family.
    """
    if not isinstance(model, PiConfig):
        raise ConfigError(f"model.family={model.family}: {reason}; use a config of family pi")
    return model


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Mean of the paired differences values - reference (one pair per seed), with its standard error.

    The two runs of a pair share the order of the data and the initial values of parameters with equal names, so much of
    what a seed changes cancels in the difference.

    Returns:
        mean; standard_error and distinguishable (|mean| is at least ERRORS standard errors), both None for one pair.
    """
    mean, deviation = mean_and_deviation(np.subtract(values, reference).tolist())
    if deviation is None:
        return {"mean": mean, "standard_error": None, "distinguishable": None}
    error = deviation / math.sqrt(len(values))
    return {"mean": mean, "standard_error": error, "distinguishable": mean != 0 and abs(mean) >= ERRORS * error}


def confidence(num_pairs: int, errors: float = ERRORS) -> float:
    """Probability that the mean of normal differences lies within `errors` standard errors of the true mean.

    This is Student's t with num_pairs - 1 degrees of freedom. The substitution t = sqrt(degrees) tan(angle) turns its
    density into cos(angle) ** (degrees - 1), which the midpoint rule integrates.

    Args:
        num_pairs: at least 2.
        errors: half-width of the interval, in standard errors.
    """
    degrees = num_pairs - 1

    def area(end: float) -> float:
        angles = (np.arange(10000) + 0.5) * (end / 10000)
        return end * float(np.mean(np.cos(angles) ** (degrees - 1)))

    return area(math.atan(errors / math.sqrt(degrees))) / area(math.pi / 2)


def ratios(seconds: Sequence[Sequence[float]] | np.ndarray) -> list[dict[str, Any]]:
    """Compare times that were measured in turns.

    Args:
        seconds: [rounds, subjects]; the first subject is the reference.

    Returns:
        For each subject: `seconds`, the median of its times; `ratio`, the median over the rounds of its time divided by
            the reference's of the same round; `ratio_quartiles` of that quotient. A temporary slowdown of the machine
            affects both times of a quotient, and so it cancels.
    """
    times = np.asarray(seconds, float)
    relative = times / times[:, :1]
    lower, median, upper = np.percentile(relative, (25, 50, 75), axis=0).tolist()
    columns = zip(np.median(times, axis=0).tolist(), lower, median, upper)
    return [{"seconds": t, "ratio": q2, "ratio_quartiles": [q1, q3]} for t, q1, q2, q3 in columns]
