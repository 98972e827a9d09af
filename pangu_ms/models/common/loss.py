"""Masked cross-entropy of next tokens. Source: specification A1.6."""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

import ascend_ops
from pangu_ms.models.common.batch import Batch


def to_tensors(batch: Batch) -> tuple[Tensor, ...]:
    """The inputs of TokenLoss except the dropout key: ids, positions, segments, loss mask, and the family's extra
    ones."""
    return tuple(Tensor(array) for array in batch.arrays())


class TokenLoss(nn.Cell):
    """Sum of the cross-entropy over the positions that the mask counts, and the number of these positions.

    In training a model with a balance loss (see models/registry.py) gets the gradient of sum + number * balance loss,
    so that the mean has that of cross-entropy + balance loss. The value of the sum stays that of the cross-entropy.
    """

    def __init__(self, model: nn.Cell, keeps_balance_loss: bool = False):
        """Wrap a model of `build_model`."""
        super().__init__(auto_prefix=False)
        self.model, self.has_balance_loss = model, model.has_balance_loss
        self.total = ops.ReduceSum()
        self.balance_loss: Parameter | None = None
        """With `keeps_balance_loss` that of the last call in training; None if the model has none."""
        if self.has_balance_loss and keeps_balance_loss:
            self.balance_loss = Parameter(Tensor(0.0, ms.float32), "balance_loss", requires_grad=False)

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, *extra_and_key):
        """ids int32 [B, S+1]; positions, segments int32 and mask float32 [B, S]; the family's extra inputs; the int32
        key that seeds dropout -> (sum of losses, sum of mask), float32 scalars."""
        inputs = (ids_BS1[:, :-1], positions_BS, segments_BS, extra_and_key[-1], *extra_and_key[:-1])
        count = self.total(mask_BS)
        if self.training and self.has_balance_loss:
            logits_BSV, balance_loss = self.model.with_balance_loss(*inputs)
            if self.balance_loss is not None:
                ops.assign(self.balance_loss, ops.stop_gradient(balance_loss))
            return add_gradient_of(self._sum(logits_BSV, ids_BS1, mask_BS), balance_loss * count), count
        return self._sum(self.model(*inputs), ids_BS1, mask_BS), count

    def _sum(self, logits_BSV, ids_BS1, mask_BS):
        loss_BS = ascend_ops.softmax_cross_entropy(logits_BSV, ids_BS1[:, 1:], mask_BS)
        return self.total(loss_BS * mask_BS)


class TokenLogprobs(nn.Cell):
    """The log-probabilities of given tokens behind the tokens of whole rows, without a cache, for inference."""

    def __init__(self, model: nn.Cell):
        """Wrap a model of `build_model`."""
        super().__init__(auto_prefix=False)
        self.model = model
        self.set_train(False)

    def construct(self, ids_BS, positions_BS, segments_BS, targets_BS, *extra_and_key):
        """All int32 [B, S]; a negative target is not wanted; then as for TokenLoss -> (log-probability of each target,
        float32, the likeliest token in its place, int32), both [B, S]."""
        logits_BSV = self.model(ids_BS, positions_BS, segments_BS, extra_and_key[-1], *extra_and_key[:-1])
        return ascend_ops.token_logprobs(logits_BSV, targets_BS)


def add_gradient_of(loss, other):
    """The value of `loss`, with the gradient of loss + other; both are scalars."""
    return loss + (other - ops.stop_gradient(other))


def mean_loss(total: float, count: float) -> float:
    """total / (count + 1e-5): the official code's mean, which is finite even if no token counts (spec A1.6)."""
    return total / (count + 1e-5)
