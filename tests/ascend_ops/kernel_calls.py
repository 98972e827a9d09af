"""Kernels of the CPU library called as MindSpore calls them, on numpy arrays. No mindspore here."""

import ctypes
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from ascend_ops.packing import INPUTS, PackedWeight, pack


class Call:
    """A call of a kernel with these arrays: inputs, attributes, outputs. uint16 are the bits of bfloat16."""

    def __init__(self, kernel: Callable, *arrays: np.ndarray):
        count = len(arrays)
        data = (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays))
        ranks = (ctypes.c_int * count)(*(array.ndim for array in arrays))
        shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
        pointers = (ctypes.c_void_p * count)(*(ctypes.addressof(shape) for shape in shapes))
        names = [{"uint16": "bfloat16"}.get(array.dtype.name, array.dtype.name).encode() for array in arrays]
        dtypes = (ctypes.c_char_p * count)(*names)
        self.kernel, self.arguments = kernel, (count, data, ranks, pointers, dtypes, None, None)
        self.kept = arrays, shapes  # the arguments hold their addresses alone

    def __call__(self) -> None:
        if self.kernel(*self.arguments):
            raise RuntimeError("the kernel failed; the line above tells why")


NOTHING = np.zeros(1, np.float32)


def packed_linear(
    library: ctypes.CDLL,
    x: np.ndarray,
    packed: PackedWeight,
    bias: np.ndarray = NOTHING,
    activation: int = -1,
) -> np.ndarray:
    """activation(x W^T + bias) by PackedLinear."""
    y = np.full((*x.shape[:-1], packed.scale.size), 7, x.dtype)
    code = np.array([activation], np.float32)
    Call(library.PackedLinear, x, packed.data, packed.scale, bias, code, y)()
    return y


def packed_linears(
    library: ctypes.CDLL, x: np.ndarray, packed: Sequence[PackedWeight], bias: np.ndarray = NOTHING
) -> list[np.ndarray]:
    """The products with two or three weights by PackedLinear2 or PackedLinear3."""
    sizes = [np.zeros(one.scale.size, np.float32) for one in packed]
    results = [np.full((*x.shape[:-1], size.size), 7, x.dtype) for size in sizes]
    kernel = getattr(library, f"PackedLinear{len(packed)}")
    Call(kernel, x, *_together(packed), bias, *sizes, *results)()
    return results


def packed_glu(
    library: ctypes.CDLL,
    x: np.ndarray,
    packed: Sequence[PackedWeight],
    series: tuple[np.ndarray, np.ndarray] = (np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)),
    activation: int = 3,
) -> np.ndarray:
    """phi(x G^T) * (x U^T) by PackedGlu."""
    weight, scale = _together(packed)
    y = np.full((*x.shape[:-1], scale.size // 2), 7, x.dtype)
    Call(library.PackedGlu, x, weight, scale.reshape(2, -1), *series, np.array([activation], np.float32), y)()
    return y


def _together(packed: Sequence[PackedWeight]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([one.data for one in packed]), np.concatenate([one.scale for one in packed])


def digest_of_packed(library: str) -> str:
    """Hash of the bits of some products."""
    found, random = hashlib.sha256(), np.random.default_rng(0)
    for outputs, inputs in ((300, 700), (40, 2000)):
        weight = random.standard_normal((outputs, inputs), dtype=np.float32)
        for rows in (1, 7, 40):
            x = random.standard_normal((rows, inputs), dtype=np.float32)
            for dtype in INPUTS:
                found.update(packed_linear(ctypes.CDLL(library), x, pack(weight, dtype)).tobytes())
    return found.hexdigest()
