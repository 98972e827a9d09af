"""Dropout whose mask depends only on the seed and the element's index, so that a resumed or repeated run has the same
masks.

On a CPU MindSpore's own dropout differs from run to run even with a seed. Under a plan it is used all the same: a
device has slices of tensors, and MindSpore gives its dropout different seeds for different slices. A run that is
resumed under a plan draws other masks.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, gradient_of, kernel, zeros_like
from ascend_ops.errors import OperatorError
from ascend_ops.layout import laid_out


def dropout(x: Tensor, seed: Tensor, rate: float) -> Tensor:
    """x * keep / (1 - rate), where keep is 0 for a share `rate` of the elements, chosen by a hash of `seed` and their
    index.

    Args:
        x: any shape, fewer than 2**31 elements; float32, float16 or bfloat16.
        seed: int32 scalar or [1], well mixed: `dropout_seed` makes one.
        rate: probability that an element becomes 0, in [0, 1).
    """
    chosen = select("dropout", describe(x), describe(seed))
    rate = checked_rate("dropout", rate)
    if laid_out():
        return by_mindspore(rate)(x)[0]
    if chosen == "composed":
        return ops.cast(ops.cast(x, ms.float32) * dropout_mask(x.shape, seed, rate), x.dtype)
    return kernel("Dropout")(x, seed.reshape(1), attribute(rate))


@constexpr
def by_mindspore(rate):
    """MindSpore's own dropout primitive."""
    return ops.Dropout(keep_prob=1.0 - rate)


def dropout_seed(key: Tensor, site: int) -> Tensor:
    """A seed for one place (`site`) of a model from the int32 key of a step."""
    # The multiplier is the golden ratio times 2^32, which spreads the sites over all bits.
    return _mix(ops.bitwise_xor(key, int32(site * 0x9E3779B1)), int32(0))


def dropout_mask(shape, seed, rate):
    """The factors by which `dropout` multiplies, float32: 0 or 1 / (1 - rate)."""
    index = element_index(shape)
    return ops.cast(_mix(ops.bitwise_xor(index, seed), seed) >= threshold(rate), ms.float32) * (1.0 / (1.0 - rate))


def _mix(h, seed):
    """31 well mixed bits of int32 numbers (index ^ seed). The seed is mixed in a second time; otherwise the masks of
    two seeds would be permutations of each other.

    Source: Wellons, "Prospecting for Hash Functions" (lowbias32); the second use of the seed is our addition.
    """
    h = ops.bitwise_xor(h, _shifted(h, 16)) * int32(0x7FEB352D) + seed
    h = ops.bitwise_xor(h, _shifted(h, 15)) * int32(0x2C1B3C6D)
    return ops.bitwise_and(ops.bitwise_xor(h, _shifted(h, 16)), int32(0x7FFFFFFF))


def _shifted(h, bits):
    return ops.bitwise_and(
        ops.bitwise_right_shift(h, int32(bits)), int32((1 << (32 - bits)) - 1)
    )  # a logical shift, not an arithmetic one


@constexpr
def checked_rate(operator, rate):
    """`float32_rate` as a constant of the graph."""
    return float32_rate(operator, rate)


def float32_rate(operator: str, rate: float) -> float:
    """The rate rounded to float32, so that all backends drop the same elements; raises an error outside of [0, 1)."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if not number or not 0.0 <= float(np.float32(rate)) < 1.0:
        raise OperatorError(f"ascend_ops.{operator}: dropout rate {rate!r}: it must be a number in [0, 1)")
    return float(np.float32(rate))


@constexpr
def int32(value):
    """The lowest 32 bits of an integer as an int32 scalar."""
    return Tensor(np.uint32(value & 0xFFFFFFFF).astype(np.int32))


@constexpr
def element_index(shape):
    """0, 1, 2, ... in a tensor of `shape`."""
    if None in shape or -1 in shape:
        raise OperatorError(
            f"ascend_ops.dropout: x has shape {shape}; the composed form needs static dimensions; give the shape"
        )
    return Tensor(np.arange(np.prod(shape, dtype=np.int64)).astype(np.int32).reshape(shape))


@constexpr
def threshold(rate):
    """Elements with a hash below this are dropped: the float32 rate times 2**31."""
    return Tensor(np.int32(float(np.float32(rate)) * 2**31))


@gradient_of("Dropout")
def _dropout_gradient(x, seed, rate, out, dout):
    return kernel("Dropout")(dout, seed, rate), zeros_like(seed), zeros_like(rate)


@rule("dropout")
def _check_dropout(x: Operand, seed: Operand) -> None:
    x.floating()
    x.rank(1)
    if x.shape is not None and math.prod(x.shape) >= 2**31:
        raise x.refuse(f"has {math.prod(x.shape)} elements", "an element's number must fit 31 bits; split it")
    seed.int32()
    seed.shaped("one number", (), (1,))
