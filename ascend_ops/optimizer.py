"""The optimizer's update, and the norm that gradient clipping needs."""

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, filled, gradient_of, kernel
from ascend_ops.layout import laid_out

_each, _squares = ops.HyperMap(), ops.MultitypeFuncGraph("squares")


def adamw(
    parameter: Parameter,
    m: Parameter,
    v: Parameter,
    gradient: Tensor,
    lr: Tensor,
    factor: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    norms: Tensor | None = None,
) -> Tensor:
    """One in-place AdamW step without bias correction, as in MindSpore's AdamWeightDecay.

    With g = gradient * factor: m += (1 - beta1) (g - m); v += (1 - beta2) (g^2 - v); parameter -= lr (m / (sqrt(v) +
    eps) + weight_decay parameter).
    Source: Loshchilov and Hutter 2019, algorithm 2; specification A3.1.

    Args:
        parameter, m, v: float32, of the same shape; updated in place.
        gradient: of that shape; float32, float16 or bfloat16.
        lr: learning rate, float32 scalar.
        factor: factor of the gradient (loss scale and clipping), float32 scalar.
        beta1, beta2, eps, weight_decay: constants; eps may be as small as 1e-20: an element whose moments and gradient
            are 0 does not move.
        norms: float32 [K] for a parameter [K, ...], such as `squared_norms(gradient)`: where norms[k] is 0, index k of
            parameter, m and v stays as it is, without decay of the parameter or the moments (lazy Adam), and the CPU
            kernel does not read it. The others get the same bits as in an update of their own. None updates all.

    Returns:
        float32 [1], computed after the update, so that operations that must follow the update can depend on it.
    """
    chosen = select("adamw", describe(parameter), describe(m), describe(v), describe(gradient), describe(norms))
    if chosen == "composed" or chosen == "builtin":
        unscaled = ops.cast(gradient, ms.float32) * ops.reshape(factor, ())
        hyper = (ops.reshape(lr, ()), beta1, beta2, eps, weight_decay)
        done = (
            _update_all(parameter, m, v, hyper, unscaled)
            if norms is None
            else _update_some(parameter, m, v, hyper, unscaled, norms)
        )
        return ops.depend(filled(1.0, 1), done)
    controls = ops.concat((ops.reshape(lr, (1,)), ops.reshape(factor, (1,))))
    norms = filled(1.0, 1) if norms is None else norms
    return kernel("AdamW")(parameter, m, v, gradient, controls, norms, attribute(beta1, beta2, eps, weight_decay))


def _update_all(parameter, m, v, hyper, gradient):
    lr, beta1, beta2, eps, weight_decay = hyper
    return ops.AdamWeightDecay()(parameter, m, v, lr, beta1, beta2, eps, weight_decay, gradient)


def _update_some(parameter, m, v, hyper, gradient, norms):
    """Update everything, then put back the lines whose norm is 0, which were copied before. The operator itself does
    the update, so that the other lines get its bits."""
    updated = norms != 0.0
    for _ in range(parameter.ndim - 1):  # a Reshape here would get the shape of a slice from MindSpore's parallel pass
        updated = ops.expand_dims(updated, -1)
    kept = (_masked(updated, parameter), _masked(updated, m), _masked(updated, v))
    done = _update_all(parameter, m, v, (ops.depend(hyper[0], kept), *hyper[1:]), gradient)
    updated = ops.depend(updated, done)
    return (
        ops.assign(parameter, ops.where(updated, parameter, kept[0])),
        ops.assign(m, ops.where(updated, m, kept[1])),
        ops.assign(v, ops.where(updated, v, kept[2])),
    )


def _masked(updated, x):
    """A copy of the lines that are not updated: a computation, which no pass of the compiler replaces by x itself."""
    return ops.where(updated, ops.zeros_like(x), x)


def squared_norm(x: Tensor) -> Tensor:
    """Sum of squares of all elements: float32 scalar. On a CPU the relative error is at most 1e-6 for any number of
    elements.

    Args:
        x: any shape; float32, float16 or bfloat16.
    """
    chosen = select("squared_norm", describe(x))
    if chosen == "composed":
        return ops.square(ops.cast(x, ms.float32)).sum()
    return ops.reshape(kernel("SquaredNorm")(x), ())


def squared_norms(x: Tensor) -> Tensor:
    """`squared_norm` of each index of the first dimension: float32 [K]. Each value has the bits of
    `squared_norm(x[k])`, whatever K is. The kernel has no gradient.

    Args:
        x: [K, ...] float32, float16 or bfloat16; K must be known when a composed graph is compiled.
    """
    if select("squared_norms", describe(x)) == "composed":
        wide = ops.cast(x, ms.float32)
        if laid_out():  # MindSpore shards x only later, and then has fewer members than were unstacked
            return ops.square(wide).sum(tuple(range(1, x.ndim)))
        return ops.stack(_each(_squares, ops.unstack(wide)))
    return kernel("SquaredNorms")(x)


@_squares.register("Tensor")
def _sum_of_squares(x):
    return ops.square(x).sum()


@gradient_of("SquaredNorm")
def _squared_norm_gradient(x, out, dout):
    return (ops.cast(2.0 * ops.reshape(dout, ()) * ops.cast(x, ms.float32), x.dtype),)


@rule("adamw")
def _check_adamw(parameter: Operand, m: Operand, v: Operand, gradient: Operand, norms: Operand | None) -> None:
    for operand in (parameter, m, v):
        if operand.dtype != "float32":
            raise operand.refuse(
                f"is {operand.dtype}", "it must be float32: the optimizer's state is; keep it in float32"
            )
    parameter.rank(0 if norms is None else 1)
    gradient.floating()
    if parameter.shape is not None:
        for operand in (m, v, gradient):
            operand.shaped("the shape of parameter", parameter.shape)
    if norms is None:
        return
    if norms.dtype != "float32":
        raise norms.refuse(f"is {norms.dtype}", "it must be float32; give squared_norms(gradient)")
    if parameter.shape is not None:
        norms.shaped(f"parameter has shape {parameter.shape}", parameter.shape[:1])


@rule("squared_norm")
def _check_squared_norm(x: Operand) -> None:
    x.floating()
    x.rank(0)


@rule("squared_norms")
def _check_squared_norms(x: Operand) -> None:
    x.floating()
    x.rank(1)
