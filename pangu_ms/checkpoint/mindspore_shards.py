"""Reads MindSpore's own sharded checkpoints: DIR/rank_N/*.ckpt or *.safetensors, and strategy files that say how each
tensor was sliced. No mindspore import.

Source: checkpoint.proto and _write_parameter_data in mindspore/train/serialization.py. The directories rank_N are those
that mindspore.transform_checkpoints reads.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import safetensors_file
from pangu_ms.checkpoint.lazy import Stored
from pangu_ms.checkpoint.safetensors_file import Contents, Location, Spec
from pangu_ms.checkpoint.sharded import gather, parameter_of, replicated
from pangu_ms.core import files
from pangu_ms.core.errors import CheckpointError, PlanError
from pangu_ms.core.protobuf import Bytes, content, signed, values
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.strict import check_names_and_shapes
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import MOMENTS
from pangu_ms.parallel.strategy_file import StoredLayout, StrategyFile, read_parameter_layouts

_CODES = {
    "Float64": "F64", "Float32": "F32", "Float16": "F16", "BFloat16": "BF16",
    "Int64": "I64", "Int32": "I32", "Int16": "I16", "Int8": "I8",
    "UInt64": "U64", "UInt32": "U32", "UInt16": "U16", "UInt8": "U8", "Bool": "BOOL",
}  # fmt: skip
"""MindSpore's name of a dtype -> the name in the safetensors format."""
_VALUE = 1  # field numbers in checkpoint.proto: of Checkpoint
_TAG, _TENSOR = 1, 2  # of Checkpoint.Value
_DIMS, _TYPE, _CONTENT = 1, 2, 3  # of TensorProto
_TEXT = b"str"  # the type of a string that was saved together with the weights
_CRC_MARK, _CRC_BYTES = b"crc_num", 17  # the trailer after the message, if it was saved with crc_check
_RANK = re.compile(r"rank_(\d+)")
_ACCUMULATED = "accu_grads."


@dataclass(frozen=True)
class Shards:
    """The tensors of a sharded checkpoint."""

    groups: dict[str, Stored]
    """The groups "model" and, if the moments were saved, "optimizer"."""
    left_out: list[str]
    """Names of counters, scales and accumulated gradients, which our checkpoints do not store as tensors."""


def open_shards(directory: Path, strategies: list[Path], model: ModelConfig) -> Shards:
    """Find the tensors of a sharded checkpoint of `model`; they stay on the disk.

    Args:
        directory: holds rank_N/ for each rank, with one file in each. A rank may be missing if another one holds the
            same slices.
        strategies: one merged strategy file, or one file per pipeline stage.
        model: the model that was saved.

    Raises:
        CheckpointError: a needed rank has no file, several files or a damaged one; or names and shapes are not those of
            the strategy and the model.
        PlanError: a strategy file cannot be used.
    """
    plan = SourcePlan.read(strategies)
    paths = rank_files(directory, plan)
    tensors = gather(str(directory), ((rank, index(path)) for rank, path in paths.items()), plan.layout)
    for stage, names in plan.stages.items():
        ranks = range(stage * plan.stage_size, (stage + 1) * plan.stage_size)
        for name in names:
            if name not in tensors and parameter_of(name) in model.parameters():
                where = (
                    f"none of the ranks {ranks[0]} to {ranks[-1]} has {name}, which the strategy file names for stage"
                    f" {stage}"
                )
                raise CheckpointError(f"{directory}: {where}; all parameters are needed; add the files of these ranks")
    return _grouped(str(directory), tensors, model)


