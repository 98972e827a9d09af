"""Graphs of the loss and its gradients. Legend: B batch, S sequence length."""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

from pangu_ms.models.common.loss import TokenLoss

# HyperMap, not loops: see optimizer.py.
_accumulate = ops.MultitypeFuncGraph("accumulate")


@_accumulate.register("Function", "Tensor", "Tensor", "Tensor")
def _accumulate_tensor(assign, first, total, gradient):
    return assign(total, ops.select(first, gradient, total + gradient))


class Gradients(nn.Cell):
    """Sum of losses, number of tokens that count, and gradients of loss_scale * (sum of losses) / (B * S).

    Dividing by the size of the micro-batch keeps float16 gradients in range; `GuardedUpdate` later replaces this
    divisor by the number of tokens that count.
    """

    def __init__(self, loss: TokenLoss, weights: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.value_and_grad = ops.value_and_grad(self.scaled, None, weights, has_aux=True)

    def scaled(self, ids_BS1, positions_BS, segments_BS, mask_BS, *others):
        """The function that is differentiated; `others` are extra inputs, dropout key and loss scale."""
        total, count = self.loss(ids_BS1, positions_BS, segments_BS, mask_BS, *others[:-1])
        return total * (others[-1] / mask_BS.size), (total, count)

    def construct(self, *inputs):
        """`inputs` are those of TokenLoss, then the loss scale."""
        (_, (total, count)), gradients = self.value_and_grad(*inputs)
        return total, count, gradients


class RankGradients(Gradients):
    """Gradients of a graph that MindSpore shards over ranks.

    Each rank starts its backward pass at its own copy of the loss, and the backward passes of the collectives add the
    copies up, so that gradients are too large by a factor of the number of ranks. MindSpore divides by that number if
    the differentiated function returns only the loss. Ours also returns (total, count), and then MindSpore does not
    divide (2.9.0; `pangu plan execute` shows it), so this class does. The seed of the backward pass is an input (the
    loss scale) rather than a constant: the compiler would sum a constant over the ranks itself, and in a rehearsal
    would ask the stub communicator for their number, which is virtual_cluster.STUB_GROUP_SIZE.
    """

    def __init__(self, loss: TokenLoss, weights: ParameterTuple, num_ranks: int):
        super().__init__(loss, weights)
        self.num_ranks = num_ranks

    def construct(self, *inputs):
        """See Gradients."""
        (_, (total, count)), gradients = self.value_and_grad(*inputs[:-1], inputs[-1] / self.num_ranks)
        return total, count, gradients


class GradientSums(nn.Cell):
    """Adds a micro-batch's gradients, loss and tokens to running sums, which start from zero at the first micro-batch
    of a batch."""

    def __init__(self, gradients: Gradients, weights: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        sums = [
            Parameter(initializer("zeros", p.shape, ms.float32), "accumulated." + p.name, requires_grad=False)
            for p in weights
        ]
        self.sums = ParameterTuple(sums)
        self.total = Parameter(Tensor(0.0, ms.float32), "accumulated_loss", requires_grad=False)
        self.count = Parameter(Tensor(0.0, ms.float32), "accumulated_tokens", requires_grad=False)
        self.assign, self.hyper_map = ops.Assign(), ops.HyperMap()

    def construct(self, *inputs):
        """`inputs` are those of `Gradients`, then a float32 scalar: 0 for the first micro-batch of a batch, otherwise
        1."""
        total, count, gradients = self.gradients(*inputs[:-1])
        first = (
            inputs[-1] == 0.0
        )  # select instead of a product with 0, since the sums of a batch that overflowed are not finite
        self.hyper_map(ops.partial(_accumulate, self.assign, first), self.sums, gradients)
        self.assign(self.total, ops.select(first, total, self.total + total))
        self.assign(self.count, ops.select(first, count, self.count + count))
        return total
