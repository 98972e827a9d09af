"""Tensors whose slices are distributed over the files of many ranks. No mindspore import.

    GROUP-rank-00007.safetensors        the slices that rank 7 owns

The slices are those of `Plan.of(config.yaml)`. The owner of a slice is the first rank that holds it, so each slice is
stored once, and all files together are as large as the unsharded checkpoint. A rank that owns no slice has no file.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import safetensors_file
from pangu_ms.checkpoint.lazy import Readable, Slices, Stored
from pangu_ms.checkpoint.safetensors_file import Contents, Location, Spec
from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.stacks import member_name, stack_of
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import Plan, parameter_of

Index = tuple[int, ...]
LayoutOf = Callable[[int, str, tuple[int, ...]], Layout]
"""Called as `layout_of(rank, name, shape)`, with the tensor's name and shape in the file of that rank; returns the
layout."""

RANK_FILE = re.compile(r"(.+)-rank-(\d{5,})\.safetensors")


@dataclass(frozen=True)
class StoredTensor(Readable):
    """A tensor on disk, whole or in slices of equal size."""

    slice_shape: tuple[int, ...]
    locations: dict[Index, Location]
    """Where each slice lies, by the index of the slice along each dimension."""

    @property
    def num_slices(self) -> int:
        """See Readable."""
        return len(self.locations)

    def read(self, wanted: Slices) -> np.ndarray:
        """Read a part of the tensor, in `spec.dtype`; no other part is read from the disk."""
        part = np.empty([s.stop - s.start for s in wanted], self.spec.dtype)
        if part.size == 0:
            return part
        touched = [range(s.start // n, -(-s.stop // n)) for s, n in zip(wanted, self.slice_shape)]
        for index in itertools.product(*touched):
            begins = [i * n for i, n in zip(index, self.slice_shape)]
            overlap = [(max(s.start, b), min(s.stop, b + n)) for s, b, n in zip(wanted, begins, self.slice_shape)]
            into = tuple(slice(low - s.start, high - s.start) for (low, high), s in zip(overlap, wanted))
            source = tuple(slice(low - b, high - b) for (low, high), b in zip(overlap, begins))
            part[into] = self.locations[index].map(Spec(self.spec.code, self.slice_shape))[source]
        return part


def whole(spec: Spec, location: Location) -> StoredTensor:
    """A tensor that one file holds as a whole."""
    return StoredTensor(spec, spec.shape, {(0,) * len(spec.shape): location})


def joined(where: str, contents: Contents) -> Stored:
    """The tensors of whole files, with the members of each stack joined.

    Args:
        where: the directory, with which error messages begin.
        contents: the tensors of all files.

    Raises:
        CheckpointError: a member of a stack is missing, or has another shape or dtype than the others.
    """
    stored: Stored = {}
    stacks: dict[str, dict[int, tuple[Spec, Location]]] = {}
    for name, entry in contents.items():
        if found := stack_of(name):
            stack, index = found
            stacks.setdefault(stack, {})[index] = entry
        else:
            stored[name] = whole(*entry)
    return stored | {stack: _stacked(where, stack, entries) for stack, entries in stacks.items()}


def _stacked(where: str, stack: str, entries: dict[int, tuple[Spec, Location]]) -> StoredTensor:
    one, _ = next(iter(entries.values()))
    for index in range(len(entries)):
        if index not in entries:
            raise CheckpointError(
                f"{where}: {member_name(stack, index)} is missing, and a member with a higher number is there; all"
                " members of a stack are needed; use another checkpoint"
            )
        if entries[index][0] != one:
            raise CheckpointError(
                f"{where}: {member_name(stack, index)} is {_described(entries[index][0])}, others of its stack are"
                f" {_described(one)}; must be equal; use another checkpoint"
            )
    locations = {(index, *[0] * len(one.shape)): location for index, (_, location) in sorted(entries.items())}
    return StoredTensor(Spec(one.code, (len(entries), *one.shape)), (1, *one.shape), locations)


def _described(spec: Spec) -> str:
    return f"{spec.dtype_name} {list(spec.shape)}"


def layout_in(plan: Plan, name: str, shape: tuple[int, ...]) -> Layout:
    """The layout of a tensor of a checkpoint. Moments have the layout of their parameter; a tensor that belongs to no
    parameter is replicated on every device, with `shape`."""
    return plan.layouts.get(parameter_of(name)) or replicated(shape, plan.mesh.axes)


def replicated(shape: tuple[int, ...], axes: tuple[tuple[str, int], ...]) -> Layout:
    """The layout of a tensor that every device holds unsliced."""
    return Layout(shape, axes, ((),) * len(shape))


def gather(where: str, files: Iterable[tuple[int, Contents]], layout_of: LayoutOf) -> Stored:
    """Find the tensors whose slices lie in the files of ranks. If several ranks hold the same slice, the slice of the
    first rank is used; if several stages hold the same tensor, the tensor of the first stage is used.

    Args:
        where: the directory, with which error messages begin.
        files: each rank with the contents of its file; iterated over once.
        layout_of: the layout of each tensor.

    Raises:
        CheckpointError: a slice is missing or has another shape than the layout gives it.
    """
    found: dict[str, _Found] = {}
    for rank, contents in files:
        for name, (spec, location) in contents.items():
            if name not in found:
                layout = layout_of(rank, name, spec.shape)
                found[name] = _Found(spec.code, layout, rank // layout.num_devices, {})
            found[name].add(rank, name, spec, location)
    for name, tensor in found.items():
        tensor.require_all(where, name)
    return {name: tensor.stored() for name, tensor in found.items()}


@dataclass(frozen=True)
class _Found:
    """A tensor whose slices are being collected from the files of ranks."""

    code: str
    layout: Layout
    stage: int
    locations: dict[Index, Location]

    def add(self, rank: int, name: str, spec: Spec, location: Location) -> None:
        stage, local = divmod(rank, self.layout.num_devices)
        if stage != self.stage:
            return
        if (spec.code, spec.shape) != (self.code, self.layout.slice_shape):
            wanted = f"{self.code} {list(self.layout.slice_shape)}, a slice of {list(self.layout.shape)}"
            raise CheckpointError(
                f"{location.path}: rank {rank} has {name} as {spec.code} {list(spec.shape)}; must be {wanted}; use the"
                " plan it was saved with"
            )
        self.locations.setdefault(indices(self.layout)[local], location)

    def stored(self) -> StoredTensor:
        return StoredTensor(Spec(self.code, self.layout.shape), self.layout.slice_shape, self.locations)

    def require_all(self, where: str, name: str) -> None:
        if len(self.locations) < math.prod(self.layout.counts):
            missing = next(index for index in indices(self.layout) if index not in self.locations)
            first = self.stage * self.layout.num_devices
            ranks = [first + local for local, index in enumerate(indices(self.layout)) if index == missing]
            some = ", ".join(map(str, ranks[:5])) + (", ..." if len(ranks) > 5 else "")
            rule = "one file with each slice is needed"
            raise CheckpointError(
                f"{where}: the slice of {name} that rank {some} should have is in no file; {rule}; add the file of rank"
                f" {ranks[0]}"
            )


def rank_tensors(plan: Plan, tensors: dict[str, tuple[int, ...]]) -> Iterator[tuple[int, dict[str, Slices]]]:
    """Yield each rank and the slices of the given tensors that it owns; a rank that owns none is left out.

    Args:
        plan: says which rank owns what.
        tensors: shapes by name.
    """
    layouts = {name: layout_in(plan, name, shape) for name, shape in tensors.items()}
    stages = {name: plan.parameter_stages.get(parameter_of(name), (0,))[0] for name in tensors}
    for stage in range(plan.mesh.num_stages):
        here = [name for name in tensors if stages[name] == stage]
        for local, rank in enumerate(plan.mesh.stage_ranks(stage)):
            own = {name: owned(layouts[name])[local] for name in here if local in owned(layouts[name])}
            if own:
                yield rank, own


def rank_file(group: str, rank: int) -> str:
    """Name of the file of a rank's tensors."""
    return f"{group}-rank-{rank:05d}.safetensors"


def read_ranks(where: str, paths: dict[int, Path], plan: Plan) -> Stored:
    """Find the tensors of one group of a sharded checkpoint in the files of its ranks."""
    indexed = ((rank, safetensors_file.index(path)) for rank, path in sorted(paths.items()))
    tensors = gather(where, indexed, lambda _, name, shape: layout_in(plan, name, shape))
    order = {name: i for i, name in enumerate(plan.layouts)}
    return dict(sorted(tensors.items(), key=lambda item: order.get(parameter_of(item[0]), len(order))))


@functools.lru_cache(1024)  # many parameters of a model share a few different layouts
def indices(layout: Layout) -> tuple[Index, ...]:
    """The index of the slice that each device of a stage holds."""
    return tuple(layout.index(rank) for rank in range(layout.num_devices))


@functools.lru_cache(1024)
def owned(layout: Layout) -> dict[int, Slices]:
    """The slices to store, by the number of the device within its stage that stores them."""
    return {rank: layout.slices(rank) for rank in layout.owners().values()}
