"""One value for several readers."""

from mindspore import nn, ops


class Fork(nn.Cell):
    """(x,) * count, whose gradients are added in the dtype of x. MindSpore's AddN, which does it otherwise, has no bfloat16 on a CPU."""

    def __init__(self, count: int):
        super().__init__()
        self.count, self.add = count, ops.Add()

    def construct(self, x):
        return (x,) * self.count

    def bprop(self, x, out, dout):
        total = dout[0]
        for i in range(1, self.count):
            total = self.add(total, dout[i])
        return (total,)
