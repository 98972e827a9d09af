"""Reads the tensors in files that torch.save wrote, without torch and without running anything in them. No mindspore
import.

Since version 1.6 such a file is a zip archive: NAME/data.pkl is a pickle of the saved object, NAME/data/KEY holds the
bytes of each storage, uncompressed. Before that, and with _use_new_zipfile_serialization=False, it is a sequence of
pickles (a magic number, the version, the sizes of C types, the object, the keys of its storages), and the storages
follow, each behind its number of values. In both a tensor is a view of a storage.

Source: torch/serialization.py (_save, _legacy_save), torch/_utils.py (_rebuild_tensor_v2).
"""

import io
import itertools
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pangu_ms.checkpoint import pickle_values
from pangu_ms.checkpoint.lazy import Readable, Slices, Stored
from pangu_ms.checkpoint.pickle_values import Name, Opaque, Refused
from pangu_ms.checkpoint.safetensors_file import Spec
from pangu_ms.core import files
from pangu_ms.core.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".bin")
"""Usual ends of names of such files."""
_CODES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
_ZIP, _PICKLE, _TAR = b"PK\x03\x04", b"\x80", b"ustar"
_TAR_AT = 257
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_LOCAL = struct.Struct("<4s5H3I2H")  # the header in front of each member of a zip archive
_MAX_MEMBERS, _MAX_VALUES, _MAX_DEPTH, _MAX_DIMS, _MAX_NAME = 1 << 20, 1 << 18, 32, 16, 1000
_AT_ONCE = 1 << 22  # bytes
_CHECKSUM = "the bytes of {} do not have their checksum, unless it was saved with set_crc32_options(False)"
_ERRORS: tuple[type[Exception], ...] = (
    zipfile.BadZipFile, struct.error, zlib.error, ValueError, NotImplementedError, EOFError, RuntimeError, KeyError,
    OverflowError, MemoryError,
)  # fmt: skip
"""What Python's zipfile raises for damaged archives."""


@dataclass
class _Storage:
    """The values that tensors are views of."""

    code: str | None
    """Name of their dtype; None for one that weights do not have, such as complex numbers."""
    numel: int
    offset: int = -1
    """Position of the first byte in the file."""

    @property
    def nbytes(self) -> int:
        return self.numel * Spec(self.code, ()).dtype.itemsize if self.code else 0


@dataclass(frozen=True)
class View(Readable):
    """A tensor in a file: a storage, seen with strides."""

    path: Path
    storage: _Storage
    start: int
    """Index of its first value in the storage."""
    strides: tuple[int, ...]
    """Distance in values between neighbours along each dimension."""

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable. Only the stretch of the file that the part covers is mapped."""
        sizes = tuple(s.stop - s.start for s in wanted)
        dtype = self.spec.dtype
        if 0 in sizes:
            return np.empty(sizes, dtype)
        first = self.start + sum(s.start * stride for s, stride in zip(wanted, self.strides))
        stretch = 1 + sum((size - 1) * stride for size, stride in zip(sizes, self.strides))
        offset = self.storage.offset + first * dtype.itemsize
        raw: np.ndarray = np.memmap(self.path, np.uint8, "r", offset, (stretch * dtype.itemsize,))
        steps = [stride * dtype.itemsize for stride in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(raw.view(dtype), sizes, steps, writeable=False), order="C")


def load(path: Path) -> Any:
    """The saved object: dictionaries, lists, tuples and plain values, with each tensor as a `View`, of which nothing is
    read yet, and each object of another class as an `Opaque`.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or names what a file of weights does not need.
    """
    path = Path(path)
    try:
        with files.open_ordinary(path) as file:
            start = file.read(_TAR_AT + len(_TAR))
            if start.startswith(_ZIP):
                return _load_zip(path, file)
            if start.startswith(_PICKLE):
                return _load_legacy(path, file)
            old = start.endswith(_TAR)
            raise Refused("a tar archive, as PyTorch 0.1 wrote it" if old else "neither a zip archive nor a pickle")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); name a readable file") from None
    except _ERRORS as error:
        raise _refusal(path, error) from None


def index(path: Path) -> Stored:
    """The tensors of a file by name: keys of nested dictionaries, and numbers in lists, joined by dots.

    Raises:
        CheckpointError: as `load`; or the file nests too deeply, or two tensors get the same name.
    """
    return named(path, load(path))


def named(path: Path, value: Any) -> Stored:
    """The tensors inside a value of `load`; see `index`."""
    found: Stored = {}
    try:
        for name, tensor in _tensors(value, (), [0]):
            if name in found or not name.isprintable():
                raise Refused(
                    f"{name!r:.80} stands there twice" if name in found else f"a tensor is called {name!r:.80}"
                )
            found[name] = tensor
    except Refused as error:
        raise _refusal(path, error) from None
    return found


def verify(path: Path) -> None:
    """Compare the storages with their checksums; files before version 1.6 have none. Reads the whole file.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = Path(path)
    try:
        with files.open_ordinary(path) as file:
            if file.read(len(_ZIP)) != _ZIP:
                return
            for info, offset in _members(file).values():
                file.seek(offset)
                checksum, left = 0, info.file_size
                while left and (part := file.read(min(left, _AT_ONCE))):
                    checksum, left = zlib.crc32(part, checksum), left - len(part)
                if checksum != info.CRC:
                    raise Refused(_CHECKSUM.format(info.filename[:80]))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); name a readable file") from None
    except _ERRORS as error:
        raise _refusal(path, error) from None


