"""The graph of a step without micro-batches."""

from mindspore import nn

from pangu_ms.train.steps.gradients import Gradients


class WholeStep(nn.Cell):
    """Gradients and update in one graph."""

    def __init__(self, gradients: Gradients, update: nn.Cell):
        """`update` is a GuardedUpdate, or has its inputs and further outputs."""
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(self, *inputs):
        """`inputs` are those of TokenLoss, then learning rate, loss scale and loss limit as float32 scalars.

        Returns:
            Sum of losses, tokens that count, and what `update` returns: gradient norm, whether it was applied.
        """
        lr, scale, loss_limit = inputs[-3:]
        total, count, gradients = self.gradients(*inputs[:-3], scale)
        return (total, count) + self.update(total, count, gradients, lr, scale, loss_limit)
