"""Reshards checkpoints from any parallel plan to any other, or to and from one whole checkpoint. No mindspore import.

Each file of the target is written sequentially. A tensor is assembled only when it is written, from the parts of the
source files that it needs. So memory holds one slice of the target and the mapped pages that it is read from, whatever
the number of ranks.
"""

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint import safetensors_file, sharded, store
from pangu_ms.checkpoint.lazy import Readable, Slices, Stored
from pangu_ms.checkpoint.partial import Partial
from pangu_ms.checkpoint.safetensors_file import Buffer, Spec
from pangu_ms.config import RunConfig, dump_config
from pangu_ms.core.errors import CheckpointError, OutputError
from pangu_ms.core.progress import progress_bar
from pangu_ms.core.size_text import size_text
from pangu_ms.models.common.stacks import is_stack, member_name
from pangu_ms.models.common.strict import check_names_and_shapes
from pangu_ms.parallel.plan import Plan, parameter_of


@dataclass(frozen=True)
class Source:
    """A checkpoint to reshard."""

    where: str
    """Path of the checkpoint, with which error messages begin."""
    step: int
    groups: dict[str, Stored]
    state: bytes
    """The content of its state.json, which is copied."""
    tokenizer: Path | None = None
    """Directory of its tokenizer."""

    @classmethod
    def of(cls, checkpoint: store.Checkpoint) -> "Source":
        """A checkpoint in this package's own format, whole or sharded."""
        groups = {group: checkpoint.stored(group) for group in checkpoint.groups}
        return cls(
            str(checkpoint.path),
            checkpoint.step,
            groups,
            (checkpoint.path / "state.json").read_bytes(),
            checkpoint.tokenizer_path(),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all whole tensors, each counted once however many ranks hold it."""
        return sum(tensor.spec.nbytes for tensors in self.groups.values() for tensor in tensors.values())


def reshard(
    source: Source,
    root: Path,
    config: RunConfig,
    whole: bool = False,
    progress: bool = False,
    allowed: store.Check = store.require_unused,
    partial: Partial | None = None,
) -> Path:
    """Write a checkpoint whose tensors are sharded as `config.parallel` says. If the process is killed or the disk is
    full, at most a temporary directory is left.

    Args:
        source: the checkpoint to read.
        root: directory of the new checkpoint, which `allowed` must accept.
        config: the configuration of the source, with the `parallel` section of the target.
        whole: ignore the plan and write unsharded tensors, as a run on one device does.
        progress: show a bar.
        allowed: see `store.new_step`; by default the directory must be empty or not exist.
        partial: keeps the files that are finished if the writing is interrupted.

    Returns:
        The new step's directory.

    Raises:
        CheckpointError: the tensors are not those of the configuration's model.
        OutputError: `root` has other content, or the disk has not enough room.
    """
    finished = partial.finished if partial else {}
    check(source, root, config, allowed, partial.nbytes if partial else 0)
    contents: store.Contents = {
        "state.json": [source.state],
        "config.yaml": [dump_config(config).encode()],
        **store.tokenizer_files(source.tokenizer),
    }
    plan = Plan.of(config)
    groups: dict[str, set[str]] = {}
    with progress_bar(
        progress, total=source.nbytes, unit="B", unit_scale=True, desc="import" if partial else "reshard"
    ) as bar:
        for group, name, parts in _whole_files(source) if whole else _rank_files(source, plan):
            contents[name] = _with_progress(_encoded(parts), bar)
            groups.setdefault(group, set()).update(parts)
            bar.update(finished[name]["bytes"] if name in finished else 0)
        numbers = {group: len(names) for group, names in groups.items()}
        if partial:
            return partial.write(source.step, contents, numbers, allowed)
        return store.write(root, source.step, contents, numbers, allowed=allowed)


def check(
    source: Source, root: Path, config: RunConfig, allowed: store.Check = store.require_unused, finished: int = 0
) -> None:
    """Run the checks of `reshard`, which raise the errors listed there, before anything is read or written; `finished`
    bytes of it are there already."""
    allowed(root)
    _require_model(source, config)
    require_room(root, max(source.nbytes - finished, 0))


@dataclass(frozen=True)
class _Part:
    """A part of a stored tensor, which is one tensor of a new file."""

    tensor: Readable
    slices: Slices
    shape: tuple[int, ...]


_File = tuple[str, str, dict[str, _Part]]
"""Group, name and tensors of a new file."""


def _rank_files(source: Source, plan: Plan) -> Iterator[_File]:
    """The files of a checkpoint that is sharded over the ranks of a plan."""
    for group, tensors in source.groups.items():
        for rank, own in sharded.rank_tensors(plan, {name: tensor.shape for name, tensor in tensors.items()}):
            parts = {
                name: _Part(tensors[name], part, tuple(s.stop - s.start for s in part)) for name, part in own.items()
            }
            yield group, sharded.rank_file(group, rank), parts


def _whole_files(source: Source) -> Iterator[_File]:
    """The files of `store.save`: stacks are taken apart, and tables of integers have a file of their own."""
    for group, tensors in source.groups.items():
        of_files: dict[str, dict[str, _Part]] = {}
        for name, tensor in tensors.items():
            file_group = store.ROUTING if group == store.MODEL and tensor.spec.dtype.kind == "i" else group
            of_files.setdefault(file_group, {}).update(_members(name, tensor))
        for file_group, parts in of_files.items():
            sizes = {name: math.prod(part.shape) * part.tensor.spec.dtype.itemsize for name, part in parts.items()}
            for file, names in store.shards(file_group, sizes):
                yield file_group, file, {name: parts[name] for name in names}


def _members(name: str, tensor: Readable) -> dict[str, _Part]:
    if not is_stack(name):
        return {name: _Part(tensor, tensor.all, tensor.shape)}
    return {
        member_name(name, i): _Part(tensor, (slice(i, i + 1), *tensor.all[1:]), tensor.shape[1:])
        for i in range(tensor.shape[0])
    }


def _encoded(parts: dict[str, _Part]) -> Iterator[Buffer]:
    """The bytes of a file that holds these parts of tensors."""
    specs = {name: Spec(part.tensor.spec.code, part.shape) for name, part in parts.items()}
    return safetensors_file.encode_pieces(specs, lambda name: parts[name].tensor.pieces(parts[name].slices))


def _with_progress(pieces: Iterable[Buffer], bar: Any) -> Iterator[Buffer]:
    """Yield the pieces of a file unchanged, and advance the progress bar by the bytes that belong to tensors."""
    for piece in pieces:
        yield piece
        bar.update(len(piece) if isinstance(piece, memoryview) else 0)  # a `bytes` piece is the header, not a tensor


def _require_model(source: Source, config: RunConfig) -> None:
    shapes = config.model.parameter_shapes()
    check_names_and_shapes(source.where, source.groups.get("model", {}), shapes)
    for group, tensors in source.groups.items():
        for name, tensor in tensors.items():
            shape = shapes.get(parameter_of(name), tensor.shape)
            if tensor.shape != shape:
                rule = f"the configuration has its parameter as {list(shape)}"
                raise CheckpointError(
                    f"{source.where}: {group} tensor {name} is {list(tensor.shape)}; {rule}; use the one that belongs"
                    " to these weights"
                )


def require_room(root: Path, needed: int) -> None:
    """Raise OutputError unless the disk of `root` has room for `needed` bytes."""
    existing = next(path for path in (Path(root).absolute(), *Path(root).absolute().parents) if path.is_dir())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise OutputError(
            f"{root}: {size_text(free)} are free; the tensors take {size_text(needed)}; free some room or"
            " name another --output"
        )
