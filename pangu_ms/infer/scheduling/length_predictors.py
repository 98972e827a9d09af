"""Predict how many tokens a request will generate, from its prompt or from earlier answers. numpy only.

Two predictors need the model: `StateProbe` reads the prompt's last hidden state, and `OwnAnswer` asks the model how
long its answer will be. They call the model through a function that they are given, with all prompts at once, so that
it can batch them; `prompt_states.py` and `questions.py` are these functions.

Legend: F features, N prompts, E hidden size.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pangu_ms.infer.prompt_states import PromptStates

FORMAT = 1
COLD_START_TOKENS = 128.0
"""What a running mean predicts before it has seen an answer; as vllm-ascend's batch-job-aware scheduler does (spec
G1.4)."""
KINDS = ("ngrams", "template", "probe", "answer")
QUESTION = "\n\nDo not answer yet. How many tokens will your answer have? Reply with one number.\nNumber:"
"""What `OwnAnswer` appends to a prompt unless it is told another question. The paper's instruction (spec G1.1) asks the
same; its words are not copied."""
States = Callable[[Sequence[tuple[int, ...]]], np.ndarray]
"""The last hidden state of the last token of each prompt: float [N, E]."""
Ask = Callable[[Sequence[tuple[int, ...]]], list[str]]
"""The beginning of the model's continuation of each prompt; "" if a slot has no room for it."""


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
        blocks = []
        for first in range(0, len(prompts), 1024):  # in blocks: all features of 100,000 prompts have 1.6 GB
            blocks.append((prompts[first : first + 1024], lengths[first : first + 1024]))
        stacked = ((np.stack([_features(one, num_features) for one in some]), of_some) for some, of_some in blocks)
        return cls(_ridge(stacked, num_features + 2, ridge), float(max(lengths)))

    def predict(self, prompts: Sequence[Prompt]) -> list[float]:
        """See LengthPredictor."""
        logarithms = [_features(prompt, len(self.weights) - 2) @ self.weights for prompt in prompts]
        return [_length(logarithm, self.longest) for logarithm in logarithms]

    def observe(self, prompt: Prompt, new_tokens: int) -> None:
        """See LengthPredictor."""


@dataclass(frozen=True)
class StateProbe:
    """Ridge regression of the logarithm of the length on the prompt's last hidden state: the state of its last token
    behind the last layer, which the head reads. It costs a pass over the prompt of its own, before scheduling.

    Attributes:
        weights: float64 [E + 2]: those of the state, of the logarithm of the prompt's length, and the constant.
        longest: the longest answer that it was trained on; no prediction is longer.
        checkpoint: digest of the checkpoint's manifest; the states of another model mean something else.
        states: computes the states.
    """

    weights: np.ndarray
    longest: float
    checkpoint: str
    states: States

    @classmethod
    def fit(
        cls, prompts: Sequence[Prompt], lengths: Sequence[int], checkpoint: str, states: States, ridge: float = 100.0
    ) -> "StateProbe":
        """Train on prompts and the lengths of their answers.

        Args:
            checkpoint, states: see the class.
            ridge: weight of the squared coefficients of features that are scaled to the variance 1, above 0; the
                constant is not penalized.
        """
        features = _state_features(prompts, states)
        mean, scale = features[:, :-1].mean(0), features[:, :-1].std(0)
        scale[scale == 0] = 1.0  # a feature that never changes says nothing; its weight comes out 0
        scaled = np.hstack([(features[:, :-1] - mean) / scale, features[:, -1:]])
        found = _ridge([(scaled, lengths)], scaled.shape[1], ridge)
        weights = found[:-1] / scale
        return cls(np.append(weights, found[-1] - mean @ weights), float(max(lengths)), checkpoint, states)

    def predict(self, prompts: Sequence[Prompt]) -> list[float]:
        """See LengthPredictor."""
        if not prompts:
            return []
        return [_length(logarithm, self.longest) for logarithm in _state_features(prompts, self.states) @ self.weights]

    def observe(self, prompt: Prompt, new_tokens: int) -> None:
        """See LengthPredictor."""


def _state_features(prompts: Sequence[Prompt], states: States) -> np.ndarray:
    """States of prompts and two more features: float64 [N, E + 2]."""
    found = np.asarray(states([prompt.token_ids for prompt in prompts]), np.float64)
    more = [(np.log1p(len(prompt.token_ids)), 1.0) for prompt in prompts]
    return np.hstack([found, more])


@dataclass(frozen=True)
class OwnAnswer:
    """Asks the model how many tokens its answer will have ("perception in advance"), and takes the first number of what
    it says. It costs the steps of reading each prompt with the question and of generating a few tokens. A model that
    was not trained to follow instructions answers noise.

    Attributes:
        question: appended to the prompt's tokens.
        otherwise: the prediction where the model says no number.
        longest: no prediction is longer.
        encode: the ids of the question.
        ask: the model.
    """

    question: str
    otherwise: float
    longest: float
    encode: Callable[[str], list[int]]
    ask: Ask | None = None

    def predict(self, prompts: Sequence[Prompt]) -> list[float]:
        """See LengthPredictor."""
        return [self.otherwise if number is None else number for number in self.numbers(prompts)]

    def numbers(self, prompts: Sequence[Prompt]) -> list[float | None]:
        """What the model says of each prompt; None where it says no number."""
        assert self.ask, "no model to ask; see Generator"
        asked = tuple(self.encode(self.question))
        texts = self.ask([(*prompt.token_ids, *asked) for prompt in prompts])
        return [first_number(text, self.longest) for text in texts]

    def observe(self, prompt: Prompt, new_tokens: int) -> None:
        """See LengthPredictor."""