def _refusal(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, Refused) and str(error).startswith("names "):
        return CheckpointError(f"{path}: {error}; save the weights alone (torch.save of a state_dict)")
    what = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return CheckpointError(
        f"{path}: no whole file of weights by PyTorch ({what}); copy or download it again, or save it again with"
        " torch.save"
    )


def _tensors(value: Any, keys: tuple[str, ...], seen: list[int]) -> Iterator[tuple[str, View]]:
    """Name and tensor, for each tensor inside a value; `seen` counts the values."""
    if isinstance(value, View):
        yield ".".join(keys), value
    elif isinstance(value, (dict, list, tuple)):
        seen[0] += len(value)
        if sum(map(len, keys)) > _MAX_NAME:  # a long key would be copied into the name of each tensor below it
            raise Refused(f"the name {'.'.join(keys):.80}... has more than {_MAX_NAME} characters")
        # Values can be shared: a file of a kilobyte could name 10 ** 30 of them.
        if seen[0] > _MAX_VALUES or len(keys) > _MAX_DEPTH:
            raise Refused(f"{'.'.join(keys[:4])}... nests deeper or wider than weights do")
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(below, (*keys, str(key) if isinstance(key, (int, str)) else type(key).__name__), seen)


def _load_zip(path: Path, file: BinaryIO) -> Any:
    members = _members(file)
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused(f"a zip archive with {len(pickles)} data.pkl")
    top = pickles[0].removesuffix("data.pkl")
    if any(name.startswith(f"{top}code/") for name in members):
        raise Refused("a program (TorchScript)")
    if _small(file, members, f"{top}byteorder", b"little").strip() != b"little":
        raise Refused("its numbers are big-endian")
    info, offset = members[pickles[0]]
    if info.file_size > pickle_values.LIMIT:
        raise Refused(f"its data.pkl has {info.file_size:,} bytes, more than {pickle_values.LIMIT:,}")
    content = _content(file, info, offset)
    if zlib.crc32(content) != info.CRC:
        raise Refused(_CHECKSUM.format("data.pkl"))

    def storage(kind: str | None, key: str, numel: int) -> _Storage:
        if f"{top}data/{key}" not in members:
            raise Refused(f"it has no storage {key[:40]}")
        info, offset = members[f"{top}data/{key}"]
        made = _Storage(kind, numel, offset)
        if made.nbytes > info.file_size:
            raise Refused(f"storage {key} has {info.file_size:,} bytes; its {numel:,} values take {made.nbytes:,}")
        return made

    return pickle_values.read(io.BytesIO(content), _makers(path), lambda value: _persistent(value, storage))


def _small(file: BinaryIO, members: dict[str, tuple[zipfile.ZipInfo, int]], name: str, default: bytes) -> bytes:
    """The content of a member of some bytes."""
    if name not in members:
        return default
    info, offset = members[name]
    return _content(file, info, offset) if info.file_size < 100 else b""


def _content(file: BinaryIO, info: zipfile.ZipInfo, offset: int) -> bytes:
    file.seek(offset)
    return file.read(info.file_size)


