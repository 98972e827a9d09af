"""The GGUF file format of llama.cpp, written piece by piece with the `gguf` package. No mindspore import.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; block_q8_0 in ggml-common.h.
"""

import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pangu_ms.checkpoint.lazy import Readable, cut
from pangu_ms.core import dtypes, files
from pangu_ms.core.errors import CheckpointError

Q8_0 = "q8_0"
DTYPES = (*dtypes.NAMES, Q8_0)
"""Types of matrices. q8_0: 32 neighbours of a row share a scale, a float16, and are whole numbers from -127 to 127."""
_BLOCK, _BLOCK_BYTES = 32, 34  # values and bytes of a q8_0 block
_LARGEST = 127 * 65504.0  # of a q8_0 block: the scale is a float16
_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", Q8_0: "Q8_0"}  # of GGMLQuantizationType
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32, Q8_0: 7}  # LlamaFileType; llama.cpp only shows it
_QUANTIZATION_VERSION = 2  # of ggml's blocks

Value = str | bool | int | float | list[str] | list[int] | list[float]


def package() -> ModuleType:
    """The `gguf` package.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            "gguf: the package that writes such files is not installed; pip install pangu-ms[gguf]"
        ) from None
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf


def dtype_of(shape: tuple[int, ...], dtype: str) -> str:
    """The type that a tensor gets in a file with matrices of type `dtype`: a vector stays float32, as llama.cpp
    demands, and so does a matrix whose rows are no whole number of q8_0 blocks."""
    is_matrix = len(shape) >= 2 and (dtype != Q8_0 or shape[-1] % _BLOCK == 0)
    return dtype if is_matrix else "float32"


def num_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor of a type that `dtype_of` gave."""
    number = math.prod(shape)
    return number // _BLOCK * _BLOCK_BYTES if dtype == Q8_0 else number * (4 if dtype == "float32" else 2)


def write(
    path: Path,
    architecture: str,
    keys: Mapping[str, Value],
    tensors: Mapping[str, Readable],
    dtype: str,
    exact: Collection[str] = (),
) -> None:
    """Write a file, whole or not at all. One piece of a tensor at a time is in memory.

    Args:
        path: the file; an existing one is replaced.
        architecture: llama.cpp's name of what computes the model.
        keys: what else the file says; whole numbers are stored as uint32.
        tensors: by GGUF's names. Those of two or more dimensions are stored in `dtype`, see `dtype_of`.
        dtype: one of DTYPES.
        exact: names of tensors that stay float32.

    Raises:
        CheckpointError: the `gguf` package is missing, or a value is not finite or not representable.
        OutputError: the disk is full or not writable.
    """
    gguf = package()
    types = {name: "float32" if name in exact else dtype_of(one.shape, dtype) for name, one in tensors.items()}
    with files.new_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            writer.add_file_type(_FILE_TYPES[dtype])
            if Q8_0 in types.values():
                writer.add_quantization_version(_QUANTIZATION_VERSION)
            for key, value in keys.items():
                writer.add_key_value(key, value, _value_type(gguf, value))
            for name, tensor in tensors.items():
                kind = getattr(gguf.GGMLQuantizationType, _KINDS[types[name]])
                # With raw_dtype and a shape of values, the dtype of the array says nothing.
                writer.add_tensor_info(
                    name, tensor.shape, np.dtype(np.float32), num_bytes(tensor.shape, types[name]), kind
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            # `writer.write_tensor_data` is not used: numpy's tofile raises an error without a number on a full disk.
            file = writer.fout[0]
            writer.write_padding(file, file.tell())
            for name, tensor in tensors.items():
                for part in cut(tensor.all, tensor.spec.dtype.itemsize):
                    file.write(_encoded(gguf, str(path), name, tensor.part(part), types[name]))
                writer.write_padding(file, num_bytes(tensor.shape, types[name]))
        finally:
            writer.close()


def _value_type(gguf: ModuleType, value: Value) -> Any:
    types = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    return getattr(gguf.GGUFValueType, types[type(value)])


def _encoded(gguf: ModuleType, where: str, name: str, array: np.ndarray, dtype: str) -> memoryview:
    """The bytes of a part of a tensor in a file; of q8_0 it has whole blocks."""
    rounded = dtypes.cast_one(where, name, array, "float32" if dtype == Q8_0 else dtype)
    if dtype == Q8_0:
        if np.abs(rounded).max(initial=0) > _LARGEST:
            raise CheckpointError(f"{where}: {name} has values beyond {_LARGEST:g}, the largest of q8_0; use float32")
        rounded = gguf.quantize(np.ascontiguousarray(rounded), gguf.GGMLQuantizationType.Q8_0)
    return np.ascontiguousarray(dtypes.bits(rounded)).reshape(-1).view(np.uint8).data
