"""The optimizer's update, and the norm that gradient clipping needs."""

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, filled, gradient_of, kernel


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
        beta1, beta2, eps, weight_decay: constants.

    Returns:
        float32 [1], computed after the update, so that operations that must follow the update can depend on it.
    """
    chosen = select("adamw", describe(parameter), describe(m), describe(v), describe(gradient))
    if chosen == "composed" or chosen == "builtin":
        unscaled = ops.cast(gradient, ms.float32) * ops.reshape(factor, ())
        done = ops.AdamWeightDecay()(parameter, m, v, ops.reshape(lr, ()), beta1, beta2, eps, weight_decay, unscaled)
        return ops.depend(filled(1.0, 1), done)
    controls = ops.concat((ops.reshape(lr, (1,)), ops.reshape(factor, (1,))))
    return kernel("AdamW")(parameter, m, v, gradient, controls, attribute(beta1, beta2, eps, weight_decay))


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


@gradient_of("SquaredNorm")
def _squared_norm_gradient(x, out, dout):
    return (ops.cast(2.0 * ops.reshape(dout, ()) * ops.cast(x, ms.float32), x.dtype),)


@rule("adamw")
def _check_adamw(parameter: Operand, m: Operand, v: Operand, gradient: Operand) -> None:
    for operand in (parameter, m, v):
        if operand.dtype != "float32":
            raise operand.refuse(
                f"is {operand.dtype}", "it must be float32: the optimizer's state is; keep it in float32"
            )
    parameter.rank(0)
    gradient.floating()
    if parameter.shape is not None:
        for operand in (m, v, gradient):
            operand.shaped("the shape of parameter", parameter.shape)


@rule("squared_norm")
def _check_squared_norm(x: Operand) -> None:
    x.floating()
    x.rank(0)
