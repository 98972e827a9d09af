"""Kernels of the CPU library called as MindSpore calls them, on numpy arrays. No mindspore here."""

import ctypes
import hashlib
from collections.abc import Callable

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


def packed_linear(
    library: ctypes.CDLL, x: np.ndarray, packed: PackedWeight, bias: np.ndarray | None = None, activation: int = -1
) -> np.ndarray:
    """activation(x W^T + bias) by PackedLinear."""
    y = np.full((*x.shape[:-1], packed.scale.size), 7, x.dtype)
    bias = np.zeros(1, np.float32) if bias is None else bias
    Call(library.PackedLinear, x, packed.data, packed.scale, bias, np.array([activation], np.float32), y)()
    return y


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
