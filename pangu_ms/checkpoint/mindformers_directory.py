"""Finds the tensors of a checkpoint directory that MindFormers 1.8 or 1.9 wrote. No mindspore import.

    OUTPUT/checkpoint/latest_checkpointed_iteration.txt     the number of the last complete checkpoint
    OUTPUT/checkpoint/iteration_00000012/
        PREFIX-model-0000003-0000008.safetensors            the model's slices of rank 3 of 8
        PREFIX-opt-0000003-0000008.safetensors              those of the optimizer, which are not read
        metadata.json                                       which slice is in which file; absent with one rank
        common.json

Source: mindformers 1.9, checkpoint/checkpoint.py, metadata.py and utils.py.
"""

import math
import re
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint import safetensors_file
from pangu_ms.checkpoint.lazy import Stored
from pangu_ms.checkpoint.safetensors_file import Contents, Spec
from pangu_ms.checkpoint.sharded import StoredTensor, whole
from pangu_ms.core import small_json
from pangu_ms.core.errors import CheckpointError

NAME = "mindformers"
"""The format whose directories these are."""
_TRACKER, _METADATA = "latest_checkpointed_iteration.txt", "metadata.json"
_MODEL_FILE = re.compile(r"(?:.+-)?model-\d{7}-(\d{7})\.safetensors")
_AGAIN = "copy the whole directory again, or save it again"


def find(directory: Path) -> Path:
    """The directory iteration_N of a MindFormers run: `directory` itself, or the last complete one of its run.

    Raises:
        CheckpointError: it is none of MindFormers', or the run's last checkpoint is not there.
    """
    directory = Path(directory)
    if model_files(directory):
        return directory
    for root in (directory, directory / "checkpoint"):
        if (tracker := root / _TRACKER).is_file():
            with open(tracker, errors="replace") as file:
                text = file.read(100).strip()
            found = root / f"iteration_{int(text):08d}" if text.isdecimal() and len(text) <= 18 else None
            if found is None or not model_files(found):
                raise CheckpointError(
                    f"{tracker}: names iteration {text[:40]!r}, of which there is no directory with weights; name an"
                    " iteration_N directory"
                )
            return found
    raise CheckpointError(
        f"{directory}: holds no checkpoint of MindFormers (*-model-*.safetensors, or {_TRACKER}); name a directory"
        " iteration_N, the output of a run, or a file; or, with rank_N directories, a --strategy"
    )


def model_files(directory: Path) -> list[Path]:
    """The files of model weights of an iteration_N directory."""
    here = Path(directory).iterdir() if Path(directory).is_dir() else ()
    return sorted(path for path in here if _MODEL_FILE.fullmatch(path.name))


def open_directory(directory: Path) -> tuple[Stored, list[Path]]:
    """The model's tensors of an iteration_N directory, which stay on the disk, and its files.

    Raises:
        CheckpointError: a file is missing or damaged, or does not hold what metadata.json says.
    """
    files = model_files(directory)
    described = directory / _METADATA
    if described.is_file():
        return _joined(described, files), files
    if len(files) > 1 or _number_of_files(files[0]) > 1:
        raise CheckpointError(
            f"{directory}: has {len(files)} files of {_number_of_files(files[0])} ranks and no {_METADATA}, which says"
            f" how they fit together; {_AGAIN}"
        )
    index = safetensors_file.index(files[0])
    return {name: whole(spec, location) for name, (spec, location) in index.items()}, files


def _number_of_files(path: Path) -> int:
    match = _MODEL_FILE.fullmatch(path.name)
    assert match
    return int(match[1])


def _joined(described: Path, files: list[Path]) -> Stored:
    """The tensors of several files that metadata.json puts together."""
    contents = {path.name: safetensors_file.index(path) for path in files}
    try:
        tree = small_json.read_object(described)
        tensors, stored = tree["state_dict_metadata"], tree["storage_data"]
        return {
            name: _tensor(described.parent, name, entry, stored, contents)
            for name, entry in tensors.items()
            if any(_in_model(stored[_chunk_key(name, chunk)]) for chunk in entry["chunk"])
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{described}: does not describe a checkpoint ({error!r:.200}); {_AGAIN}") from None


def _in_model(places: list[dict[str, Any]]) -> bool:
    return any(_MODEL_FILE.fullmatch(place["file_name"]) for place in places)


def _chunk_key(name: str, chunk: dict[str, Any]) -> str:
    return str((name, tuple(chunk["global_offset"])))


def _tensor(
    directory: Path, name: str, entry: dict[str, Any], stored: dict[str, Any], contents: dict[str, Contents]
) -> StoredTensor:
    shape = _sizes(entry["global_shape"])
    slice_shape = _sizes(entry["chunk"][0]["local_shape"])
    for sizes in (shape, slice_shape):
        safetensors_file.require_possible(name, sizes)
    if len(slice_shape) != len(shape) or any(n < 1 or size % n for size, n in zip(shape, slice_shape)):
        raise ValueError(f"{name}: slices {slice_shape} of {shape}")
    locations, codes = {}, set()
    for chunk in entry["chunk"]:
        offset = _sizes(chunk["global_offset"])
        if _sizes(chunk["local_shape"]) != slice_shape or any(at % n for at, n in zip(offset, slice_shape)):
            raise ValueError(f"{name}: a slice {chunk['local_shape']} at {offset}")
        spec, location = _found(directory, name, stored[_chunk_key(name, chunk)], contents)
        if spec.shape != slice_shape:
            raise CheckpointError(
                f"{location.path}: {name} has shape {list(spec.shape)}, {_METADATA} says {list(slice_shape)}; {_AGAIN}"
            )
        locations[tuple(at // n for at, n in zip(offset, slice_shape))] = location
        codes.add(spec.code)
    counts = [size // n for size, n in zip(shape, slice_shape)]
    if len(codes) > 1 or len(locations) != math.prod(counts):
        raise CheckpointError(
            f"{directory}: {_METADATA} names {len(locations)} of the {math.prod(counts)} slices of {name}"
            f" ({', '.join(sorted(codes))}); {_AGAIN}"
        )
    return StoredTensor(Spec(codes.pop(), shape), slice_shape, locations)


def _found(directory: Path, name: str, places: list[dict[str, Any]], contents: dict[str, Contents]) -> Any:
    """dtype, shape and place of a slice, in the first file that holds it."""
    for place in places:
        if name in contents.get(place["file_name"], {}):
            return contents[place["file_name"]][name]
    names = ", ".join(sorted({str(place["file_name"]) for place in places})[:3])
    raise CheckpointError(f"{directory}: a slice of {name} should be in {names}, and is not; {_AGAIN}")


def _sizes(numbers: Any) -> tuple[int, ...]:
    sizes = tuple(numbers)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"sizes {numbers!r:.80}")
    return sizes
