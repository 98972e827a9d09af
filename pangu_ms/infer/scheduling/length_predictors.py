"""Predict how many tokens a request will generate, from its prompt or from earlier answers. numpy only.

A predictor that needs the model (a probe on the prompt's last hidden state, or the model's own answer to "how long will
your answer be") is another `LengthPredictor`; `predict` gets several prompts at once so that it can batch them.

Legend: F features, N prompts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.data.tokenizer import Tokenizer

FORMAT = 1
COLD_START_TOKENS = 128.0
"""What a running mean predicts before it has seen an answer; as vllm-ascend's batch-job-aware scheduler does (spec
G1.4)."""
KINDS = ("ngrams", "template")


@dataclass(frozen=True)
class Prompt:
    """What a predictor sees of a request.

    Attributes:
        token_ids: the prompt.
        template: what it was made from, or the job that it belongs to; "" if unknown.
        id: the request's.
    """

    token_ids: tuple[int, ...] = ()
    template: str = ""
    id: int = -1


class LengthPredictor(Protocol):
    """Predicts lengths; see the module."""

    def predict(self, prompts: Sequence[Prompt]) -> list[float]:
        """The expected number of new tokens of each prompt."""

    def observe(self, prompt: Prompt, new_tokens: int) -> None:
        """Learn from an answer that has ended. A predictor that was trained before does nothing."""


@dataclass(frozen=True)
class Oracle:
    """Knows the lengths, by id of the request; for tests and bounds. Wrong lengths make a wrong oracle: see
    `lengths.noisy` and `lengths.shuffled`."""

    lengths: Mapping[int, float]

    def predict(self, prompts: Sequence[Prompt]) -> list[float]:
        """See LengthPredictor."""
        return [float(self.lengths[prompt.id]) for prompt in prompts]

    def observe(self, prompt: Prompt, new_tokens: int) -> None:
        """See LengthPredictor."""


@dataclass
class TemplateMean:
    """The running mean (EWMA) of the answers to each template. A template without answers has the mean of all.

    Attributes:
        weight: of the newest answer in the mean; the first answers count equally until 1 / n is smaller than this.
        means: of each template, and of all under None.
        counts: answers of each, likewise.
    """

    weight: float = 0.1
    means: dict[str | None, float] = field(default_factory=dict)
    counts: dict[str | None, int] = field(default_factory=dict)

    def predict(self, prompts: Sequence[Prompt]) -> list[float]:
        """See LengthPredictor."""
        overall = self.means.get(None, COLD_START_TOKENS)
        return [self.means.get(prompt.template, overall) for prompt in prompts]

    def observe(self, prompt: Prompt, new_tokens: int) -> None:
        """See LengthPredictor."""
        for key in (prompt.template, None):
            count = self.counts[key] = self.counts.get(key, 0) + 1
            mean = self.means.get(key, 0.0)
            self.means[key] = mean + (new_tokens - mean) * max(self.weight, 1 / count)


@dataclass(frozen=True)
class NgramRidge:
    """Ridge regression of the logarithm of the length on hashed n-grams of the prompt's tokens.

    Attributes:
        weights: float64 [F + 2]: those of the features, of the logarithm of the prompt's length, and the constant.
        longest: the longest answer that it was trained on; no prediction is longer.
    """

    weights: np.ndarray
    longest: float

    @classmethod
    def fit(
        cls, prompts: Sequence[Prompt], lengths: Sequence[int], num_features: int = 2048, ridge: float = 1.0
    ) -> "NgramRidge":
        """Train on prompts and the lengths of their answers.

        Args:
            num_features: n-grams are hashed to so many.
            ridge: weight of the squared coefficients, above 0; the constant is not penalized.
        """
        size = num_features + 2
        gram, right = np.zeros((size, size)), np.zeros(size)
        for first in range(0, len(prompts), 1024):  # in blocks: all features of 100,000 prompts have 1.6 GB
            features = np.stack([_features(prompt, num_features) for prompt in prompts[first : first + 1024]])
            gram += features.T @ features
            right += features.T @ np.log(np.maximum(lengths[first : first + 1024], 1))
        gram[np.arange(size - 1), np.arange(size - 1)] += ridge
        return cls(np.linalg.solve(gram, right), float(max(lengths)))

    def predict(self, prompts: Sequence[Prompt]) -> list[float]:
        """See LengthPredictor."""
        predicted = []
        for prompt in prompts:
            logarithm = _features(prompt, len(self.weights) - 2) @ self.weights
            # Bounded before exp, which a strange prompt's sum would overflow, and after it, which rounds.
            predicted.append(min(float(np.exp(np.clip(logarithm, 0, np.log(self.longest)))), self.longest))
        return predicted

    def observe(self, prompt: Prompt, new_tokens: int) -> None:
        """See LengthPredictor."""


_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
"""Odd numbers of xxHash; one for each place in an n-gram, so that a b and b a differ."""


def _features(prompt: Prompt, num_features: int) -> np.ndarray:
    """Hashed tokens and pairs of tokens, with signs, scaled to the norm 1, and two more features: float64 [F + 2]."""
    ids = np.array(prompt.token_ids, np.uint64)
    features = np.zeros(num_features + 2)
    for n in range(1, min(2, len(ids)) + 1):
        hashes = np.full(len(ids) - n + 1, n, np.uint64)
        for place in range(n):
            hashes ^= (ids[place : len(ids) - n + 1 + place] + np.uint64(1)) * np.uint64(_MULTIPLIERS[place])
            hashes ^= hashes >> np.uint64(29)
            hashes *= np.uint64(_MULTIPLIERS[1])
            hashes ^= hashes >> np.uint64(32)
        signs = np.where(hashes >> np.uint64(63), 1.0, -1.0)
        np.add.at(features, (hashes % np.uint64(num_features)).astype(np.int64), signs)
    norm = np.linalg.norm(features)
    if norm:
        features /= norm
    features[-2:] = np.log1p(len(ids)), 1.0
    return features


def save_predictor(path: Path, predictor: TemplateMean | NgramRidge, tokenizer: Tokenizer) -> None:
    """Write a predictor as a new JSON file.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    content: dict[str, Any] = {format_version.KEY: FORMAT, "tokenizer": tokenizer.fingerprint}
    if isinstance(predictor, NgramRidge):
        content |= {"kind": "ngrams", "longest": predictor.longest, "weights": predictor.weights.tolist()}
    else:
        templates = [[key, mean, predictor.counts[key]] for key, mean in predictor.means.items()]
        content |= {"kind": "template", "weight": predictor.weight, "templates": templates}
    files.write_new(path, json.dumps(content, ensure_ascii=False) + "\n")


