"""The safetensors file format, written piece by piece and read tensor by tensor. No mindspore import.

The library is not used for writing: 0.8.0 stores wrong values for non-contiguous arrays, every version copies all tensors first, and a full
disk is not an OSError. Nor for reading: numpy has no bfloat16, which its numpy reader therefore refuses.

Source: https://github.com/huggingface/safetensors, README, section "Format".
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pangu_ms.errors import CheckpointError

_DTYPES = {
    code: np.dtype(name)
    for code, name in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_METADATA = {"format": "pt"}  # Hugging Face's loaders refuse a file without it


def encode(tensors: dict[str, np.ndarray]) -> Iterator[bytes | np.ndarray]:
    """The bytes of a safetensors file, in pieces that can be written one after the other.

    Args:
        tensors: arrays of any shape and memory order; little-endian and contiguous copies are made where needed, one at a time.

    Raises:
        CheckpointError: a dtype that the format has no code for.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # wide types first keeps all of them aligned
    header: dict[str, Any] = {"__metadata__": _METADATA}
    offset = 0
    for name in order:
        array = tensors[name]
        header[name] = {"dtype": _code(name, array), "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        array = tensors[name]
        yield np.ascontiguousarray(array, _DTYPES[_code(name, array)]).reshape(-1).view(np.uint8)


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, in the file's dtypes; bfloat16 becomes float32, which holds it exactly.

    Raises:
        CheckpointError: the file cannot be read or is not a whole safetensors file.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > size:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            return {name: _read_tensor(file, name, entry, 8 + length, size) for name, entry in header.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); name a readable safetensors file") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({type(error).__name__}: {error}); copy or download it again") from None


def _code(name: str, array: np.ndarray) -> str:
    code = _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        raise CheckpointError(f"{name}: dtype {array.dtype} has no place in a safetensors file; convert it to float32")
    return code


def _read_tensor(file: BinaryIO, name: str, entry: dict[str, Any], start: int, size: int) -> np.ndarray:
    begin, end = entry["data_offsets"]
    bfloat16 = entry["dtype"] == "BF16"
    dtype = _DTYPES["U16" if bfloat16 else entry["dtype"]]
    shape = [int(length) for length in entry["shape"]]
    count = math.prod(shape)
    if begin < 0 or min(shape, default=0) < 0 or end - begin != count * dtype.itemsize or start + end > size:
        raise ValueError(f"{name}: bytes {begin} to {end} for {entry['dtype']} {shape}, file of {size} bytes")
    file.seek(start + begin)
    array = np.fromfile(file, dtype, count).reshape(shape)
    # A bfloat16 is the upper half of a float32.
    return (array.astype(np.uint32) << 16).view(np.float32) if bfloat16 else array
