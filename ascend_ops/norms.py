"""Norms over the last axis, of a tensor or of a sum with a residual. Sources: Ba et al. 2016 (LayerNorm); Zhang and
Sennrich 2019 (RMSNorm).

Shapes: x and residual [..., E], of the same dtype: float32, float16 or bfloat16; weight and bias [E]. Statistics and
arithmetic are float32, results have the dtype and shape of x. All inputs have gradients. With a residual, total = x +
residual is rounded to its dtype once, and the rounded sum is normalised.
"""

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops.addition import Fork
from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, gradient_of, kernel, zeros_like
from ascend_ops.layout import as_before, as_stream, laid_out, placed_on_stream

_fork = Fork(2)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis.

    Args:
        x: [..., E].
        weight, bias: [E].
        eps: added to the variance.
        residual: [..., E] in the dtype of x, added to x first.

    Returns:
        The norm of x; with a residual (norm of total, total).
    """
    chosen = select("layer_norm", describe(x), describe(weight), describe(bias), describe(residual))
    weight, bias = ops.cast(weight, ms.float32), ops.cast(bias, ms.float32)
    if chosen == "composed" or chosen == "builtin":
        compute = _composed_layer_norm if chosen == "composed" else _builtin_layer_norm
        rows = as_stream(x)
        if residual is None:
            return as_before(compute(rows, weight, bias, eps), x)
        total, to_normalise = _twice(placed_on_stream("Add", rows.ndim, 2)(rows, as_stream(residual)))
        return as_before(compute(to_normalise, weight, bias, eps), x), as_before(total, x)
    if residual is None:
        return kernel("LayerNorm")(x, weight, bias, attribute(eps))[0]
    out = kernel("AddLayerNorm")(x, residual, weight, bias, attribute(eps))
    return out[0], out[1]


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis.

    Args:
        x: [..., E].
        weight: [E].
        eps: added to the mean square.
        residual: [..., E] in the dtype of x, added to x first.

    Returns:
        The norm of x; with a residual (norm of total, total).
    """
    chosen = select("rms_norm", describe(x), describe(weight), describe(residual))
    weight = ops.cast(weight, ms.float32)
    if chosen == "composed" or chosen == "builtin":
        # Under a plan the composed form is used: MindSpore's own operator has a float32 gradient for a float16 weight,
        # which the sum over micro-batches refuses.
        compute = _composed_rms_norm if chosen == "composed" or laid_out() else _builtin_rms_norm
        rows = as_stream(x)
        if residual is None:
            return as_before(compute(rows, weight, eps), x)
        total, to_normalise = _twice(placed_on_stream("Add", rows.ndim, 2)(rows, as_stream(residual)))
        return as_before(compute(to_normalise, weight, eps), x), as_before(total, x)
    if residual is None:
        return kernel("RmsNorm")(x, weight, attribute(eps))[0]
    out = kernel("AddRmsNorm")(x, residual, weight, attribute(eps))
    return out[0], out[1]


def _twice(x):
    return (x, x) if laid_out() else _fork(x)


def _mean(u):
    return placed_on_stream("ReduceMean", u.ndim, 1, "keep_dims")(u, -1)


def _composed_layer_norm(x, weight, bias, eps):
    """LayerNorm from elementary operators. On a CPU it takes a third of the time of ops.LayerNorm, forward and
    backward."""
    u = ops.cast(x, ms.float32)
    u = u - _mean(u)
    return ops.cast(u * ops.rsqrt(_mean(u * u) + eps) * weight + bias, x.dtype)


def _composed_rms_norm(x, weight, eps):
    u = ops.cast(x, ms.float32)
    # Square instead of u * u: if u is the result of an all-reduce, MindSpore 2.9's parallel compiler makes a wrong
    # gradient of u * u (it moves the all-reduce after the sum of both terms).
    return ops.cast(u * ops.rsqrt(_mean(ops.square(u)) + eps) * weight, x.dtype)


def _builtin_layer_norm(x, weight, bias, eps):
    """Untested on hardware."""
    return ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)(
        x, ops.cast(weight, x.dtype), ops.cast(bias, x.dtype)
    )[0]


def _builtin_rms_norm(x, weight, eps):
    """Untested on hardware."""
    return ops.rms_norm(x, ops.cast(weight, x.dtype), eps)[0]


@gradient_of("LayerNorm")
def _layer_norm_gradient(x, weight, bias, eps, out, dout):
    return *kernel("LayerNormGrad")(dout[0], x, weight, out[1], out[2]), zeros_like(eps)


@gradient_of("AddLayerNorm")
def _add_layer_norm_gradient(x, residual, weight, bias, eps, out, dout):
    dx, dweight, dbias = kernel("AddLayerNormGrad")(dout[0], dout[1], out[1], weight, out[2], out[3])
    return dx, dx, dweight, dbias, zeros_like(eps)


@gradient_of("RmsNorm")
def _rms_norm_gradient(x, weight, eps, out, dout):
    return *kernel("RmsNormGrad")(dout[0], x, weight, out[1]), zeros_like(eps)


@gradient_of("AddRmsNorm")
def _add_rms_norm_gradient(x, residual, weight, eps, out, dout):
    dx, dweight = kernel("AddRmsNormGrad")(dout[0], dout[1], out[1], weight, out[2])
    return dx, dx, dweight, zeros_like(eps)


@rule("layer_norm")
def _check_layer_norm(x: Operand, weight: Operand, bias: Operand, residual: Operand | None) -> None:
    _check_rms_norm(x, weight, residual)
    _check_channels(x, bias)


@rule("rms_norm")
def _check_rms_norm(x: Operand, weight: Operand, residual: Operand | None) -> None:
    x.floating()
    x.rank(1)
    _check_channels(x, weight)
    if residual is not None:
        residual.floating(like=x)
        if x.shape is not None:
            residual.shaped("the shape of x", x.shape)


def _check_channels(x: Operand, parameter: Operand) -> None:
    parameter.floating()
    if x.shape is not None:
        parameter.shaped(f"x has {x.shape[-1]} channels", x.shape[-1:])
