"""Activations, each with an optional bias before it, and their gated form. Source: specification A1.4, D3 (eq. 7).

Shapes: x [..., C] float32, float16 or bfloat16; a bias [C] or [1]; scale and shift [n, C] or [n, 1]. Arithmetic is
float32, the result has the dtype and shape of x. All inputs have gradients. `channels` is the plan's name of the last
dimension (see layout.py); for a series it is "ffn".
"""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, filled, gradient_of, kernel, zeros_like
from ascend_ops.errors import OperatorError
from ascend_ops.layout import laid_out, placed
from ascend_ops.table import ACTIVATION_CODES

_CHANNELS = ("batch", None, "ffn")  # the plan's names of the dimensions of x [B, S, C]


def gelu(x: Tensor, bias: Tensor | None = None, channels: str = "ffn") -> Tensor:
    """GELU in its tanh approximation, of x + bias. Source: Hendrycks and Gimpel 2016."""
    return _activation("gelu", x, bias, channels)


def gelu_erf(x: Tensor, bias: Tensor | None = None, channels: str = "ffn") -> Tensor:
    """Exact GELU: u * Phi(u) with u = x + bias. Source: Hendrycks and Gimpel 2016."""
    return _activation("gelu_erf", x, bias, channels)


def fast_gelu(x: Tensor, bias: Tensor | None = None, channels: str = "ffn") -> Tensor:
    """u * sigmoid(1.702 u) with u = x + bias: what MindSpore's FastGeLU computes. Source: specification A1.4."""
    return _activation("fast_gelu", x, bias, channels)


def silu(x: Tensor, bias: Tensor | None = None, channels: str = "ffn") -> Tensor:
    """u * sigmoid(u) with u = x + bias."""
    return _activation("silu", x, bias, channels)


def series_activation(
    x: Tensor, scale: Tensor, shift: Tensor, bias: Tensor | None = None, activation: str = "gelu"
) -> Tensor:
    """sum_i act(scale_i * (x + bias) + shift_i): PanGu-pi's series informed activation. Source: specification D3, eq.
    7.

    Args:
        x: [..., C].
        scale, shift: [n, C] or [n, 1], one row for each term.
        bias: [C] or [1], added first.
        activation: gelu, gelu_erf, fast_gelu or silu.
    """
    chosen = select("series_activation", describe(x), describe(scale), describe(shift), describe(bias))
    code = activation_code("series_activation", activation)
    bias, scale, shift = _or_zero(bias), ops.cast(scale, ms.float32), ops.cast(shift, ms.float32)
    if chosen == "composed":
        return ops.cast(_series(activation, ops.cast(x, ms.float32) + bias, scale, shift), x.dtype)
    operands = (_CHANNELS, _of_bias(bias, "ffn"), _of_term(scale), _of_term(shift))
    return kernel("SeriesActivation", operands, (_CHANNELS,))(x, bias, scale, shift, attribute(code))


