"""Dropout whose mask is a function of (seed, element index) alone, so that a resumed or repeated run has the same masks.

MindSpore's own dropout differs from run to run on a CPU even with a seed.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, gradient_of, kernel, zeros_like


def dropout(x: Tensor, seed: Tensor, rate: float) -> Tensor:
    """x * keep / (1 - rate), where keep is 0 for a share `rate` of the elements, chosen by a hash of `seed` and their index.

    Args:
        x: any shape, fewer than 2**31 elements; float32, float16 or bfloat16.
        seed: int32 scalar or [1], well mixed: `dropout_seed` makes one.
        rate: share of elements that become 0, in [0, 1).
    """
    if select("dropout", describe(x), describe(seed)) == "composed":
        return ops.cast(ops.cast(x, ms.float32) * dropout_mask(x.shape, seed, rate), x.dtype)
    return kernel("Dropout")(x, seed.reshape(1), attribute(rate))


def dropout_seed(key: Tensor, site: int) -> Tensor:
    """A seed for one place (`site`) of a model from the int32 key of a step."""
    return _mix(ops.bitwise_xor(key, int32(site * 0x9E3779B1)))  # the golden ratio spreads the sites


def dropout_mask(shape, seed, rate):
    """float32 factors of `dropout`: 0 or 1 / (1 - rate)."""
    index = element_index(shape)
    return ops.cast(_mix(ops.bitwise_xor(index, seed)) >= threshold(rate), ms.float32) * (1.0 / (1.0 - rate))


def _mix(h):
    """31 well mixed bits of int32 numbers. Source: Wellons, "Prospecting for Hash Functions" (lowbias32)."""
    h = ops.bitwise_xor(h, _shifted(h, 16)) * int32(0x7FEB352D)
    h = ops.bitwise_xor(h, _shifted(h, 15)) * int32(0x2C1B3C6D)
    return ops.bitwise_and(ops.bitwise_xor(h, _shifted(h, 16)), int32(0x7FFFFFFF))


def _shifted(h, bits):
    return ops.bitwise_and(ops.bitwise_right_shift(h, int32(bits)), int32((1 << (32 - bits)) - 1))  # logical, not arithmetic


@constexpr
def int32(value):
    """The 32 bits of a number as an int32 scalar."""
    return Tensor(np.uint32(value & 0xFFFFFFFF).astype(np.int32))


@constexpr
def element_index(shape):
    """0, 1, 2, ... in a tensor of `shape`."""
    return Tensor(np.arange(np.prod(shape, dtype=np.int64)).astype(np.int32).reshape(shape))


@constexpr
def threshold(rate):
    """Hashes below it are dropped: the rate, as float32, of 2**31."""
    return Tensor(np.int32(float(np.float32(rate)) * 2**31))


@gradient_of("Dropout")
def _dropout_gradient(x, seed, rate, out, dout):
    return kernel("Dropout")(dout, seed, rate), zeros_like(seed), zeros_like(rate)


@rule("dropout")
def _check_dropout(x: Operand, seed: Operand) -> None:
    x.floating()
    x.rank(1)
    seed.int32()
    seed.shaped("one number", (), (1,))