def load_predictor(path: Path, tokenizer: Tokenizer) -> TemplateMean | NgramRidge:
    """Read what `save_predictor` wrote.

    Raises:
        DataError: the file is missing, damaged, or of another tokenizer, whose ids mean other texts.
    """
    try:
        content = small_json.read_object(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; a file of `pangu schedule train-predictor` is needed; correct it") from None
    if "kind" in content:
        format_version.require_known(content.get(format_version.KEY), FORMAT, path, DataError)
    if wrong := small_json.misfit(content, _FORMS.get(str(content.get("kind")), {"kind": frozenset(KINDS)})):
        raise DataError(f"{path}: {wrong}; not what `pangu schedule train-predictor` writes; train again")
    if not tokenizer.made(content["tokenizer"], str(path)):
        raise DataError(
            f"{path}: trained with tokenizer {content['tokenizer'][:12]}, given {tokenizer.fingerprint[:12]}: must be"
            " the same; train again with this one"
        )
    if content["kind"] == "ngrams":
        if len(content["weights"]) < 3:
            raise DataError(f"{path}: {len(content['weights'])} weights; there are at least 3; train again")
        return NgramRidge(np.array(content["weights"], np.float64), float(content["longest"]))
    return _template_mean(path, content)


def _template_mean(path: Path, content: dict[str, Any]) -> TemplateMean:
    predictor = TemplateMean(content["weight"])
    form = {"0": (str, None), "1": small_json.Between(0, 1 << 31), "2": range(1, 1 << 53)}
    for number, row in enumerate(content["templates"]):
        if len(row) != 3 or small_json.misfit({str(i): value for i, value in enumerate(row)}, form):
            raise DataError(f"{path}: templates[{number}] is no name, mean and count; train again")
        predictor.means[row[0]], predictor.counts[row[0]] = float(row[1]), row[2]
    return predictor


_FORMS = {
    "ngrams": {"tokenizer": str, "longest": small_json.Between(1, 1 << 31), "weights": [float]},
    "template": {"tokenizer": str, "weight": small_json.Between(0, 1), "templates": [list]},
}
"""What each kind of file holds; see `small_json.misfit`."""
