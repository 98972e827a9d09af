"""Lengths of answers: drawn, disturbed, read from files, described."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.core import small_json
from pangu_ms.core.errors import DataError

CAP_SHARE = 0.05
"""Largest share of lengths at the maximum with which a gain means something (spec G1.3): what is cut at the maximum is
all of one length, which every policy finds easy."""
_BARS = 20


def lognormal_lengths(
    number: int, seed: int = 0, median: float = 100.0, p90: float = 276.0, least: int = 5, most: int = 512
) -> np.ndarray:
    """Draw lengths: int64 [number]. The defaults have the median and the 90th percentile of the paper's data (spec
    G1.2)."""
    sigma = math.log(p90 / median) / 1.2815515655446004  # the 90th percentile of the standard normal distribution
    drawn = np.random.default_rng(seed).lognormal(math.log(median), sigma, number)
    return np.clip(np.rint(drawn), least, most).astype(np.int64)


def noisy(lengths: Sequence[int] | np.ndarray, seed: int = 0, scale: float = 50.0, most: int = 512) -> np.ndarray:
    """Lengths with Student's t noise of 3 degrees of freedom: float64. At scale 50 they are as wrong as the paper's
    predictor (spec G1.2): MAE 51 to 55, Acc-50 60 %, Acc-100 87 %."""
    noise = np.random.default_rng(seed).standard_t(3, len(lengths)) * scale
    return np.clip(np.asarray(lengths, np.float64) + noise, 1, most)


def shuffled(lengths: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
    """The lengths of other requests: right in the mean, and useless."""
    return np.random.default_rng(seed).permutation(np.asarray(lengths, np.float64))


def accuracy(predicted: Sequence[float] | np.ndarray, lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
    """The mean absolute error `mae`, and the shares of predictions less than 50 and 100 tokens away, `acc_50` and
    `acc_100` (spec G1.1)."""
    wrong = np.abs(np.asarray(predicted, np.float64) - np.asarray(lengths, np.float64))
    return {"mae": float(wrong.mean()), "acc_50": float((wrong < 50).mean()), "acc_100": float((wrong < 100).mean())}


def describe(lengths: Sequence[int] | np.ndarray, most: int) -> dict[str, Any]:
    """Mean, percentiles, the share at the maximum, and a histogram of lengths of at most `most` tokens."""
    values = np.minimum(np.asarray(lengths, np.int64), most)
    counts, edges = np.histogram(values, bins=min(_BARS, most), range=(0, most))
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    at_cap = float((values >= most).mean())
    return {
        "number": len(values),
        "mean": float(values.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max_new_tokens": most,
        "share_at_cap": at_cap,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def cap_warning(share_at_cap: float) -> str:
    """What a report says if too many lengths are at the maximum; "" otherwise."""
    if share_at_cap < CAP_SHARE:
        return ""
    return (
        f"{share_at_cap:.1%} of the answers are as long as the maximum, {CAP_SHARE:.0%} or more: a gain means nothing;"
        " use a larger maximum, or prompts whose answers end"
    )


def read_lines(path: Path) -> list[Any]:
    """The JSON values of a file: a value per line, or one array.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    try:
        content = small_json.read_bytes(path, pipes=True).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); correct the name") from None
    if content.lstrip().startswith("["):
        try:
            return list(small_json.parse(content))
        except ValueError as error:
            raise DataError(f"{path}: {error}; must be a JSON array, or a JSON value per line") from None
    values = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                values.append(small_json.parse(line))
            except ValueError as error:
                raise DataError(f"{path}:{number}: {error}; must be one JSON value") from None
    return values


def whole_number(value: Any, least: int = 0) -> bool:
    """Whether a JSON value is a whole number of tokens."""
    return type(value) is int and least <= value < 1 << 31
