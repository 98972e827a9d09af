"""Cells around one operator, in a file of their own since graph mode reads their source.

They return single elements: results then live in MindSpore's pool, as inside a model, and not in new memory of the
system.
"""

from mindspore import nn, ops

import ascend_ops


def corner(x):
    """The first element."""
    if x.ndim == 1:
        return x[0]
    if x.ndim == 2:
        return x[0, 0]
    return x[0, 0, 0] if x.ndim == 3 else x[0, 0, 0, 0] if x.ndim == 4 else x


class Forward(nn.Cell):
    """The operator alone."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def construct(self, *inputs):
        outputs = self.call(*inputs)
        return corner(outputs[0] if isinstance(outputs, tuple) else outputs)


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
            kept = kept + (corner(gradients[i]),)
        return corner(output), kept


def dropout(x, seed):
    return ascend_ops.dropout(x, seed, 0.1)


def dispatch(x, expert):
    return ascend_ops.moe_dispatch(x, expert, 16)
