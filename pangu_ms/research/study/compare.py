"""Values of several seeds set beside each other. No mindspore import."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pangu_ms.core.errors import ConfigError

ERRORS = 2.0  # a difference below this many standard errors is called not distinguishable


def require_seeds(seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Raise ConfigError unless the seeds can be told apart and nothing else sets them."""
    for override in overrides:
        if override.startswith(("train.seed=", "data.seed=")):
            raise ConfigError(f"{override}: a study sets the seeds itself; use --seeds")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {','.join(map(str, seeds))}: must be different whole numbers from 0, such as 1,2,3")


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); None for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Mean of values - reference, pair by pair (one pair per seed), with its standard error.

    Pairs share initial weights of equal names and the order of the data, so that much of a seed's luck cancels.

    Returns:
        mean; standard_error and distinguishable (|mean| is at least ERRORS standard errors), both None for one pair.
    """
    mean, deviation = mean_and_deviation(np.subtract(values, reference).tolist())
    if deviation is None:
        return {"mean": mean, "standard_error": None, "distinguishable": None}
    error = deviation / math.sqrt(len(values))
    return {"mean": mean, "standard_error": error, "distinguishable": mean != 0 and abs(mean) >= ERRORS * error}


def confidence(num_pairs: int, errors: float = ERRORS) -> float:
    """Probability that a mean of normal differences lies within so many standard errors of the truth: Student's t,
    num_pairs - 1 degrees of freedom.

    By the midpoint rule, after t = sqrt(degrees) tan(angle) has made the density cos(angle) ** (degrees - 1). At least
    two pairs.
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
        the reference's of the same round; `ratio_quartiles` of that quotient. Whatever slows the machine down for a
        while slows both times of a quotient and cancels.
    """
    times = np.asarray(seconds, float)
    relative = times / times[:, :1]
    lower, median, upper = np.percentile(relative, (25, 50, 75), axis=0).tolist()
    columns = zip(np.median(times, axis=0).tolist(), lower, median, upper)
    return [{"seconds": t, "ratio": q2, "ratio_quartiles": [q1, q3]} for t, q1, q2, q3 in columns]
