"""Unigram and bigram models of token ids, the baselines that a language model must beat. numpy only.

They are scored at the positions that the loss mask keeps, as the language model is.

Source: absolute discounting, Ney, Essen and Kneser 1994.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pangu_ms.models.common.batch import Batch


@dataclass(frozen=True)
class NgramModels:
    """A unigram and a bigram model, from the counts of labels and of pairs (input, label)."""

    unigram_V: np.ndarray
    """Probability of each token, float64 [V], add-one smoothed."""
    pairs_N: np.ndarray
    """The pairs that occurred, each encoded as input * V + label, sorted, int64 [N]."""
    counts_N: np.ndarray
    """How often each pair occurred, float64 [N]."""
    history_V: np.ndarray
    """How often each token was an input, float64 [V]."""
    followers_V: np.ndarray
    """How many different labels followed each token, float64 [V]."""
    discount: float
    """Absolute discount: subtracted from the count of every pair and redistributed by the unigram. It is n1 / (n1 + 2
    n2), where n1 pairs occurred once and n2 pairs twice."""

    @classmethod
    def count(cls, batches: Iterable[Batch], vocab_size: int) -> "NgramModels":
        """Count tokens and pairs at the positions of the batches that the loss mask keeps."""
        # Only pairs that occur are kept: a table of V * V counts would have 13 GB for 40,000 tokens.
        codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for batch in batches:
            new_codes, new_counts = np.unique(_pairs(batch, vocab_size), return_counts=True)
            merged = np.concatenate([codes, new_codes])
            codes, inverse = np.unique(merged, return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([counts, new_counts]), len(codes))
        labels = np.bincount(codes % vocab_size, counts, vocab_size)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        return cls(
            unigram_V=(labels + 1) / (labels.sum() + vocab_size),
            pairs_N=codes,
            counts_N=counts.astype(np.float64),
            history_V=np.bincount(codes // vocab_size, counts, vocab_size),
            followers_V=np.bincount(codes // vocab_size, minlength=vocab_size).astype(np.float64),
            discount=float(once / (once + 2 * twice)) if once else 0.5,  # 0 would give unseen pairs no probability
        )

    def score(self, batches: Iterable[Batch]) -> tuple[float, float, int]:
        """Score batches; returns the total negative log-likelihood (nats) under the unigram and under the bigram, and
        the number of tokens."""
        unigram = bigram = 0.0
        num_tokens = 0
        for batch in batches:
            codes = _pairs(batch, len(self.unigram_V))
            unigram -= np.log(self.unigram_V[codes % len(self.unigram_V)]).sum()
            bigram -= np.log(self.bigram_probability(codes)).sum()
            num_tokens += len(codes)
        return float(unigram), float(bigram), num_tokens

    def bigram_probability(self, codes: np.ndarray) -> np.ndarray:
        """P(label | input) of encoded pairs [n], interpolated with the unigram. An input that never occurred gets the
        unigram's probability."""
        vocab_size = len(self.unigram_V)
        inputs, labels = codes // vocab_size, codes % vocab_size
        # A pair behind all known ones would have the index len(pairs_N).
        at = np.minimum(np.searchsorted(self.pairs_N, codes), len(self.pairs_N) - 1)
        counts = np.where(self.pairs_N[at] == codes, self.counts_N[at], 0.0)
        history = self.history_V[inputs]
        seen = np.maximum(history, 1)
        rest = np.where(history > 0, self.discount * self.followers_V[inputs] / seen, 1.0)
        return np.maximum(counts - self.discount, 0) / seen + rest * self.unigram_V[labels]


def _pairs(batch: Batch, vocab_size: int) -> np.ndarray:
    """The pairs at the positions that the loss mask keeps, encoded as input * V + label, int64."""
    counts = batch.loss_mask > 0
    # int64: V * V exceeds int32 from V = 46,341 on.
    return batch.ids[:, :-1][counts].astype(np.int64) * vocab_size + batch.ids[:, 1:][counts]
