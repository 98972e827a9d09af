"""The log-probabilities of given tokens as one graph over the weights and the caches of a CachedModel.

Shapes: S slots, N = S + P rows of which P are a chunk of one sequence, Q = S or S + P rows with logits; V vocabulary.
"""

from mindspore import nn

import ascend_ops
from pangu_ms.infer.cached_model import CachedModel


class ScoringModel(nn.Cell):
    """Appends a chunk of one sequence to its slot, and returns what the model thinks of the tokens behind it. The
    logits, [Q, V], do not leave the graph; with Q = S a chunk costs none."""

    def __init__(self, cached: CachedModel):
        super().__init__(auto_prefix=False)
        self.cached = cached
        self.set_train(False)

    def construct(self, ids_N, positions_N, rows_Q, targets_Q, chunk_slot_1, *extra):
        """Append a chunk to a slot.

        Args:
            ids_N, positions_N, chunk_slot_1, extra: see CachedModel.
            rows_Q: int32, which of the N rows to compute logits of: one for each slot, then perhaps those of the chunk.
            targets_Q: int32, the token behind each of them; negative: it is not wanted.

        Returns:
            The log-probability of each target, float32 [Q], and the likeliest token there, int32 [Q].
        """
        logits_QV = self.cached.append(ids_N, positions_N, rows_Q, chunk_slot_1, extra)
        return ascend_ops.token_logprobs(logits_QV, targets_Q)
