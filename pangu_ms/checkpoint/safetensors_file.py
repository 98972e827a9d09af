"""The safetensors file format, written piece by piece and read tensor by tensor. No mindspore import.

The safetensors library is not used for writing: version 0.8.0 stores wrong values for non-contiguous arrays, every
version first copies all tensors, and a full disk does not raise OSError. It is not used for reading either: numpy has
no bfloat16, so its numpy reader refuses such tensors.

Source: https://github.com/huggingface/safetensors, README, section "Format".
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.core import files, small_json
from pangu_ms.core.dtypes import BFLOAT16, bits, name_of, widened
from pangu_ms.core.errors import CheckpointError

_DTYPES = {
    code: np.dtype(name)
    for code, name in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()} | {BFLOAT16: "BF16"}
_RAW = _DTYPES | {"BF16": np.dtype("<u2")}
_MAX_HEADER = 100_000_000  # bytes; the reference library's limit
MAX_DIMS = 32  # of a tensor; numpy's limit before version 2
_METADATA = {"format": "pt"}  # Hugging Face's loaders refuse a file without it


@dataclass(frozen=True)
class Spec:
    """dtype and shape of a tensor, as the header of the file states them."""

    code: str
    """The format's name of the dtype, such as "F32"."""
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype in which the bytes are read and written; uint16 for bfloat16."""
        return _RAW[self.code]

    @property
    def dtype_name(self) -> str:
        """The usual name of the tensor's dtype, such as "bfloat16"."""
        return name_of(BFLOAT16 if self.code == "BF16" else self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def values(self, raw: np.ndarray) -> np.ndarray:
        """Convert raw data of `dtype` to values: the array itself, or for bfloat16 a float32 array with the same
        values."""
        return widened(raw.view(BFLOAT16)) if self.code == "BF16" else raw


@dataclass(frozen=True)
class Location:
    """Where the bytes of a tensor lie in a file."""

    path: Path
    segments: tuple[tuple[int, int], ...]
    """(offset, length) in bytes of each part, in order; MindSpore's .ckpt files cut large tensors into several."""

    def map(self, spec: Spec) -> np.ndarray:
        """The tensor in `spec.dtype`: a memory map if it has one segment, else a copy that joins the segments."""
        parts = [np.memmap(self.path, np.uint8, "r", offset, (length,)) for offset, length in self.segments if length]
        flat = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
        return flat.view(spec.dtype).reshape(spec.shape)


Buffer = bytes | memoryview
"""A piece of a file that is written."""
Contents = dict[str, tuple[Spec, Location]]
"""The tensors of a file, by name."""


def encode(tensors: dict[str, np.ndarray]) -> Iterator[Buffer]:
    """Yield the bytes of a safetensors file, in pieces to be written one after the other.

    Args:
        tensors: arrays of any shape and memory order; a bfloat16 tensor has the numpy dtype BFLOAT16. Little-endian and
            contiguous copies are made where needed, one at a time.

    Raises:
        CheckpointError: a dtype that the format has no code for.
    """
    return encode_lazily(
        {name: spec_of(name, array) for name, array in tensors.items()}, lambda name: bits(tensors[name])
    )


def encode_lazily(specs: dict[str, Spec], load: Callable[[str], np.ndarray]) -> Iterator[Buffer]:
    """As `encode`, for tensors that are not in memory.

    Args:
        specs: dtype and shape of each tensor.
        load: returns a tensor by its name, in `Spec.dtype`; called when the tensor is written.
    """
    return encode_pieces(specs, lambda name: (load(name),))


def encode_pieces(specs: dict[str, Spec], load: Callable[[str], Iterable[np.ndarray]]) -> Iterator[Buffer]:
    """As `encode`, for tensors that are larger than what may be in memory.

    Args:
        specs: dtype and shape of each tensor.
        load: returns the pieces of a tensor by its name, in `Spec.dtype` and in the order of its values.
    """
    # The widest dtypes come first, so that every tensor is aligned to its item size.
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": _METADATA}
    offset = 0
    for name in order:
        spec = specs[name]
        header[name] = {"dtype": spec.code, "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]}
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        for piece in load(name):
            yield np.ascontiguousarray(piece, specs[name].dtype).reshape(-1).view(np.uint8).data


def spec_of(name: str, array: np.ndarray) -> Spec:
    """dtype and shape of an array, for the header of a file that holds it.

    Raises:
        CheckpointError: a dtype that the format has no code for.
    """
    return Spec(require_code(name, array.dtype), tuple(array.shape))


def require_code(name: str, dtype: np.dtype) -> str:
    """The format's name of a dtype of any byte order.

    Raises:
        CheckpointError: the format has no name for it; the message begins with `name`, the name of the tensor.
    """
    code = _CODES.get(dtype.newbyteorder("<"))
    if code is None:
        raise CheckpointError(f"{name}: dtype {dtype} has no place in a safetensors file; convert it to float32")
    return code


def require_possible(name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError if no array can have this shape. A million large dimensions would occupy a processor for hours
    with their product."""
    if len(shape) > MAX_DIMS:
        raise ValueError(f"{name:.80}: {len(shape):,} dimensions, more than {MAX_DIMS}")
    if min(shape, default=0) < 0 or max(shape, default=0) >= 1 << 63:
        raise ValueError(f"{name:.80}: shape {list(shape)}")


def index(path: Path) -> Contents:
    """The contents of a file, from its header alone.

    Raises:
        CheckpointError: the file cannot be read or is not a whole safetensors file.
    """
    try:
        with files.open_ordinary(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > size or length > _MAX_HEADER:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = small_json.parse_object(file.read(length))
            notes = header.pop("__metadata__", {})
            if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
                raise ValueError("__metadata__ must be texts by name")
            contents = {name: _entry(path, name, entry, 8 + length, size) for name, entry in header.items()}
            _require_gapless(contents, 8 + length, size)
            return contents
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); name a readable safetensors file") from None
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({type(error).__name__}: {error}); copy or download it again"
        ) from None


def read(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a file in the dtypes of the file; a bfloat16 tensor has the numpy dtype BFLOAT16.

    Raises:
        CheckpointError: the file cannot be read or is not a whole safetensors file.
    """
    return load(index(path))


def load(contents: Contents) -> dict[str, np.ndarray]:
    """Read the tensors of `contents` into memory; see `read` for their dtypes."""
    raw = {name: (spec, np.array(location.map(spec))) for name, (spec, location) in contents.items()}
    return {name: array.view(BFLOAT16) if spec.code == "BF16" else array for name, (spec, array) in raw.items()}


def _require_gapless(contents: Contents, start: int, size: int) -> None:
    """Raise ValueError unless the tensors fill the file without gap or overlap, as the reference library demands."""
    for name, (_, location) in sorted(contents.items(), key=lambda item: item[1][1].segments):
        ((begin, length),) = location.segments
        if begin != start:
            raise ValueError(f"{name} begins at byte {begin}, what is before it ends at {start}")
        start += length
    if start != size:
        raise ValueError(f"{size - start} bytes behind the last tensor")


def _entry(path: Path, name: str, entry: dict[str, Any], start: int, size: int) -> tuple[Spec, Location]:
    begin, end = entry["data_offsets"]
    spec = Spec(entry["dtype"], tuple(entry["shape"]))
    if any(type(number) is not int for number in (begin, end, *spec.shape)):
        raise ValueError(f"{name}: shape and data_offsets must be whole numbers")
    require_possible(name, spec.shape)
    if begin < 0 or end - begin != spec.nbytes or start + end > size:
        raise ValueError(f"{name}: bytes {begin} to {end} for {spec.code} {list(spec.shape)}, file of {size} bytes")
    return spec, Location(path, ((start + begin, end - begin),))
