"""Addition, and `fork`, which gives one value to several consumers and adds their gradients."""

from mindspore import Tensor, nn, ops

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import gradient_of, kernel
from ascend_ops.layout import as_before, as_stream, is_laid_out, laid_out, placed_on_stream


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, of the same shape and dtype (float32, float16 or bfloat16), rounded once."""
    chosen = select("add", describe(x), describe(y))
    if chosen == "composed" or chosen == "builtin":
        return ops.Add()(x, y)
    return kernel("Add")(x, y)


def add_to_stream(x: Tensor, y: Tensor) -> Tensor:
    """`add` of the residual stream [B, S, E] and a tensor of its shape; under a plan both have the stream's layout."""
    if laid_out():
        rows = as_stream(x)
        return as_before(placed_on_stream("Add", rows.ndim, 2)(rows, as_stream(y)), x)
    return add(x, y)


def fork(count: int) -> nn.Cell:
    """A cell that maps x to (x,) * count, for several consumers whose gradients are added by `add`.

    Without it MindSpore would add the gradients by AddN, which has no bfloat16 on a CPU. Under a plan AddN is used all
    the same, because MindSpore's propagation of layouts stops at a cell with its own gradient.
    """
    return Copies(count) if is_laid_out() else Fork(count)


class Copies(nn.Cell):
    """(x,) * count."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def construct(self, x):
        return (x,) * self.count


class Fork(nn.Cell):
    """(x,) * count, whose gradients are added by `add`."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def construct(self, x):
        return (x,) * self.count

    def bprop(self, x, out, dout):
        total = dout[0]
        for i in range(1, self.count):
            total = add(total, dout[i])
        return (total,)


@gradient_of("Add")
def _add_gradient(x, y, out, dout):
    return dout, dout


@rule("add")
def _check_add(x: Operand, y: Operand) -> None:
    x.floating()
    x.rank(1)
    y.floating(like=x)
    if x.shape is not None:
        y.shaped("the shape of x", x.shape)