def _members(file: BinaryIO) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """Each member of a zip archive with the position of its bytes, after a check that they are plain bytes of the file
    that belong to no other member."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        infos, end = archive.infolist(), archive.start_dir
    if len(infos) > _MAX_MEMBERS:
        raise Refused(f"a zip archive with {len(infos):,} members")
    members = {}
    for info in infos:
        name = info.filename
        if name in members:
            raise Refused(f"{name[:80]} stands there twice")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Refused(f"a member is called {name[:80]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise Refused(f"{name[:80]} is compressed or encrypted, which torch.save does not do")
        file.seek(info.header_offset)
        mark, *_, name_bytes, extra_bytes = _LOCAL.unpack(file.read(_LOCAL.size))
        offset = info.header_offset + _LOCAL.size + name_bytes + extra_bytes
        if mark != _ZIP or offset + info.file_size > size:
            raise Refused(f"the bytes of {name[:80]} are not where the archive says; it may be cut off")
        members[name] = info, offset
    ordered = sorted(members.values(), key=lambda member: member[1])
    for (info, offset), (_, behind) in itertools.pairwise([*ordered, (zipfile.ZipInfo(), end)]):
        if offset + info.file_size > behind:
            raise Refused(f"{info.filename[:80]} overlaps another member")
    return members


def _load_legacy(path: Path, file: BinaryIO) -> Any:
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    pickles = io.BytesIO(file.read(pickle_values.LIMIT))
    storages: dict[str, _Storage] = {}

    def storage(kind: str | None, key: str, numel: int) -> _Storage:
        if (made := storages.setdefault(key, _Storage(kind, numel))) != _Storage(kind, numel):
            raise Refused(f"two descriptions of storage {key[:40]}")
        return made

    def refuse(_: Any) -> None:
        raise Refused("damaged pickle: a tensor before the object")

    if (magic := pickle_values.read(pickles, {}, refuse)) != _LEGACY_MAGIC:
        raise Refused(f"a pickle that torch.save did not write: it begins with a {type(magic).__name__}")
    if (version := pickle_values.read(pickles, {}, refuse)) != _LEGACY_VERSION:
        # What is no number may nest without end.
        shown = f"{version!r:.20}" if isinstance(version, int) else f"a {type(version).__name__}"
        raise Refused(f"version {shown} of PyTorch's old form; known is {_LEGACY_VERSION}")
    system = pickle_values.read(pickles, {}, refuse)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its numbers are not little-endian")
    value = pickle_values.read(pickles, _makers(path), lambda value: _persistent(value, storage))
    keys = pickle_values.read(pickles, {}, refuse)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise Refused("the list of its storages is not that of its tensors")
    offset = pickles.tell()
    for key in keys:
        file.seek(offset)
        numel = int.from_bytes(file.read(8), "little")
        one = storages[key]
        if one.code is None:
            raise Refused(f"storage {key} is of a dtype that weights do not have")
        one.offset = offset + 8
        offset = one.offset + one.nbytes
        if numel != one.numel or offset > size:
            raise Refused(f"storage {key} has {numel:,} values and must have {one.numel:,}; it may be cut off")
    return value


def _persistent(value: Any, storage: Callable[[str | None, str, int], _Storage]) -> _Storage:
    """The storage that a persistent id of torch.save names."""
    match value:
        case ("storage", Name() as kind, str(key), str(), int(numel), *rest) if numel >= 0 and rest in ([], [None]):
            if kind.module not in ("torch", "torch.cuda"):
                return storage(None, key, numel)
            return storage(_CODES.get(kind.name), key, numel)
        case ("module", *_):
            raise Refused("a whole module with its program; save its state_dict")
    raise Refused("a storage that torch.save does not describe so")


def _makers(path: Path) -> dict[str, Callable[..., Any]]:
    """What is called in place of PyTorch's functions."""

    def tensor(storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> View | Opaque:
        return _view(path, storage, start, shape, strides)

    def parameter(data: Any, *_: Any) -> Any:
        return data

    def with_attributes(maker: Any, _kind: Any, arguments: Any, *_: Any) -> View | Opaque:
        if not isinstance(maker, Name):
            raise Refused("damaged pickle: it calls what is no function")
        if str(maker) not in _TENSORS:
            return Opaque(maker, arguments)
        return tensor(*pickle_values.require_sequence(arguments))

    def size(lengths: Any = ()) -> tuple[Any, ...]:
        return tuple(pickle_values.require_sequence(lengths))

    return {
        **dict.fromkeys(_TENSORS, tensor),
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
        "torch._tensor._rebuild_from_type_v2": with_attributes,
        "torch.Size": size,
    }


_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")


def _view(path: Path, storage: Any, start: Any, shape: Any, strides: Any) -> View | Opaque:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise Refused("damaged pickle: a tensor without storage, shape or strides")
    if (
        len(shape) != len(strides)
        or len(shape) > _MAX_DIMS
        or any(type(n) is not int or n < 0 for n in (start, *shape, *strides))
    ):
        raise Refused("damaged pickle: shape and strides of a tensor must be whole numbers")
    if storage.code is None:
        return Opaque(Name("torch", "Tensor"), ())
    last = start + sum((size - 1) * stride for size, stride in zip(shape, strides))
    # More values than its storage has: strides of 0 repeat them. No weights are stored so, and it could be any number.
    if math.prod(shape) and (last >= storage.numel or math.prod(shape) > storage.numel):
        raise Refused(
            f"a tensor {list(shape)[:8]} with strides {list(strides)[:8]} does not fit its {storage.numel:,} values"
        )
    return View(Spec(storage.code, shape), path, storage, start, strides)
