"""Rotary position embedding, rotate-half form: element i of a head's first half is rotated together with element i of
its second half, as in LLaMA.

Source: Su et al. 2021 (RoFormer), eq. 34; the pairing of halves is that of GPT-NeoX, LLaMA and Hugging Face's
`rotate_half`; specification F1.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr
from mindspore.ops.functional import isconstant

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, gradient_of, kernel, zeros_like
from ascend_ops.errors import OperatorError
from ascend_ops.layout import laid_out


def rotary_embedding(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate each head by the angles of its position: its halves x1 and x2 become (x1 cos - x2 sin, x2 cos + x1 sin).
    Arithmetic is float32.

    Args:
        x: queries or keys [B, S, H * D] or [B, S, H, D]; float32, float16 or bfloat16.
        cos_sin: [B, S, D] float32, rows of `rotary_table`: D/2 cosines, then D/2 sines. Its gradient is zeros.

    Returns:
        As x.

    Raises:
        OperatorError: an input breaks these rules.
    """
    chosen = select("rotary_embedding", describe(x), describe(cos_sin))
    if chosen == "composed" or chosen == "builtin":
        heads_BSHD = ops.reshape(ops.cast(x, ms.float32), (x.shape[0], x.shape[1], -1, cos_sin.shape[2]))
        cos, sin = ops.Split(-1, 2)(ops.stop_gradient(cos_sin).expand_dims(2))
        # not MindSpore's rotary operator: its propagation gives the operands strategies that it then refuses
        compute = _builtin if chosen == "builtin" and not laid_out() and _builtin_computes(heads_BSHD) else _composed
        return ops.cast(ops.reshape(compute(heads_BSHD, cos, sin), x.shape), x.dtype)
    return kernel("RotaryEmbedding")(x, cos_sin, attribute(1.0))


def rotary_table(length: int, head_size: int, theta: float) -> np.ndarray:
    """The table of cosines and sines for positions 0 to length - 1; its rows, gathered by position, are `cos_sin` of
    `rotary_embedding`.

    Args:
        length: number of positions.
        head_size: D, even.
        theta: base of the angles, which are position * theta ** (-2 i / D) radians; 1e4 in LLaMA.

    Returns:
        float32 [length, D]: cosines of i = 0 to D/2 - 1, then their sines; computed in float64, since float32 angles
            lose digits at large positions.

    Raises:
        OperatorError: a number is out of range.
    """
    _require_table("length", length, _is_count(length), "it must be a whole number above 0")
    _require_table(
        "head_size", head_size, _is_count(head_size) and head_size % 2 == 0, "it must be an even whole number above 0"
    )
    real = isinstance(theta, (int, float)) and not isinstance(theta, bool)
    _require_table(
        "theta",
        theta,
        real and math.isfinite(theta) and theta > 0,
        "it must be a finite number above 0; LLaMA has 10000",
    )
    angles = np.outer(np.arange(length, dtype=np.float64), float(theta) ** (-np.arange(0, head_size, 2) / head_size))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require_table(name, value, holds, rule):
    if not holds:
        raise OperatorError(f"ascend_ops.rotary_table: {name}={value!r}: {rule}")


def _composed(x_BSHD, cos, sin):
    x1, x2 = ops.Split(-1, 2)(x_BSHD)
    return ops.concat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), -1)


def _builtin(x_BSHD, cos, sin):
    """MindSpore's rotary_position_embedding, used according to its documentation; untested. It runs in float32, because
    it requires the cosines in the dtype of x. MindSpore has announced its removal after 2.9."""
    return ops.rotary_position_embedding(x_BSHD, ops.concat((cos, cos), -1), ops.concat((sin, sin), -1), 0)


def _builtin_computes(x_BSHD):
    return isconstant(x_BSHD.shape) and _is_documented(x_BSHD.shape)


@constexpr
def _is_documented(shape):
    """Whether ops.rotary_position_embedding is documented for this shape."""
    return shape[0] < 1000 and shape[2] < 1000 and shape[3] < 896


@gradient_of("RotaryEmbedding")
def _rotary_gradient(x, cos_sin, sign, out, dout):
    return kernel("RotaryEmbedding")(dout, cos_sin, -sign), zeros_like(cos_sin), zeros_like(sign)


@rule("rotary_embedding")
def _check_rotary(x: Operand, cos_sin: Operand) -> None:
    x.floating()
    x.rank(3, 4)
    if cos_sin.dtype != "float32":
        raise cos_sin.refuse(f"is {cos_sin.dtype}", "it must be float32; cast it")
    cos_sin.rank(3, 3)
    if cos_sin.shape is None:
        return
    head_size = cos_sin.shape[2]
    if head_size % 2:
        raise cos_sin.refuse(
            f"has shape {cos_sin.shape}", "its last dimension must be even: cosines, then as many sines"
        )
    if x.shape is None:
        return
    cos_sin.shaped("the batch and length of x", (*x.shape[:2], head_size))
    if x.shape[-1] != head_size if len(x.shape) == 4 else x.shape[-1] % head_size:
        wanted = "be" if len(x.shape) == 4 else "be a multiple of"
        raise x.refuse(
            f"has shape {x.shape}", f"its last dimension must {wanted} {head_size}, the head size, which cos_sin has"
        )
