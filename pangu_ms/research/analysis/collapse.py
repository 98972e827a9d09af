"""Measures how diverse the features of a layer are: effective dimension, cosine of tokens, distance to rank one. No
mindspore import.

Legend: B batch, S sequence length, T unmasked tokens of one sequence, E hidden size.
"""

import numpy as np

from pangu_ms.core.errors import ConfigError

EQUAL = 1e-12
"""Features whose relative variance is below this are treated as equal. float32 rounds to 6e-8, whose square is
4e-15."""


def effective_dimension(covariance_EE: np.ndarray, share: float) -> int:
    """The smallest number of principal components that carry `share` of the variance; 0 if there is no variance.

    Source: spec D1, d(0.8).
    """
    eigenvalues = np.linalg.eigvalsh(covariance_EE)[::-1].clip(0.0)
    carried = np.cumsum(eigenvalues)
    if carried[-1] == 0.0:
        return 0
    # The tolerance of 1e-9 is for a share that is reached exactly, where rounding would otherwise decide.
    reached = carried >= share * carried[-1] * (1 - 1e-9)
    return int(np.argmax(reached)) + 1


def token_cosine(features_TE: np.ndarray) -> float:
    """Mean cosine between two different tokens of a sequence. A zero vector has cosine 0 with every other vector.

    It is computed without the pairs: the squared norm of the sum of the unit vectors is the sum of the cosines of all
    pairs in both orders, plus 1 for each token with itself.

    Args:
        features_TE: float64 [T, E], T >= 2.
    """
    norms = np.linalg.norm(features_TE, axis=1, keepdims=True)
    units = features_TE / np.where(norms > 0.0, norms, 1.0)
    total = units.sum(axis=0)
    num_tokens = len(features_TE)
    return float((total @ total - np.count_nonzero(norms)) / (num_tokens * (num_tokens - 1)))


class LayerDiversity:
    """Accumulates the measures of one layer over batches, in float64. It keeps an E x E matrix, but no tokens.

    A sequence is a row of a batch. A sequence with fewer than two unmasked tokens has no diversity and is left out.
    """

    def __init__(self, hidden_size: int, share: float = 0.8):
        """Start with empty sums.

        Args:
            hidden_size: E.
            share: share of the variance, for the effective dimension.

        Raises:
            ConfigError: the share is not in (0, 1).
        """
        if not 0.0 < share < 1.0:
            raise ConfigError(f"share={share}: must be above 0 and below 1; the usual one is 0.8")
        self.share = share
        self.num_tokens = self.num_sequences = 0
        self.sum_E, self.products_EE = np.zeros(hidden_size), np.zeros((hidden_size, hidden_size))
        self.cosine = self.distance = self.relative_distance = 0.0

    def update(self, features_BSE: np.ndarray, mask_BS: np.ndarray) -> None:
        """Add a batch: features float [B, S, E]; mask [B, S], 0 for the tokens to leave out."""
        for features_SE, mask_S in zip(features_BSE, mask_BS, strict=True):
            if np.count_nonzero(mask_S) >= 2:
                self._add(features_SE[mask_S != 0].astype(np.float64))

    def _add(self, features_TE: np.ndarray) -> None:
        self.num_tokens += len(features_TE)
        self.num_sequences += 1
        self.sum_E += features_TE.sum(axis=0)
        self.products_EE += features_TE.T @ features_TE
        self.cosine += token_cosine(features_TE)
        # The mean is the x that minimises the distance, see `result`.
        distance = float(np.linalg.norm(features_TE - features_TE.mean(axis=0)))
        self.distance += distance
        self.relative_distance += distance / (float(np.linalg.norm(features_TE)) or 1.0)

    def result(self) -> dict[str, float]:
        """The measures over all sequences added so far; there must be at least one.

        Returns:
            effective_dimension: int, of the covariance of all tokens; at most E and num_tokens - 1; 0 if all tokens are
                equal.
            token_cosine: in [-1, 1], mean over sequences; 1 if all tokens of a sequence point in the same direction.
            rank_one_distance: d_M(Z) = min_x ||Z - 1 x^T||_F, mean over sequences; 0 if all tokens of a sequence are
                equal.
            relative_rank_one_distance: d_M(Z) / ||Z||_F in [0, 1], mean over sequences.

        Source: spec D1.
        """
        assert self.num_sequences, "nothing to measure"
        mean_E, square = self.sum_E / self.num_tokens, np.trace(self.products_EE) / self.num_tokens
        covariance_EE = self.products_EE / self.num_tokens - np.outer(mean_E, mean_E)
        varies = np.trace(covariance_EE) > EQUAL * square
        return {
            "effective_dimension": effective_dimension(covariance_EE, self.share) if varies else 0,
            "token_cosine": self.cosine / self.num_sequences,
            "rank_one_distance": self.distance / self.num_sequences,
            "relative_rank_one_distance": self.relative_distance / self.num_sequences,
        }
