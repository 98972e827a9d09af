"""The graph of a step without micro-batches."""

from mindspore import nn

from pangu_ms.train.steps.gradients import Gradients
from pangu_ms.train.steps.update import GuardedUpdate


class WholeStep(nn.Cell):
    """Gradients and update in one graph."""

    def __init__(self, gradients: Gradients, update: GuardedUpdate):
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(self, *inputs):
        """`inputs` are those of TokenLoss, then learning rate, loss scale and loss limit as float32 scalars.

        Returns:
            Sum of losses, tokens that count, gradient norm, whether the update was applied.
        """
        lr, scale, loss_limit = inputs[-3:]
        total, count, gradients = self.gradients(*inputs[:-3], scale)
        norm, applied = self.update(total, count, gradients, lr, scale, loss_limit)
        return total, count, norm, applied
