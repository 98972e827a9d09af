"""Lengths of answers: drawn, disturbed, read from files, described."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.core import small_json
from pangu_ms.core.errors import DataError

CAP_SHARE = 0.05
"""Largest share of lengths at the maximum with which a gain means something (spec G1.3): what is cut at the maximum is
all of one length, which every policy finds easy."""
_BARS = 16


def lognormal_lengths(
    number: int, seed: int = 0, median: float = 100.0, p90: float = 276.0, least: int = 5, most: int = 512
) -> np.ndarray:
    """Draw lengths: int64 [number]. The defaults have the median and the 90th percentile of the paper's data (spec
    G1.2)."""
    sigma = math.log(p90 / median) / 1.2815515655446004  # the 90th percentile of the standard normal distribution
    drawn = np.random.default_rng(seed).lognormal(math.log(median), sigma, number)
    return np.clip(np.rint(drawn), least, most).astype(np.int64)


def noisy(lengths: Sequence[int] | np.ndarray, seed: int = 0, scale: float = 57.0, most: int = 512) -> np.ndarray:
    """Lengths with Student's t noise of 3 degrees of freedom: float64. At scale 57 lognormal lengths are about as
    wrong as the predictions of the paper (spec G1.2): MAE 51 to 54, Acc-50 60 %, Acc-100 87 %."""
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


@dataclass(frozen=True)
class Answer:
    """What a line of a file says of one answer.

    Attributes:
        tokens: how long it is.
        prompt: the text that it answers; "" if the line has none.
        prompt_tokens: how long that is; None: unknown.
        predicted_tokens: what a predictor said; None: nothing.
        arrival: when the request came, in seconds.
        template: what the prompt was made from.
        at_cap: whether it was cut at the maximum.
    """

    tokens: int
    prompt: str = ""
    prompt_tokens: int | None = None
    predicted_tokens: float | None = None
    arrival: float = 0.0
    template: str = ""
    at_cap: bool = False


_TOKENS = range(1, 1 << 31)
_FORM: small_json.Form = {
    "tokens": (_TOKENS, None),
    "token_ids": ([int], None),
    "prompt": (str, None),
    "prompt_tokens": (range(1 << 20), None),
    "predicted_tokens": (small_json.Between(0, 1 << 31), None),
    "arrival": (small_json.TIME, None),
    "template": (str, None),
    "finish_reason": (str, None),
    "at_cap": (bool, None),
}


def read_answers(path: Path) -> list[Answer]:
    """Read the lengths of answers: a JSON value per line, or one array. A value is a number of tokens, an object with
    `tokens` as `pangu schedule label` writes it, or an object with `token_ids` as `pangu generate --json` writes it.

    Raises:
        DataError: the file cannot be read, or a value is none of these.
    """
    answers = [_answer(where, value) for where, value in _values(path)]
    if not answers:
        raise DataError(f"{path}: is empty; it holds lengths of answers, one a line; correct the name")
    return answers


def _answer(where: str, value: Any) -> Answer:
    found: dict[str, Any] = {"tokens": value} if type(value) is int else value
    wrong = small_json.misfit(found, _FORM)
    tokens = None if wrong else found.get("tokens") or len(found.get("token_ids") or ())
    if not tokens:
        rule = (
            "must be a number of tokens from 1 up, or an object with one as tokens, or with token_ids, and perhaps with"
            " prompt_tokens, predicted_tokens and arrival, which are at least 0"
        )
        raise DataError(f"{where}: {wrong or 'no tokens'}; {rule}; correct it")
    return Answer(
        tokens,
        found.get("prompt") or "",
        found.get("prompt_tokens"),
        found.get("predicted_tokens"),
        found.get("arrival") or 0.0,
        found.get("template") or "",
        found.get("at_cap") or found.get("finish_reason") == "length",
    )


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Each JSON value of a file, and where it stands."""
    try:
        content = small_json.read_bytes(path, pipes=True).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); correct the name") from None
    if content.lstrip().startswith("["):
        yield from ((f"{path}: item {number}", value) for number, value in enumerate(_parse(content, str(path)), 1))
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _parse(text: str, where: str) -> Any:
    try:
        return small_json.parse(text)
    except ValueError as error:
        raise DataError(f"{where}: {error}; must be one JSON value a line, or one array; correct it") from None


def labels(paths: Sequence[Path], bin_tokens: int) -> list[dict[str, Any]]:
    """The length that each prompt's answer should be given: the longest of its answers at several temperatures, rounded
    up to a multiple of `bin_tokens` (spec G1.1).

    Args:
        paths: files of answers; each answers the same prompts.
        bin_tokens: width of a bin.

    Returns:
        An object for each prompt in order of its first answer: prompt, tokens, template, at_cap.

    Raises:
        DataError: an answer lacks its prompt, or a file answers other prompts.
    """
    longest: dict[str, Answer] = {}
    cut: set[str] = set()
    first: set[str] = set()
    for path in paths:
        answers = read_answers(path)
        prompts = {answer.prompt for answer in answers}
        if "" in prompts:
            raise DataError(f"{path}: an answer has no prompt; labels are of prompts; use `pangu generate --json`")
        first = first or prompts
        if prompts != first:
            other = sorted(prompts ^ first)[0]
            raise DataError(f"{path}: prompt {other[:40]!r} is not in every file; files answer the same prompts")
        cut |= {answer.prompt for answer in answers if answer.at_cap}
        for answer in answers:
            known = longest.setdefault(answer.prompt, answer)
            if answer.tokens > known.tokens:
                longest[answer.prompt] = answer
    rows = []
    for prompt, answer in longest.items():
        row = {"prompt": prompt, "tokens": -(-answer.tokens // bin_tokens) * bin_tokens, "at_cap": prompt in cut}
        rows.append(row | ({"template": answer.template} if answer.template else {}))
    return rows
