"""Reads and writes weights of other programs: MindSpore .ckpt, numpy .npz, .safetensors, and Hugging Face directories.
mindspore is imported only to write .ckpt.

Tensors of .ckpt and .safetensors stay on the disk until a part of one is written; only .npz files are read as a whole,
and only .npz and .ckpt files are written from memory.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from pangu_ms.checkpoint import mindspore_shards, safetensors_file, store, torch_file
from pangu_ms.checkpoint.lazy import InMemory, Readable, Stored
from pangu_ms.checkpoint.sharded import whole
from pangu_ms.core import files, small_json
from pangu_ms.core.dtypes import BFLOAT16, widened
from pangu_ms.core.errors import CheckpointError
from pangu_ms.data import npz_file

Tensors = dict[str, np.ndarray]
Given = Mapping[str, Readable | np.ndarray]
"""Tensors to write: in memory, or still on the disk."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of a Hugging Face directory
INDEX = f"{WEIGHTS}.index.json"  # says which of several files holds which tensor
TORCH_WEIGHTS = "pytorch_model.bin"  # of an older directory
_SHOWN = 5  # names listed


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json of a Hugging Face directory.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(directory) / CONFIG
    try:
        return small_json.read_object(path)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}; a Hugging Face directory says there what its weights are; restore it, or name the file"
            " of weights and --config"
        ) from None


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a Hugging Face directory: model.safetensors, or the files that its index names; without these
    pytorch_model.bin or those that its index names.

    Raises:
        CheckpointError: a file is missing, or the index is damaged.
    """
    directory = Path(directory)
    weights, index = WEIGHTS, directory / INDEX
    if not (index.is_file() or (directory / WEIGHTS).is_file()):
        older = directory / f"{TORCH_WEIGHTS}.index.json"
        if older.is_file() or (directory / TORCH_WEIGHTS).is_file():
            weights, index = TORCH_WEIGHTS, older
    names = [weights]
    if index.is_file():
        try:
            names = sorted({str(Path(name)) for name in small_json.read_object(index)["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of weights ({error!r}); copy or download it again") from None
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise CheckpointError(
            f"{index}: names {outside[0]:.80}; its files must lie in its directory; copy them there and correct the"
            " index"
        )
    if missing := [name for name in names if not (directory / name).is_file()]:
        where = f"named in {index.name}" if index.is_file() else f"nor {index.name}; nor {TORCH_WEIGHTS}"
        shown = ", ".join(f"{name:.80}" for name in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise CheckpointError(f"{directory}: holds no {shown}{more} ({where}); copy or download the directory again")
    return [directory / name for name in names]


def read_files(paths: list[Path]) -> Tensors:
    """Read all tensors of several files; see `open_files`."""
    return {name: tensor.array() for name, tensor in open_files(paths).items()}


def open_files(paths: list[Path]) -> Stored:
    """Find the tensors of several files.

    Raises:
        CheckpointError: a file is missing or damaged, or two files hold the same tensor.
    """
    tensors: Stored = {}
    for path in paths:
        shard = open_file(path)
        if twice := tensors.keys() & shard.keys():
            raise CheckpointError(
                f"{path}: {min(twice)} stands in another file too; one is meant; copy or download the directory again"
            )
        tensors |= shard
    return tensors


def write_directory(
    directory: Path,
    tensors: Given,
    contents: Mapping[str, bytes],
    max_shard_bytes: int = store.MAX_SHARD_BYTES,
) -> None:
    """Write a Hugging Face directory atomically.

    Args:
        directory: must not exist, or be empty.
        tensors: the weights.
        contents: contents of the other files, by name.
        max_shard_bytes: weights larger than this are split over several files, with an index.

    Raises:
        OutputError: the directory has other content, or the disk is full.
    """
    sizes = {name: tensor.spec.nbytes for name, tensor in _stored(tensors).items()}
    shards = dict(store.shards(Path(WEIGHTS).stem, sizes, max_shard_bytes))
    with files.new_directory(directory) as temporary:
        for file, names in shards.items():
            write_safetensors(temporary / file, {name: tensors[name] for name in names})
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            files.write_json(
                temporary / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            )
        for name, content in contents.items():
            (temporary / name).write_bytes(content)


def read_file(path: Path) -> Tensors:
    """Read all tensors of a file in the dtypes of the file; a bfloat16 tensor has the numpy dtype BFLOAT16. See
    `open_file`."""
    return {name: tensor.array() for name, tensor in open_file(path).items()}


def open_file(path: Path) -> Stored:
    """Find the tensors of a file.

    Raises:
        CheckpointError: the suffix is unknown, or the file is missing, damaged or of another kind.
    """
    path = Path(path)
    open_known = _open_torch if path.suffix in torch_file.SUFFIXES else _functions(path)[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; name one file of weights")
    return open_known(path)


def write_file(path: Path, tensors: Given) -> None:
    """Write tensors to a file atomically; an existing file is replaced.

    Raises:
        CheckpointError: the suffix is unknown.
        OutputError: the disk is full or not writable.
    """
    path = Path(path)
    _, write = _functions(path)
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A temporary directory is used, not a file, because MindSpore leaves additional files in the directory when a
        # write fails.
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            write(temporary / path.name, tensors)
            files.sync_path(temporary / path.name)
            os.replace(temporary / path.name, path)
            files.sync_path(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def require_known_suffix(path: Path, dtype: str = "float32") -> None:
    """Raise CheckpointError unless `path` ends in a suffix that can be read, and written with this dtype."""
    if Path(path).suffix not in _FORMATS:
        remedy = "use one of these (a new directory: a name without a dot)"
        raise CheckpointError(
            f"{path}: unknown kind of file {Path(path).suffix!r}; weights are {', '.join(_FORMATS)}; {remedy}"
        )
    if dtype == "bfloat16" and Path(path).suffix == ".npz":
        raise CheckpointError(
            f"{path}: numpy's files have no bfloat16; it goes into a .safetensors, a .ckpt or a directory; name one, or"
            " another --dtype"
        )


def _functions(path: Path) -> tuple[Callable[[Path], Stored], Callable[[Path, Given], None]]:
    require_known_suffix(path)
    return _FORMATS[path.suffix]


def _stored(tensors: Given) -> Stored:
    return {
        name: tensor if isinstance(tensor, Readable) else InMemory.of(name, np.asarray(tensor))
        for name, tensor in tensors.items()
    }


def _arrays(tensors: Given) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in tensors.items():
        yield name, tensor.array() if isinstance(tensor, Readable) else tensor


def _open_indexed(path: Path) -> Stored:
    # MindSpore's own reader is not used: it writes past the end of the array if a tensor has more bytes than its dims
    # say, and it converts bfloat16 on a device.
    return {name: whole(spec, location) for name, (spec, location) in mindspore_shards.index(path).items()}


def _write_ckpt(path: Path, tensors: Given) -> None:
    import mindspore as ms

    def tensor(array: np.ndarray) -> ms.Tensor:
        return ms.Tensor(np.asarray(widened(array), order="C"), dtype=ms.bfloat16 if array.dtype == BFLOAT16 else None)

    ms.save_checkpoint([{"name": name, "data": tensor(array)} for name, array in _arrays(tensors)], str(path))


def _open_torch(path: Path) -> Stored:
    torch_file.verify(path)
    return torch_file.index(path)


def _open_npz(path: Path) -> Stored:
    try:
        arrays = npz_file.read(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a whole .npz archive ({error}); copy or download it again") from None
    try:
        return _stored(arrays)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _write_npz(path: Path, tensors: Given) -> None:
    # numpy's savez leaves its archive open when the disk is full, and Python then prints a traceback.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in _arrays(tensors):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)


def write_safetensors(path: Path, tensors: Given) -> None:
    """Write tensors to a new .safetensors file, each piece when it is read; the caller makes the file atomic."""
    stored = _stored(tensors)
    with open(path, "wb") as file:
        file.writelines(
            safetensors_file.encode_pieces(
                {name: tensor.spec for name, tensor in stored.items()},
                lambda name: stored[name].pieces(stored[name].all),
            )
        )


_FORMATS = {
    ".ckpt": (_open_indexed, _write_ckpt),
    ".npz": (_open_npz, _write_npz),
    ".safetensors": (_open_indexed, write_safetensors),
}
