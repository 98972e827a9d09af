"""The loss of each token, and the token that a model finds the likeliest instead."""

import mindspore as ms
from mindspore import nn, ops

import ascend_ops


class LossAndChoice(nn.Cell):
    """The loss of each position, and its likeliest token: (float32, int32), both [B, S]."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model, self.argmax = model, ops.Argmax(axis=-1, output_type=ms.int32)
        self.set_train(False)

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, *extra_and_key):
        """The inputs are those of TokenLoss."""
        inputs = (ids_BS1[:, :-1], positions_BS, segments_BS, extra_and_key[-1], *extra_and_key[:-1])
        logits_BSV = self.model(*inputs)
        return ascend_ops.softmax_cross_entropy(logits_BSV, ids_BS1[:, 1:], mask_BS), self.argmax(logits_BSV)
