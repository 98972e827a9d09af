"""Cells around one operator, in a file of their own since graph mode reads their source."""

from mindspore import nn, ops

import ascend_ops


class Forward(nn.Cell):
    """The operator alone."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def construct(self, *inputs):
        return self.call(*inputs)


class First(nn.Cell):
    """The operator's first output."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def construct(self, *inputs):
        outputs = self.call(*inputs)
        return outputs[0] if isinstance(outputs, tuple) else outputs


class Both(nn.Cell):
    """The operator and the gradients of its inputs at `positions`, for a given gradient of its first output."""

    def __init__(self, call, positions):
        super().__init__()
        self.call, self.positions = First(call), positions
        self.grad = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, cotangent, *inputs):
        output = self.call(*inputs)
        gradients = self.grad(self.call)(*inputs, cotangent)
        kept = ()
        for i in self.positions:
            kept = kept + (gradients[i],)
        return output, kept


def dropout(x, seed):
    return ascend_ops.dropout(x, seed, 0.1)


def dispatch(x, expert):
    return ascend_ops.moe_dispatch(x, expert, 16)
