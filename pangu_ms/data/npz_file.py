"""A reader of .npz archives from untrusted sources. No mindspore import.

numpy's own reader allocates any shape that a header claims, decompresses without a limit, and raises some fifteen
classes of errors. This reader needs memory that is bounded by the size of the file, reads plain arrays only, and raises
only ValueError.
"""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from pangu_ms.core import files, format_version
from pangu_ms.core.errors import DataError

FORMAT_VERSION = 1
LARGEST_RATIO, _FREE = 200, 1 << 26
"""Largest ratio of uncompressed to compressed bytes, and the uncompressed size (64 MiB) up to which any ratio is
allowed. Weights hardly shrink at all; zeros shrink to a thousandth."""
# Version 3.0 only adds Unicode field names; arrays with fields are refused.
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_KINDS, _PART = "biufcU", 1 << 24  # numpy's codes of the dtypes that are read, and the bytes per read
# The classes are many because headers are Python literals, and members may be encrypted or compressed by a method that
# zipfile does not know.
ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    SyntaxError,
    MemoryError,
    RuntimeError,
    OverflowError,
    RecursionError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an archive by name: numbers, booleans and texts.

    Args:
        path: the file.
        names: the arrays to read; None for all.

    Raises:
        ValueError: the file is damaged or not such an archive; the message says in a few words what is wrong.
    """
    return read_hashed(path, names)[0]


def read_hashed(path: Path, names: Iterable[str] | None = None) -> tuple[dict[str, np.ndarray], str]:
    """Like `read`, but also returns the hex SHA-256 of the file."""
    try:
        with files.open_ordinary(path) as file:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive)
                wanted = members if names is None else {name: members[name] for name in names}
                arrays = {name: _array(archive, name, info) for name, info in wanted.items()}
            file.seek(0)
            return arrays, files.sha256_open(file)
    except KeyError as error:
        raise ValueError(f"has no {error}") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    except ERRORS as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name, unless they would decompress to too many bytes."""
    infos = archive.infolist()
    found = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(found) < len(infos):
        raise ValueError("a name stands there twice")
    packed, unpacked = sum(info.compress_size for info in infos), sum(info.file_size for info in infos)
    if unpacked > _FREE + LARGEST_RATIO * packed:
        raise ValueError(
            f"{packed:,} bytes would become {unpacked:,}; arrays do not shrink to a {LARGEST_RATIO}th; write it"
            " uncompressed"
        )
    return found


def _array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> np.ndarray:
    """Read one array, after checking that its header agrees with the size of its data."""
    with archive.open(info) as member:
        shape, in_columns, dtype = read_header(name, member)
        if dtype.kind not in _KINDS:
            raise ValueError(f"{name} holds {dtype}; must be numbers, booleans or texts")
        size = math.prod(shape)
        if min(shape, default=0) < 0 or size * dtype.itemsize != info.file_size - member.tell():
            raise ValueError(f"{name} says {dtype} {list(shape)} and has {info.file_size - member.tell():,} bytes")
        raw, at = np.empty(size * dtype.itemsize, np.uint8), 0
        while part := member.read(_PART):  # zipfile verifies the checksum when it reaches the end
            raw[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)
    array = raw.view(dtype) if raw.size else np.empty(size, dtype)
    return array.reshape(shape, order="F" if in_columns else "C")


def read_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first dimension varies fastest, and dtype of a .npy file, which is left at its first value.

    Raises:
        ValueError: it is of an unknown version; damaged headers raise any of ERRORS.
    """
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name} is of version {version} of numpy's form")
    return _HEADERS[version](file)


def to_npz(fields: dict[str, Any]) -> bytes:
    """The content of an .npz file that holds these arrays, numbers and strings, and the format version."""
    content = io.BytesIO()
    np.savez(content, **fields, **{format_version.KEY: FORMAT_VERSION})
    return content.getvalue()


def read_npz(path: str | Path, names: Iterable[str], advice: str) -> tuple[dict[str, Any], str]:
    """Read fields of an .npz file that `to_npz` made; returns them and the hex SHA-256 of the file. Scalars and strings
    become Python values.

    Args:
        path: the file.
        names: the fields to read.
        advice: what the user can do about an unusable file; error messages end with it.

    Raises:
        DataError: the file is missing, damaged or not an .npz file, lacks some of the names, or was written by a newer
            version of this program.
    """
    try:
        arrays, digest = read_hashed(Path(path))
        version = arrays[format_version.KEY].item() if format_version.KEY in arrays else format_version.FIRST
        format_version.require_known(version, FORMAT_VERSION, path, DataError)
        return {name: arrays[name] if arrays[name].ndim else arrays[name].item() for name in names}, digest
    except DataError:
        raise
    except (ValueError, KeyError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"{path}: not an .npz file with {', '.join(names)} ({reason}); {advice}") from None