@dataclass(frozen=True)
class SourcePlan:
    """The layouts of all stages, from the strategy files."""

    stages: dict[int, dict[str, StoredLayout]]
    stage_size: int

    @classmethod
    def read(cls, paths: list[Path]) -> "SourcePlan":
        """Read one merged file, or one file for each stage.

        Raises:
            PlanError: a file cannot be read, or two files belong to the same stage or differ in the number of devices.
        """
        read = [read_parameter_layouts(path) for path in paths]
        stages: dict[int, dict[str, StoredLayout]] = {}
        for file in read:
            _require_fits(file, read[0], stages)
            stages |= file.stages
        if set(stages) != set(range(len(stages))):
            missing = next(stage for stage in itertools.count() if stage not in stages)
            found = f"stages {sorted(stages)} are there, {missing} is not"
            raise PlanError(f"{paths[0]}: {found}; a file for each stage is needed, or a merged one; name all of them")
        return cls(stages, read[0].stage_size)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.stage_size * len(self.stages)

    def layout(self, rank: int, name: str, shape: tuple[int, ...]) -> Layout:
        """The layout of a tensor whose slice in the file of `rank` has `shape`. A tensor that no strategy file names is
        replicated on every device."""
        stored = self.stages[rank // self.stage_size]
        known = stored.get(name) or stored.get(parameter_of(name))
        try:
            return known.of_slice(shape) if known else replicated(shape, (("rank", self.stage_size),))
        except PlanError as error:
            raise CheckpointError(f"rank {rank}: {name}: {error}") from None


def rank_files(directory: Path, plan: SourcePlan) -> dict[int, Path]:
    """Find the weight file of each rank that has a rank_N directory.

    Raises:
        CheckpointError: there is no rank_N directory; one belongs to a rank that the strategy does not have; or one
            does not hold exactly one file.
    """
    found = {}
    for path in Path(directory).glob("rank_*"):
        if (match := _RANK.fullmatch(path.name)) and path.is_dir():
            found[int(match[1])] = path
    if not found:
        raise CheckpointError(
            f"{directory}: no rank_N directory in it; a sharded checkpoint has rank_0/FILE.ckpt and so on; name their"
            " parent"
        )
    if max(found) >= plan.world:
        world = f"{len(plan.stages)} stages of {plan.stage_size}"
        rule = "both must be of one run; name the strategy file of this run"
        raise CheckpointError(f"{found[max(found)]}: the strategy has {plan.world} ranks ({world}); {rule}")
    chosen = {}
    for rank, path in sorted(found.items()):
        here = sorted(file for file in path.iterdir() if file.suffix in (".ckpt", ".safetensors"))
        if len(here) != 1:
            names = ", ".join(file.name for file in here[:5]) or "no .ckpt or .safetensors"
            raise CheckpointError(
                f"{path}: rank {rank} has {names}; must be one file of weights;"
                f" {'remove all others' if here else 'add it'}"
            )
        chosen[rank] = here[0]
    return chosen


def index(path: Path) -> Contents:
    """The contents of a .ckpt or .safetensors file, found without reading the tensors.

    Raises:
        CheckpointError: the file is damaged, cut off or of another kind.
    """
    if path.suffix == ".safetensors":
        return safetensors_file.index(path)
    try:
        files.open_ordinary(path).close()
        return _ckpt_index(path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole MindSpore checkpoint ({error}); must be one without encryption; copy or save it again"
        ) from None


def _ckpt_index(path: Path) -> Contents:
    """The contents of a .ckpt file; raises ValueError or KeyError if it is damaged."""
    raw: np.ndarray = np.memmap(path, np.uint8, "r")
    if raw[-_CRC_BYTES : -_CRC_BYTES + len(_CRC_MARK)].tobytes() == _CRC_MARK:
        raw = raw[:-_CRC_BYTES]
    found: Contents = {}
    last = None
    for name, spec, segment in _ckpt_values(raw):
        if name in found and (name != last or found[name][0] != spec):
            raise ValueError(f"{name} stands there twice")
        # MindSpore splits a large tensor into several consecutive values of the same name.
        segments = found[name][1].segments if name in found else ()
        found[name] = spec, Location(path, (*segments, segment))
        last = name
    for name, (spec, location) in found.items():
        length = sum(size for _, size in location.segments)
        if length != spec.nbytes:
            raise ValueError(f"{name} has {length} bytes for {spec.code} {list(spec.shape)}")
    return found


def _ckpt_values(raw: np.ndarray) -> Iterator[tuple[str, Spec, tuple[int, int]]]:
    """Name, dtype with shape, and (offset, length) of the bytes of each value of a mapped .ckpt file.

    The parts are views of the mapped file, so that the tensors are not read.
    """
    start = raw.ctypes.data
    for field, value in values(raw.data):
        if field != _VALUE:
            raise ValueError(f"field {field} is none of a checkpoint")
        parts = _singles(values(content(value)))
        tensor = list(values(content(parts[_TENSOR])))
        fields = _singles(pair for pair in tensor if pair[0] != _DIMS)
        type_name = bytes(content(fields[_TYPE]))
        if type_name == _TEXT:
            continue
        dims = tuple(signed(size) for key, size in tensor if key == _DIMS)
        name = bytes(content(parts[_TAG])).decode()
        safetensors_file.require_possible(name, dims)
        data = np.frombuffer(content(fields[_CONTENT]), np.uint8)
        spec = Spec(_CODES[type_name.decode()], () if dims == (0,) else dims)  # MindSpore gives a scalar dims of (0,)
        yield name, spec, (data.ctypes.data - start, data.size)


def _singles(pairs: Iterable[tuple[int, int | Bytes]]) -> dict[int, int | Bytes]:
    """The fields by number. protobuf would merge two fields with the same number; no valid checkpoint has such fields.

    Raises:
        ValueError: a number occurs twice.
    """
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands there twice")
    return found


def _require_fits(file: StrategyFile, first: StrategyFile, stages: dict[int, dict[str, StoredLayout]]) -> None:
    if twice := sorted(stages.keys() & file.stages.keys()):
        raise PlanError(
            f"{file.path}: is of stage {twice[0]}, as one before it; must be of another stage; name one file for each,"
            " or the merged one"
        )
    if file.stage_size != first.stage_size:
        raise PlanError(
            f"{file.path}: has {file.stage_size} devices a stage, {first.path} has {first.stage_size}; must be of one"
            " run; name its files"
        )


def _grouped(where: str, tensors: Stored, model: ModelConfig) -> Shards:
    """Sort tensors into the groups "model" and "optimizer", and check that each group is complete."""
    shapes = model.parameter_shapes()
    moments = {prefix + name: shape for prefix in MOMENTS for name, shape in shapes.items()}
    rest = [name for name in tensors if name not in shapes and name not in moments]
    left_out = [name for name in rest if name.startswith(_ACCUMULATED) or math.prod(tensors[name].shape) <= 1]
    unexpected = {name: tensors[name] for name in rest if name not in left_out}
    check_names_and_shapes(where, {name: tensors[name] for name in shapes if name in tensors} | unexpected, shapes)
    groups = {"model": {name: tensors[name] for name in shapes}}
    if any(name in tensors for name in moments):
        optimizer = {name: tensors[name] for name in moments if name in tensors}
        check_names_and_shapes(where, optimizer, moments)
        groups["optimizer"] = optimizer
    return Shards(groups, left_out)
