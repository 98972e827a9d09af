"""Pack a weight once, for the products of inference (`packed_linear`, `packed_rows`). numpy only: no mindspore here.

A packed weight of [out, in] is an array [blocks of 16 outputs, lines, 16 outputs, inputs of a line]: a line has 64
bytes, which hold 1 (float32), 2 (bfloat16) or 4 (int8) consecutive inputs of 16 outputs. A product reads it from begin
to end, needs no sums across a vector, and adds the terms of every output in the order of the inputs.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ascend_ops.errors import OperatorError

OUTPUTS = 16
"""Outputs of a block."""
LINE_BYTES = 64
"""Of a line: some inputs of the outputs of a block."""
INPUTS = {"float32": 1, "bfloat16": 2, "int8": 4}
"""Dtype of a packed weight -> inputs of a line."""
GROUP = 128
"""Inputs of x that share a scale in a product with int8."""
_BLOCKS_AT_ONCE = 16  # 1 MB of float32 for 4096 inputs, which stays in a cache from one operation to the next


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out, in] in the layout of the kernels."""

    dtype: str
    """float32, bfloat16 or int8."""
    data: np.ndarray
    """[ceil(out / 16), ceil(in / n), 16, n] with n = INPUTS[dtype]: float32; uint16, the bits of a bfloat16; or uint8,
    128 more than the value in -127 to 127. Outputs and inputs beyond the weight are 0."""
    scale: np.ndarray
    """[out] float32: what an output's numbers are multiplied by; 1 but for int8."""
    inputs: int
    """Inputs of the weight: its second dimension."""

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight with its scale."""
        return self.data.nbytes + self.scale.nbytes


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [out, in] as whole numbers, as a file holds it: in the order of its rows, for whatever computes with
    it."""

    values: np.ndarray
    """[out, in] int8, -127 to 127."""
    scale: np.ndarray
    """[out] float32: what the numbers of an output are multiplied by."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)"""
        return self.values.shape


def row_scales(weight: np.ndarray) -> np.ndarray:
    """The scale of each output of a weight [out, in] float32 in int8: its largest magnitude over 127, float32 [out].

    Raises:
        OperatorError: a number is not finite.
    """
    largest = np.maximum(weight.max(1), -weight.min(1))
    if not np.isfinite(largest).all():
        found = weight[~np.isfinite(weight)][0]
        raise _refusal("weight", f"holds {found}", "int8 needs numbers; pack it as float32 or bfloat16")
    # The kernels take numbers below 1e-38 for 0.
    return np.where(largest < 1e-35, 0, largest / np.float32(127)).astype(np.float32)


def quantized_rows(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A weight [out, in] float32 in int8: the nearest multiples of the scales of its outputs, ties to even."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, 1 / scale, 0).astype(np.float32)
    scaled = weight * inverse[:, None]
    return np.clip(np.rint(scaled, out=scaled), -127, 127, out=scaled).astype(np.int8)


def pack(weight: np.ndarray | QuantizedWeight, dtype: str = "float32") -> PackedWeight:
    """Pack a weight.

    Args:
        weight: [out, in] float32; or, for int8, a weight that was quantized before, whose numbers stay as they are.
        dtype: float32, which keeps every bit; bfloat16, rounded to nearest, ties to even; or int8, rounded to multiples
            of the largest magnitude of each output over 127. An output that is 0 everywhere gets the scale 0.

    Raises:
        OperatorError: the weight is no float32 matrix; the dtype is none of these; int8 of a weight that is not finite.
    """
    if dtype not in INPUTS:
        raise _refusal("dtype", f"is {dtype!r}", f"it must be one of {', '.join(INPUTS)}")
    is_quantized = isinstance(weight, QuantizedWeight)
    matrix = weight.values if isinstance(weight, QuantizedWeight) else weight
    if is_quantized and dtype != "int8":
        raise _refusal("weight", "is quantized to int8", f"{dtype} needs the numbers before; pack it as int8")
    if matrix.dtype != (np.int8 if is_quantized else np.float32):
        raise _refusal("weight", f"is {matrix.dtype}", "it must be float32; cast it")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise _refusal("weight", f"has shape {matrix.shape}", "it must be [out, in], neither of them 0; reshape it")
    outputs, inputs = matrix.shape
    data = np.empty(packed_shape(outputs, inputs, dtype), _STORED[dtype])
    scale = weight.scale.copy() if isinstance(weight, QuantizedWeight) else np.ones(outputs, np.float32)

    def pack_blocks(first: int) -> None:
        part = slice(first * OUTPUTS, (first + _BLOCKS_AT_ONCE) * OUTPUTS)
        values = matrix[part]
        if dtype == "int8":
            if not is_quantized:
                scale[part] = row_scales(values)
                values = quantized_rows(values, scale[part])
            values = values.view(np.uint8) ^ 128  # 128 more
        elif dtype == "bfloat16":
            values = _bfloat16_bits(values)
        _arrange(values, data[first : first + _BLOCKS_AT_ONCE], _NOTHING[dtype])

    _each_block(data.shape[0], pack_blocks)
    return PackedWeight(dtype, data, scale, inputs)


def unpack(packed: PackedWeight) -> np.ndarray:
    """The weight [out, in] in float32 as the kernels see it: for float32 the bits that were packed."""
    weight = np.empty((packed.scale.size, packed.inputs), np.float32)

    def unpack_blocks(first: int) -> None:
        part = slice(first * OUTPUTS, (first + _BLOCKS_AT_ONCE) * OUTPUTS)
        values = packed.data[first : first + _BLOCKS_AT_ONCE].transpose(0, 2, 1, 3)
        values = values.reshape(values.shape[0] * OUTPUTS, -1)[: len(weight[part]), : packed.inputs]
        if packed.dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        elif packed.dtype == "int8":
            values = (values.astype(np.float32) - 128) * packed.scale[part, None]
        weight[part] = values

    _each_block(packed.data.shape[0], unpack_blocks)
    return weight


def packed_shape(outputs: int, inputs: int, dtype: str) -> tuple[int, int, int, int]:
    """Shape of the packed weight of [outputs, inputs]."""
    return -(-outputs // OUTPUTS), -(-inputs // INPUTS[dtype]), OUTPUTS, INPUTS[dtype]


_STORED = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.uint8}
_NOTHING = {"float32": 0, "bfloat16": 0, "int8": 128}
"""How 0 is stored."""


def _arrange(values: np.ndarray, blocks: np.ndarray, nothing: int) -> None:
    """Write values [outputs, inputs] into blocks [n, lines, 16, inputs of a line]."""
    count, lines, _, inputs = blocks.shape
    if values.shape != (count * OUTPUTS, lines * inputs):
        whole = np.full((count * OUTPUTS, lines * inputs), nothing, values.dtype)
        whole[: values.shape[0], : values.shape[1]] = values
        values = whole
    # A line of an output moves as one number of 4 bytes.
    words = np.ascontiguousarray(values).view(np.uint32).reshape(count, OUTPUTS, lines)
    blocks.view(np.uint32)[..., 0] = words.transpose(0, 2, 1)


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    is_nan = np.isnan(values)
    if is_nan.any():  # rounding could carry it into infinity
        rounded[is_nan] = bits[is_nan] >> 16 | 0x40
    return rounded.astype(np.uint16)


def _each_block(blocks: int, function: Callable[[int], None]) -> None:
    """Call the function for the first of each few blocks, on all processors."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(function, range(0, blocks, _BLOCKS_AT_ONCE)))


def _refusal(name: str, found: str, rule: str) -> OperatorError:
    return OperatorError(f"ascend_ops.pack: {name} {found}; {rule}")