def swiglu(
    gate: Tensor,
    up: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """phi(gate + gate_bias) * (up + up_bias), where phi is the activation or, with scale and shift, its series. Source:
    Shazeer 2020; specification D3.

    Args:
        gate, up: [..., C], of the same dtype.
        gate_bias, up_bias: [C] or [1].
        scale, shift: [n, C] or [n, 1], both or neither.
        activation: silu for SwiGLU; gelu, gelu_erf or fast_gelu for the corresponding gated form.
    """
    chosen = select("swiglu", *(describe(t) for t in (gate, up, gate_bias, up_bias, scale, shift)))
    code = activation_code("swiglu", activation)
    gate_bias, up_bias = _or_zero(gate_bias), _or_zero(up_bias)
    if chosen == "composed":
        u = ops.cast(gate, ms.float32) + gate_bias
        phi = (
            plain_activation(activation, u)
            if scale is None
            else _series(activation, u, ops.cast(scale, ms.float32), ops.cast(shift, ms.float32))
        )
        return ops.cast(phi * (ops.cast(up, ms.float32) + up_bias), gate.dtype)
    scale, shift = _or_one_term(scale, 1.0), _or_one_term(shift, 0.0)
    operands = (
        _CHANNELS,
        _CHANNELS,
        _of_bias(gate_bias, "ffn"),
        _of_bias(up_bias, "ffn"),
        _of_term(scale),
        _of_term(shift),
    )
    return kernel("SeriesGlu", operands, (_CHANNELS,))(gate, up, gate_bias, up_bias, scale, shift, attribute(code))


def _of_bias(bias, channels):
    """The plan's names of the dimensions of a bias [C] or [1]."""
    return (channels,) if bias.shape[0] > 1 else (None,)


def _of_term(series):
    """The plan's names of the dimensions of scale or shift [n, C] or [n, 1]."""
    return (None, "ffn") if series.shape[1] > 1 else (None, None)


def _activation(name, x, bias, channels):
    chosen = select(name, describe(x), describe(bias))
    if chosen == "composed":
        return ops.cast(plain_activation(name, _plus(ops.cast(x, ms.float32), bias, channels)), x.dtype)
    if chosen == "builtin":
        return _builtin(name, _plus(x, bias, channels))
    bias, of_x = _or_zero(bias), ("batch", None, channels)
    compute = kernel("SeriesActivation", (of_x, _of_bias(bias, channels), (None, None), (None, None)), (of_x,))
    return compute(x, bias, filled(1.0, 1, 1), filled(0.0, 1, 1), attribute(activation_code(name, name)))


def _plus(x, bias, channels):
    if bias is None:
        return x
    return placed("Add", (("batch", None, channels) if x.ndim == 3 else None, _of_bias(bias, channels)))(
        x, ops.cast(bias, x.dtype)
    )


def _builtin(name, x):
    if name == "fast_gelu":
        return ops.fast_gelu(x)
    if name == "silu":
        return ops.silu(x)
    return ops.gelu(x, approximate="tanh" if name == "gelu" else "none")


def _or_zero(bias):
    return filled(0.0, 1) if bias is None else ops.cast(bias, ms.float32)


def _or_one_term(series, value):
    return filled(value, 1, 1) if series is None else ops.cast(series, ms.float32)


def plain_activation(activation, u):
    """The composed activation, in float32. On a CPU x * sigmoid(...) takes a tenth of the time of ops.GeLU."""
    if activation == "gelu":
        return u * ops.sigmoid(
            1.5957691216057308 * u * (1.0 + 0.044715 * u * u)
        )  # 2 sqrt(2 / pi); this equals the tanh form exactly
    if activation == "gelu_erf":
        return 0.5 * u * (1.0 + ops.erf(u * 0.7071067811865476))  # 1 / sqrt(2)
    return u * ops.sigmoid(1.702 * u) if activation == "fast_gelu" else u * ops.sigmoid(u)


def _series(activation, u, scale, shift):
    if laid_out():
        return _series_at_once(activation, u, scale, shift)
    total = plain_activation(activation, scale[0] * u + shift[0])
    for i in range(1, scale.shape[0]):
        total = total + plain_activation(activation, scale[i] * u + shift[i])
    return total


def _series_at_once(activation, u_BSC, scale, shift):
    """All terms in one tensor [B, S, n, C]. Scale and shift then have the layout of u; slices of them would get a
    layout that MindSpore chooses differently."""
    operands = (("batch", None, None, "ffn"), (None, "ffn" if scale.shape[1] > 1 else None))
    terms = placed("Add", operands)(placed("Mul", operands)(ops.expand_dims(u_BSC, 2), scale), shift)
    return ops.ReduceSum()(plain_activation(activation, terms), 2)


@gradient_of("SeriesActivation")
def _series_activation_gradient(x, bias, scale, shift, activation, out, dout):
    return *kernel("SeriesActivationGrad")(dout, x, bias, scale, shift, activation), zeros_like(activation)


@gradient_of("SeriesGlu")
def _series_glu_gradient(gate, up, gate_bias, up_bias, scale, shift, activation, out, dout):
    return *kernel("SeriesGluGrad")(dout, gate, up, gate_bias, up_bias, scale, shift, activation), zeros_like(
        activation
    )


@constexpr
def activation_code(operator, activation):
    """The number of an activation in the kernels' interface."""
    if activation not in ACTIVATION_CODES:
        raise OperatorError(
            f"ascend_ops.{operator}: activation={activation!r}: no such activation; use one of"
            f" {', '.join(ACTIVATION_CODES)}"
        )
    return ACTIVATION_CODES[activation]


@rule("gelu", "gelu_erf", "fast_gelu", "silu")
def _check_activation(x: Operand, bias: Operand | None) -> None:
    x.floating()
    x.rank(1)
    _check_parameters(x, bias)


@rule("series_activation")
def _check_series(x: Operand, scale: Operand, shift: Operand, bias: Operand | None) -> None:
    _check_activation(x, bias)
    _check_terms(x, scale, shift)


@rule("swiglu")
def _check_glu(
    gate: Operand,
    up: Operand,
    gate_bias: Operand | None,
    up_bias: Operand | None,
    scale: Operand | None,
    shift: Operand | None,
) -> None:
    _check_activation(gate, gate_bias)
    up.floating(like=gate)
    if gate.shape is not None:
        up.shaped("the shape of gate", gate.shape)
    _check_parameters(gate, up_bias)
    if scale is not None and shift is not None:
        _check_terms(gate, scale, shift)
    elif given := scale or shift:
        missing = "shift" if given is scale else "scale"
        raise given.refuse(f"is given without {missing}", "a series needs both; give both or neither")


def _check_parameters(x: Operand, *biases: Operand | None) -> None:
    for bias in biases:
        if bias is not None:
            bias.floating()
            if x.shape is not None:
                bias.shaped(f"{x.name} has {x.shape[-1]} channels", x.shape[-1:], (1,))


def _check_terms(x: Operand, scale: Operand, shift: Operand) -> None:
    scale.floating()
    shift.floating()
    scale.rank(2, 2)
    if scale.shape is not None and x.shape is not None:
        terms = scale.shape[0]
        scale.shaped(f"{x.name} has {x.shape[-1]} channels", (terms, x.shape[-1]), (terms, 1))
        shift.shaped("the shape of scale", scale.shape)