def first_number(text: str, most: float) -> float | None:
    """The first whole number in a text, from 1 to `most`; None if there is none."""
    found = re.search(r"[0-9]+", text)
    return min(max(float(found[0]), 1.0), most) if found else None


def _ridge(blocks: Iterable[tuple[np.ndarray, Sequence[int]]], size: int, ridge: float) -> np.ndarray:
    """Ridge regression of logarithms of lengths: float64 [F].

    Args:
        blocks: features [N, F], of which the last is the constant, and lengths.
        size: F.
        ridge: weight of the squared coefficients; the constant is not penalized.
    """
    gram, right = np.zeros((size, size)), np.zeros(size)
    for features, lengths in blocks:
        gram += features.T @ features
        right += features.T @ np.log(np.maximum(lengths, 1))
    gram[np.arange(size - 1), np.arange(size - 1)] += ridge
    return np.linalg.solve(gram, right)


def _length(logarithm: float, longest: float) -> float:
    """The length of a logarithm, from 1 to the longest. It is bounded before exp, which a strange prompt's sum would
    overflow, and after it, which rounds."""
    return min(float(np.exp(np.clip(logarithm, 0, np.log(longest)))), longest)


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


Predictor = TemplateMean | NgramRidge | StateProbe | OwnAnswer
"""Those that have files."""


def save_predictor(path: Path, predictor: Predictor, tokenizer: Tokenizer) -> None:
    """Write a predictor as a new JSON file.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    content: dict[str, Any] = {format_version.KEY: FORMAT, "tokenizer": tokenizer.fingerprint}
    match predictor:
        case NgramRidge():
            content |= {"kind": "ngrams", "longest": predictor.longest, "weights": predictor.weights.tolist()}
        case StateProbe():
            content |= {"kind": "probe", "checkpoint": predictor.checkpoint, "longest": predictor.longest}
            content |= {"weights": predictor.weights.tolist()}
        case OwnAnswer():
            content |= {"kind": "answer", "question": predictor.question, "longest": predictor.longest}
            content |= {"otherwise": predictor.otherwise}
        case TemplateMean():
            templates = [[key, mean, predictor.counts[key]] for key, mean in predictor.means.items()]
            content |= {"kind": "template", "weight": predictor.weight, "templates": templates}
    files.write_new(path, json.dumps(content, ensure_ascii=False) + "\n")


def load_predictor(path: Path, tokenizer: Tokenizer, states: "PromptStates | None" = None) -> Predictor:
    """Read what `save_predictor` wrote.

    Args:
        path: the file.
        tokenizer: of the prompts.
        states: of the model that answers, which a probe needs; None: there is only a package, or no model.

    Raises:
        DataError: the file is missing, damaged, or of another tokenizer, whose ids mean other texts; or it is a probe
            of another checkpoint's states, or there are none.
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
    if "weights" in content and len(content["weights"]) < 3:
        raise DataError(f"{path}: {len(content['weights'])} weights; there are at least 3; train again")
    match content["kind"]:
        case "ngrams":
            return NgramRidge(np.array(content["weights"], np.float64), float(content["longest"]))
        case "probe":
            return _state_probe(path, content, states)
        case "answer":
            numbers = float(content["otherwise"]), float(content["longest"])
            return OwnAnswer(content["question"], *numbers, tokenizer.encode)
    return _template_mean(path, content)


def _state_probe(path: Path, content: dict[str, Any], states: "PromptStates | None") -> StateProbe:
    if states is None:
        raise DataError(
            f"{path}: is a probe of hidden states, which need their checkpoint; give it, or use a predictor of --kind"
            " ngrams"
        )
    if content["checkpoint"] != states.digest:
        raise DataError(
            f"{path}: trained on checkpoint {content['checkpoint'][:12]}, given {states.digest[:12]}"
            f" ({states.checkpoint.path}): must be the same, since another model has other states; train again with"
            " this one"
        )
    if len(content["weights"]) != states.size + 2:
        raise DataError(
            f"{path}: {len(content['weights'])} weights; a hidden size of {states.size} needs {states.size + 2}; train"
            " again"
        )
    return StateProbe(np.array(content["weights"], np.float64), float(content["longest"]), states.digest, states)


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
    "probe": {"tokenizer": str, "checkpoint": str, "longest": small_json.Between(1, 1 << 31), "weights": [float]},
    "answer": {
        "tokenizer": str,
        "question": str,
        "longest": small_json.Between(1, 1 << 31),
        "otherwise": small_json.Between(1, 1 << 31),
    },
    "template": {"tokenizer": str, "weight": small_json.Between(0, 1), "templates": [list]},
}
"""What each kind of file holds; see `small_json.misfit`."""
