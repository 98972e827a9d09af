"""Chooses a token from logits: penalties, temperature, top-k, top-p. numpy only."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pangu_ms.core.errors import GenerationError


@dataclass(frozen=True)
class SamplingConfig:
    """How to continue a prompt."""

    max_new_tokens: int = 64
    """Longest continuation, in tokens."""
    min_new_tokens: int = 0
    """Stop tokens are not chosen before there are this many tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probabilities add up to at least this (nucleus sampling)."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of every token that occurred, the prompt included (CTRL,
    arXiv 1909.05858)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated; the official script uses 1.5 (spec A8)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every generated token; the official script uses 0.3 (spec A8)."""
    num_beams: int = 1
    """Number of beams of beam search; with 1, tokens are sampled instead."""
    length_penalty: float = 1.0
    """A finished beam scores (sum of log-probabilities) / length ** length_penalty."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    stop: tuple[str, ...] = ()
    """Texts that end a continuation and are cut off from it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a continuation, besides those of the tokenizer."""
    num_samples: int = 1
    """Continuations of each prompt."""
    logprobs: int = -1
    """With 0 or more, the log-probability of each new token is returned, and those of this many likeliest tokens."""
    seed: int = 0
    """Prompt i is sampled with a random generator that is seeded with (seed, i), and its further samples j = 1, 2, ...
    with (seed, i, j), so that a continuation does not depend on the other ones."""

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "must be 0 to max_new_tokens"),
            "logit_bias": (all(math.isfinite(value) for _, value in self.logit_bias), "must be finite"),
            "temperature": (
                self.temperature == 0 or 1e-3 <= self.temperature < math.inf,
                "must be 0, which is greedy, or at least 0.001",
            ),
            "top_k": (self.top_k >= 0, "must not be negative; 0 keeps all"),
            "top_p": (0 < self.top_p <= 1, "must be in (0, 1]"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "must be positive; 1 is off"),
            "num_beams": (self.num_beams >= 1, "must be at least 1"),
            "num_samples": (self.num_samples >= 1, "must be at least 1"),
            "logprobs": (self.logprobs >= -1, "must be at least 0; -1 is off"),
            "seed": (self.seed >= 0, "must not be negative"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "must be a number"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "must be a number"),
            "length_penalty": (math.isfinite(self.length_penalty), "must be a number"),
        }
        if self.num_beams > 1:
            unused: dict[str, object] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_samples": 1, "logprobs": -1}
            unused |= {"min_new_tokens": 0, "logit_bias": ()}
            for name, default in unused.items():
                rules[name] = (
                    getattr(self, name) == default,
                    "beam search does not sample; leave it out, or num_beams",
                )
        for name, (holds, rule) in rules.items():
            if not holds:
                raise GenerationError(f"{name}={getattr(self, name)}: {rule}")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis, float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def top_k_ids(logits: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest logits [V], ascending; those of logits equal to the k-th largest too. k = 0 keeps
    all."""
    if k == 0 or k >= logits.size:
        return np.arange(logits.size)
    whole = logits.size // _BLOCK * _BLOCK
    if whole >= _BLOCK * k:
        # The k-th largest of the blocks' largest is at most the k-th largest of all.
        blocks = logits[:whole].reshape(-1, _BLOCK).max(1)
        ids = np.flatnonzero(logits >= np.partition(blocks, -k)[-k])
        logits = logits[ids]
        return ids[logits >= np.partition(logits, -k)[-k]]
    return np.flatnonzero(logits >= np.partition(logits, -k)[-k])


def top_p_ids(logits: np.ndarray, weights: np.ndarray, p: float) -> np.ndarray:
    """Indices, ascending, of the fewest largest logits [V] whose probabilities add up to at least p; of equal logits
    the first ones.

    Args:
        logits: float64, of which the largest is 0.
        weights: their exponentials.
        p: below 1.
    """
    found = _top_p_of_likely(logits, weights, p)
    if found is None:
        order = np.argsort(-logits, kind="stable")
        cumulative = np.cumsum(np.exp(log_softmax(logits))[order])
        found = order[: np.searchsorted(cumulative, p) + 1]
    return np.sort(found)


_BLOCK = 256
_MANY = 2048  # logits from which bins take less time than sorting
_BINS = 2048
_RANGE = 32.0  # of logits below the largest in bins of equal width; the last bin has what is smaller
_ROUNDING = 1e-10  # bound of what the order of a sum of some 100,000 probabilities can change


def _top_p_of_likely(logits: np.ndarray, weights: np.ndarray, p: float) -> np.ndarray | None:
    """What `top_p_ids` finds, in any order, by sorting few of the likeliest. None if the sum comes so close to p that
    the order of summation could decide."""
    total = weights.sum()
    goal = p * total
    # All V tokens below this weight have less than 1 - p together: they are none of the fewest.
    likely = np.flatnonzero(weights >= (1 - p) * total / weights.size * (1 - 1e-9))
    logits, weights = logits[likely], weights[likely]
    certain, before, members = likely[:0], 0.0, np.arange(likely.size)
    width = min(float(-logits.min()), _RANGE) / (_BINS - 1)
    if likely.size >= _MANY and width > 0:
        bins = np.minimum(logits / -width, _BINS - 1).astype(np.int64)
        sums = np.cumsum(np.bincount(bins, weights, _BINS))
        last = min(int(np.searchsorted(sums, goal)), _BINS - 1)
        certain, before = likely[bins < last], sums[last - 1] if last else 0.0
        members = np.flatnonzero(bins == last)
    members = members[np.argsort(-logits[members], kind="stable")]
    cumulative = before + np.concatenate(([0.0], np.cumsum(weights[members])))
    count = int(np.searchsorted(cumulative, goal))
    around = cumulative[max(count - 1, 0) : count + 1]
    if around.size < 2 or np.abs(around - goal).min() < _ROUNDING * total:
        return None
    return np.concatenate((certain, likely[members[:count]]))


def draw(weights: np.ndarray, share: float) -> int:
    """The first index at which the sum of weights [n] exceeds `share`, 0 to below 1, of the whole. Its weight is not
    0."""
    whole = weights.size // _BLOCK * _BLOCK
    sums = np.append(weights[:whole].reshape(-1, _BLOCK).sum(1), weights[whole:].sum())
    ends = np.cumsum(sums)
    goal = share * ends[-1]
    # Rounding may bring the goal to the end of all.
    block = min(int(np.searchsorted(ends, goal, side="right")), int(np.flatnonzero(sums)[-1]))
    begin = block * _BLOCK
    inside = weights[begin : begin + _BLOCK] if block < sums.size - 1 else weights[begin:]
    positive = np.flatnonzero(inside)
    cumulative = np.cumsum(inside[positive]) + (ends[block - 1] if block else 0.0)
    return begin + int(positive[min(int(np.searchsorted(cumulative, goal, side="right")), positive.size - 1)])


class GuideError(GenerationError):
    """No token of the vocabulary continues what a guide asks for."""


class Guide(Protocol):
    """What a continuation may be, such as a JSON value."""

    def allowed(self) -> np.ndarray:
        """bool [n], n <= V: the tokens that may come next, stop tokens included; all others are barred.

        Raises:
            GuideError: none may.
        """

    def accept(self, token: int) -> None:
        """The next token is this one."""


@dataclass
class Sampler:
    """Chooses the tokens of one sequence. It remembers them for the penalties.

    Attributes:
        stop_ids: tokens that end the sequence.
        guide: says which tokens may come.
    """

    config: SamplingConfig
    prompt: list[int]
    index: int = 0
    generated: list[int] = field(default_factory=list)
    sample: int = 0
    stop_ids: Collection[int] = ()
    guide: Guide | None = None

    def __post_init__(self) -> None:
        bias = dict(self.config.logit_bias)
        self._biased = np.fromiter(bias, np.int64, len(bias)), np.fromiter(bias.values(), np.float64, len(bias))
        self.random = np.random.default_rng([self.config.seed, self.index, *([self.sample] if self.sample else [])])

    def penalized(self, logits: np.ndarray) -> np.ndarray:
        """Logits [V] after the three penalties; without one the same array.

        Raises:
            GenerationError: a logit is not finite.
        """
        config = self.config
        if not (math.isfinite(logits.max()) and math.isfinite(logits.min())):
            where = f"prompt {self.index + 1}: the model's logits behind {len(self.generated)} new tokens"
            found = logits[~np.isfinite(logits)][0]
            advice = "use another checkpoint, or float32 (model.compute_dtype=float32)"
            raise GenerationError(
                f"{where} hold {found}; they must be numbers; the weights are damaged or overflow: {advice}"
            )
        counted = bool(self.generated) and (config.frequency_penalty != 0 or config.presence_penalty != 0)
        if config.repetition_penalty == 1 and not counted:
            return logits
        logits = logits.astype(np.float64)
        if config.repetition_penalty != 1:
            # Each token once, however often it occurred.
            seen = np.unique(np.array(self.prompt + self.generated, np.int64))
            values = logits[seen]
            logits[seen] = np.where(values > 0, values / config.repetition_penalty, values * config.repetition_penalty)
        if counted:
            tokens, counts = np.unique(self.generated, return_counts=True)
            logits[tokens] -= config.frequency_penalty * counts + config.presence_penalty
        return logits

    def _restricted(self, logits: np.ndarray) -> np.ndarray:
        """Logits [V] with the bias; -inf where a token may not come."""
        ends_later = bool(self.stop_ids) and len(self.generated) < self.config.min_new_tokens
        if not (self.config.logit_bias or self.guide or ends_later):
            return logits
        logits = logits.astype(np.float64)
        if self.config.logit_bias:
            logits[self._biased[0]] += self._biased[1]
        if self.guide:
            allowed = self.guide.allowed()
            logits[: allowed.size][~allowed] = -np.inf
            logits[allowed.size :] = -np.inf
        if ends_later:
            others = np.delete(logits, list(self.stop_ids))
            if others.max(initial=-np.inf) > -np.inf:  # a guide may leave nothing but the end
                logits[list(self.stop_ids)] = -np.inf
        return logits

    def choose(self, logits: np.ndarray) -> int:
        """Choose the next token from logits [V], and remember it."""
        logits = self._restricted(self.penalized(logits))
        token = int(logits.argmax()) if self.config.temperature == 0 else self._draw(logits)
        self.generated.append(token)
        if self.guide:
            self.guide.accept(token)
        return token

    def _draw(self, logits: np.ndarray) -> int:
        """Draw what `self.random.choice` draws of the probabilities of all V tokens, in less time."""
        config = self.config
        ids = top_k_ids(logits, config.top_k) if config.top_k else None
        scaled = np.divide(logits if ids is None else logits[ids], config.temperature, dtype=np.float64)
        scaled -= scaled.max()
        weights = np.exp(scaled)
        if config.top_p < 1:
            kept = top_p_ids(scaled, weights, config.top_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        index = draw(weights, self.random.random())
        return index if ids is None else int(ids[index])
