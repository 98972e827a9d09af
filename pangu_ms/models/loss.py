"""Masked cross-entropy of next tokens. Source: specification A1.6."""

import numpy as np
from mindspore import Tensor, nn, ops

from pangu_ms.data.loader import Batch


def to_tensors(batch: Batch) -> tuple[Tensor, ...]:
    """The inputs of TokenLoss: ids, positions, segments and loss mask."""
    return tuple(Tensor(array) for array in (batch.ids, batch.positions, batch.segments, batch.loss_mask))


class TokenLoss(nn.Cell):
    """Sum of the cross-entropy over the positions that count, and their number."""

    def __init__(self, model: nn.Cell, vocab_size: int):
        super().__init__(auto_prefix=False)
        self.model = model
        self.log_softmax, self.pick, self.total = ops.LogSoftmax(-1), ops.NLLLoss(reduction="none"), ops.ReduceSum()
        self.ones_V = Tensor(np.ones(vocab_size, np.float32))

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, key):
        """ids int32 [B, S+1]; positions, segments int32 and mask float32 [B, S] -> (sum of losses, sum of mask), float32 scalars."""
        logits_TV = self.model(ids_BS1[:, :-1], positions_BS, segments_BS, key)
        loss_T = self.pick(self.log_softmax(logits_TV), ids_BS1[:, 1:].reshape(-1), self.ones_V)[0]
        return self.total(loss_T * mask_BS.reshape(-1)), self.total(mask_BS)


def mean_loss(total: float, count: float) -> float:
    """sum / (count + 1e-5): the official mean, finite when nothing counts (spec A1.6)."""
    return total / (count + 1e-5)
