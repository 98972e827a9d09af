"""Tensors that lie in slices over the files of many ranks, read and written one at a time. No mindspore import.

    GROUP-rank-00007.safetensors        the slices that rank 7 owns: of every slice, the first rank that holds it; a
    rank that owns none has no file

The files' slices are thus those of `Plan.of(config.yaml)`, each stored once: together they have the bytes of the whole
checkpoint.
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
from pangu_ms.checkpoint.safetensors_file import Contents, Place, Spec
from pangu_ms.core.errors import CheckpointError
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import Plan, parameter_of

Index = tuple[int, ...]
Slices = tuple[slice, ...]
LayoutOf = Callable[[int, str, tuple[int, ...]], Layout]
"""From a rank, the name of a tensor in its file, and the shape that it has there."""

RANK_FILE = re.compile(r"(.+)-rank-(\d{5,})\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, whole or in slices of equal size."""

    spec: Spec
    """Of the whole tensor."""
    slice_shape: tuple[int, ...]
    places: dict[Index, Place]
    """Of every slice, by its number along each dimension."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self.spec.shape

    @property
    def all(self) -> Slices:
        """To `read` the whole tensor with."""
        return tuple(slice(0, size) for size in self.shape)

    def values(self) -> np.ndarray:
        """The whole tensor; bfloat16 becomes float32."""
        return self.spec.values(self.read(self.all))

    def read(self, wanted: Slices) -> np.ndarray:
        """A part of the tensor in `spec.dtype`; no other part is read from the disk."""
        part = np.empty([s.stop - s.start for s in wanted], self.spec.dtype)
        if part.size == 0:
            return part
        for index in itertools.product(
            *(range(s.start // n, -(-s.stop // n)) for s, n in zip(wanted, self.slice_shape))
        ):
            begins = [i * n for i, n in zip(index, self.slice_shape)]
            both = [(max(s.start, b), min(s.stop, b + n)) for s, b, n in zip(wanted, begins, self.slice_shape)]
            into = tuple(slice(low - s.start, high - s.start) for (low, high), s in zip(both, wanted))
            source = tuple(slice(low - b, high - b) for (low, high), b in zip(both, begins))
            part[into] = self.places[index].map(Spec(self.spec.code, self.slice_shape))[source]
        return part


Stored = dict[str, StoredTensor]


def whole(spec: Spec, place: Place) -> StoredTensor:
    """A tensor that one file holds."""
    return StoredTensor(spec, spec.shape, {(0,) * len(spec.shape): place})


def layout_in(plan: Plan, name: str, shape: tuple[int, ...]) -> Layout:
    """Where a tensor of a checkpoint lies: moments as their parameter, what belongs to no parameter whole (`shape`) on
    every device."""
    return plan.layouts.get(parameter_of(name)) or replicated(shape, plan.mesh.axes)


def replicated(shape: tuple[int, ...], axes: tuple[tuple[str, int], ...]) -> Layout:
    """A tensor that every device has whole."""
    return Layout(shape, axes, ((),) * len(shape))


def gather(where: str, files: Iterable[tuple[int, Contents]], layout_of: LayoutOf) -> Stored:
    """The tensors whose slices are in the files of ranks. Of equal slices the first is taken, and of the stages that
    hold a tensor the first.

    Args:
        where: begins the messages: the directory.
        files: each rank with what its file holds; read once, one after the other.

    Raises:
        CheckpointError: a slice is missing or has another shape than the layout gives it.
    """
    found: dict[str, _Found] = {}
    for rank, contents in files:
        for name, (spec, place) in contents.items():
            if name not in found:
                layout = layout_of(rank, name, spec.shape)
                found[name] = _Found(spec.code, layout, rank // layout.num_devices, {})
            found[name].add(rank, name, spec, place)
    for name, tensor in found.items():
        tensor.require_all(where, name)
    return {
        name: StoredTensor(Spec(f.code, f.layout.shape), f.layout.slice_shape, f.places) for name, f in found.items()
    }


@dataclass(frozen=True)
class _Found:
    """What is known of a tensor while files are gone through."""

    code: str
    layout: Layout
    stage: int
    places: dict[Index, Place]

    def add(self, rank: int, name: str, spec: Spec, place: Place) -> None:
        stage, local = divmod(rank, self.layout.num_devices)
        if stage != self.stage:
            return
        if (spec.code, spec.shape) != (self.code, self.layout.slice_shape):
            wanted = f"{self.code} {list(self.layout.slice_shape)}, a slice of {list(self.layout.shape)}"
            raise CheckpointError(
                f"{place.path}: rank {rank} has {name} as {spec.code} {list(spec.shape)}; must be {wanted}; use the"
                " plan it was saved with"
            )
        self.places.setdefault(indices(self.layout)[local], place)

    def require_all(self, where: str, name: str) -> None:
        if len(self.places) < math.prod(self.layout.counts):
            missing = next(index for index in indices(self.layout) if index not in self.places)
            first = self.stage * self.layout.num_devices
            ranks = [first + local for local, index in enumerate(indices(self.layout)) if index == missing]
            some = ", ".join(map(str, ranks[:5])) + (", ..." if len(ranks) > 5 else "")
            rule = "one file with each slice is needed"
            raise CheckpointError(
                f"{where}: the slice of {name} that rank {some} should have is in no file; {rule}; add the file of rank"
                f" {ranks[0]}"
            )


def rank_tensors(plan: Plan, tensors: dict[str, tuple[int, ...]]) -> Iterator[tuple[int, dict[str, Slices]]]:
    """For each rank the slices that it owns of the tensors (names with shapes); ranks that own none are left out."""
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
    """The tensors of one group of a sharded checkpoint, from the files of its ranks."""
    indexed = ((rank, safetensors_file.index(path)) for rank, path in sorted(paths.items()))
    tensors = gather(where, indexed, lambda _, name, shape: layout_in(plan, name, shape))
    order = {name: i for i, name in enumerate(plan.layouts)}
    return dict(sorted(tensors.items(), key=lambda item: order.get(parameter_of(item[0]), len(order))))


@functools.lru_cache(1024)  # a model has few different layouts, and many parameters
def indices(layout: Layout) -> tuple[Index, ...]:
    """Which slice each device of a stage holds."""
    return tuple(layout.index(rank) for rank in range(layout.num_devices))


@functools.lru_cache(1024)
def owned(layout: Layout) -> dict[int, Slices]:
    """The slices that are stored, by the device of the stage that stores them."""
    return {rank: layout.slices(rank) for rank in layout.owners().values()}
