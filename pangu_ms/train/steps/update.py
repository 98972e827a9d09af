"""The graph of the update: unscale, clip, guard, optimizer.

A step whose loss or gradient is not finite, or whose loss exceeds a limit, leaves weights and moments untouched, inside
the graph.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

import ascend_ops
from ascend_ops.layout import laid_out
from pangu_ms.config.schema import RunConfig
from pangu_ms.train.optimizer import AdamW

# HyperMap, not loops: see optimizer.py.
_squared_norms, _total = ops.MultitypeFuncGraph("squared_norms"), ops.MultitypeFuncGraph("total")

# Under a plan a rank has slices of gradients. This attribute makes MindSpore sum their squares over all ranks, counting
# equal slices once.
_of_slices = ops.ExpandDims().add_prim_attr("grad_scale", True)


@_squared_norms.register("Number", "Tensor")
def _tensor_squared_norms(lazy, gradient):
    """[1]; of a lazy stack's gradient [K]."""
    if lazy:
        return ascend_ops.squared_norms(gradient)
    return _of_slices(ascend_ops.squared_norm(gradient), 0)


@_total.register("Number", "Tensor", "Tensor")
def _tensor_total(lazy, norms, gradient):
    """The sum as [1]. Members are added one after the other: so members that are zero do not change the sum's bits,
    and a stack gives the same sum as one that holds only its members that are not zero. Under a plan a rank has a part
    of the members."""
    if not lazy:
        return norms
    if laid_out():
        return _of_slices(ascend_ops.squared_norm(gradient), 0)
    return ops.cumsum(norms, 0)[-1:]


class GradientGuard(nn.Cell):
    """The norm of all gradients, whether to apply them, and the factor that unscales and clips them."""

    def __init__(
        self, lazy: tuple[int, ...], clip_norm: float, micro_batch_tokens: int, num_uncounted: int = 0
    ) -> None:
        """`lazy` is 1 for each gradient of a lazy stack, else 0; `num_uncounted` is the number of leading gradients
        that the norm leaves out, since another pipeline stage counts them."""
        super().__init__(auto_prefix=False)
        self.num_uncounted = num_uncounted
        self.clip_norm, self.micro_batch_tokens = clip_norm, float(micro_batch_tokens)
        self.hyper_map, self.add, self.sqrt, self.is_finite = ops.HyperMap(), ops.AddN(), ops.Sqrt(), ops.IsFinite()
        self.minimum, self.both = ops.Minimum(), ops.LogicalAnd()
        self.lazy = lazy

    def construct(self, total, count, gradients, scale, loss_limit):
        """-> squared norm of each gradient, of a lazy stack's that of each member; norm of the gradient of the mean
        loss before clipping; whether to apply the gradients; their factor."""
        unscale = self.micro_batch_tokens / (scale * (count + 1e-5))
        norms = self.hyper_map(_squared_norms, self.lazy, gradients)
        totals = self.hyper_map(_total, self.lazy, norms, gradients)
        norm = self.sqrt(self.add(totals[self.num_uncounted :]))[0] * unscale
        applied = self.both(self.is_finite(norm + total), total <= loss_limit * (count + 1e-5))
        factor = unscale
        if self.clip_norm > 0:
            factor = unscale * self.minimum(self.clip_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
        return norms, norm, applied, factor


class GuardedUpdate(nn.Cell):
    """Unscale and clip gradients, then update, unless something is not finite or the loss exceeds its limit."""

    def __init__(self, optimizer: AdamW, guard: GradientGuard):
        super().__init__(auto_prefix=False)
        self.optimizer, self.guard = optimizer, guard
        self.micro_batch_tokens = guard.micro_batch_tokens

    def construct(self, total, count, gradients, lr, scale, loss_limit):
        """Returns (norm of the gradient of the mean loss before clipping, whether the update was applied)."""
        norms, norm, applied, factor = self.guard(total, count, gradients, scale, loss_limit)
        if applied:
            self.optimizer(gradients, norms, factor, lr)
        return norm, applied


def build_update(
    config: RunConfig, weights: ParameterTuple, micro_batch_size: int, num_uncounted: int = 0
) -> GuardedUpdate:
    """The update of a run's optimizer.

    Args:
        micro_batch_size: number of sequences whose tokens are the divisor in `Gradients`.
        num_uncounted: see GradientGuard.
    """
    return GuardedUpdate(
        build_optimizer(config, weights), build_guard(config, weights, micro_batch_size, num_uncounted)
    )


def build_guard(
    config: RunConfig, weights: ParameterTuple, micro_batch_size: int, num_uncounted: int = 0
) -> GradientGuard:
    """The guard of a run's gradients; see `build_update`."""
    specs, tokens = config.model.parameters(), micro_batch_size * config.model.seq_length
    lazy = tuple(int(specs[weight.name].lazy) for weight in weights)
    return GradientGuard(lazy, config.optimizer.clip_norm, tokens, num_uncounted)


def build_optimizer(config: RunConfig, weights: Sequence[Parameter]) -> AdamW:
    """A run's optimizer of some weights."""
    return AdamW(list(weights), config.optimizer, config.model.parameters())
