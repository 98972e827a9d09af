"""How one tensor is sharded over the devices of one stage. No mindspore import."""

import functools
import math
from dataclasses import dataclass

from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.mesh import ravel, unravel


@dataclass(frozen=True)
class Layout:
    """Which slice of a tensor each device of a stage holds.

    Dimension i is sharded over the axes dims[i], of which the first varies slowest. Dimension 0 is then sharded further
    over `optimizer_axes`, as by MindSpore's optimizer parallelism. Devices that differ only along other axes hold equal
    slices.
    """

    shape: tuple[int, ...]
    """The shape of the whole tensor."""
    axes: tuple[tuple[str, int], ...]
    """(name, size) of the device matrix, slowest first, as Mesh.axes."""
    dims: tuple[tuple[str, ...], ...]
    """For each dimension the axes that shard it, the slowest first."""
    optimizer_axes: tuple[str, ...] = ()
    """Axes that shard dimension 0 further, inside the slices that `dims` make."""

    def __post_init__(self) -> None:
        assert len(self.dims) == len(self.shape), "one entry for each dimension"
        named = [name for dim in self.cuts for name in dim]
        assert len(set(named)) == len(named) and set(named) <= set(self._sizes), (
            "an axis cuts one dimension, and is of the mesh"
        )
        for i, (size, count) in enumerate(zip(self.shape, self.counts)):
            if size % count:
                raise PlanError(
                    f"dimension {i} of {list(self.shape)}: {count} devices must divide {size}; use another degree"
                )

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        return dict(self.axes)

    @property
    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """For each dimension all axes that shard it, those of the optimizer included."""
        return tuple(dim + self.optimizer_axes if i == 0 else dim for i, dim in enumerate(self.dims))

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of slices along each dimension."""
        return tuple(math.prod(self._sizes[name] for name in dim) for dim in self.cuts)

    @property
    def matrix(self) -> tuple[int, ...]:
        """Sizes of the device matrix."""
        return tuple(size for _, size in self.axes)

    @property
    def num_devices(self) -> int:
        """Devices of a stage."""
        return math.prod(self.matrix)

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape of what one device holds."""
        return tuple(size // count for size, count in zip(self.shape, self.counts))

    @property
    def slice_size(self) -> int:
        """Values that one device holds."""
        return math.prod(self.slice_shape)

    @property
    def tensor_map(self) -> tuple[int | tuple[int, ...], ...]:
        """MindSpore's form of `dims`: axes counted from the last one, which is 0; -1 for a whole dimension, a tuple for
        several axes."""
        from_right = {name: len(self.axes) - 1 - i for i, (name, _) in enumerate(self.axes)}
        mapped = (tuple(from_right[name] for name in dim) for dim in self.dims)
        return tuple(-1 if not dim else dim[0] if len(dim) == 1 else dim for dim in mapped)

    def index(self, rank: int) -> tuple[int, ...]:
        """The number of the slice along each dimension that a device of the stage (0 to num_devices - 1) holds."""
        at = dict(zip(self._sizes, unravel(rank, self.matrix)))
        return tuple(ravel(tuple(at[n] for n in dim), tuple(self._sizes[n] for n in dim)) for dim in self.cuts)

    def slices(self, rank: int) -> tuple[slice, ...]:
        """The part that a device of the stage holds, as slices to index the whole tensor with."""
        return tuple(slice(i * n, (i + 1) * n) for i, n in zip(self.index(rank), self.slice_shape))

    def owners(self) -> dict[tuple[int, ...], int]:
        """For each slice (see `index`) the first device that holds it."""
        owners: dict[tuple[int, ...], int] = {}
        for rank in range(self.num_devices):
            owners.setdefault(self.index(rank), rank)
        return owners
