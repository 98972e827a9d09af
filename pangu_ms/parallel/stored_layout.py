"""Converts a parameter's layout to the numbers of MindSpore's strategy files, and back. No mindspore import.

The files have no axis names, no shapes in their protobuf form, and omit axes of size 1. The JSON form writes a
dimension that several axes shard as several dimensions, which MindSpore's own tools cannot load; such layouts are
neither written to JSON nor read from it here.
"""

import dataclasses
import math
from dataclasses import dataclass

from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.mesh import Mesh
from pangu_ms.parallel.strategy_wire import LayoutItem

Axes = tuple[tuple[str, int], ...]
_MAX_DIMS, _MAX_DEVICES = 32, 1 << 20
"""Limits of what a file may describe; a damaged or malicious one could name more ranks than the memory holds."""


@dataclass(frozen=True)
class StoredLayout:
    """The layout of one tensor as a file describes it."""

    pattern: Layout
    """The layout, with a placeholder shape that the number of slices of every dimension divides."""
    shape: tuple[int, ...] | None
    """The shape of the whole tensor, if the file holds it."""

    @classmethod
    def of(cls, item: LayoutItem, mesh: Mesh | None = None) -> "StoredLayout":
        """The layout in a file's item. The axes have the mesh's names if sizes agree, otherwise d0, d1, ...

        Raises:
            PlanError: the numbers contradict each other, or have a form that is not supported.
        """
        if item.field or item.param_split_shape or item.indices_offset:
            raise PlanError(
                "field, param_split_shape or indices_offset: tensors cut into unequal parts are not supported; must be"
                " 0 and empty"
            )
        sizes = len(item.dev_matrix), len(item.tensor_map)
        if max(sizes) > _MAX_DIMS or math.prod(item.dev_matrix) > _MAX_DEVICES:
            raise PlanError(
                f"dev_matrix has {sizes[0]:,} numbers, tensor_map {sizes[1]:,}; must be at most {_MAX_DIMS} each, and"
                f" at most {_MAX_DEVICES:,} devices; save the strategy again"
            )
        axes = _named_axes(item.dev_matrix, mesh)
        dims = tuple(_dim_axes(dim, axes) for dim in item.tensor_map)
        used = [name for dim in dims for name in dim]
        if len(set(used)) < len(used):
            raise PlanError(f"tensor_map {item.tensor_map}: an axis cuts two dimensions; must cut one")
        axes, optimizer_axes = _optimizer_axes(item, axes, used)
        stand_in = (math.prod(item.dev_matrix),) * len(dims)
        shape = tuple(item.tensor_shape) if item.tensor_shape is not None else None
        stored = cls(Layout(stand_in, axes, dims, optimizer_axes), shape)
        stored._check_shape()
        return stored

    def _check_shape(self) -> None:
        if self.shape is not None:
            try:
                self.whole()
            except PlanError as error:
                raise PlanError(
                    f"tensor_shape: {error}; JSON cannot tell that several axes cut one dimension: save such a strategy"
                    " as .ckpt"
                ) from None

    def whole(self, shape: tuple[int, ...] | None = None) -> Layout:
        """The layout of a tensor of this whole shape; by default the file's.

        Raises:
            PlanError: no shape is known, the file holds another shape, or the shape does not fit.
        """
        shape = shape if shape is not None else self.shape
        if shape is None:
            raise PlanError(
                "protobuf files hold no shapes; give that of the tensor or of its slice, or save the strategy as .json"
            )
        if len(shape) != len(self.pattern.dims) or self.shape not in (None, shape):
            found = f"of shape {list(self.shape)}" if self.shape else f"of {len(self.pattern.dims)} dimensions"
            raise PlanError(
                f"a tensor {found}; must be {list(shape)}; use the strategy file of this model, in protobuf form if"
                " several axes cut a dimension"
            )
        return dataclasses.replace(self.pattern, shape=shape)

    def of_slice(self, slice_shape: tuple[int, ...]) -> Layout:
        """The layout of a tensor of which one device holds a slice of this shape.

        Raises:
            PlanError: see `whole`.
        """
        if len(slice_shape) != len(self.pattern.dims):
            return self.whole(slice_shape)
        return self.whole(tuple(size * count for size, count in zip(slice_shape, self.pattern.counts)))


def layout_item(layout: Layout, with_shape: bool) -> LayoutItem:
    """A layout in MindSpore's numbers, without axes of size 1. The group of devices over which the optimizer shards is
    (step, size), with size -1 for all replicas.

    Raises:
        PlanError: several axes shard one dimension and `with_shape` is set, or the optimizer's axes are not the
            fastest-varying axes of the replicas.
    """
    axes = _kept_axes(layout.axes)
    kept = {name for name, _ in axes}
    dims = tuple(tuple(name for name in dim if name in kept) for dim in layout.dims)
    if with_shape and any(len(dim) > 1 for dim in dims):
        raise PlanError(
            "several axes cut one dimension, which JSON files cannot tell; use another suffix, such as .ckpt"
        )
    optimizer = tuple(name for name in layout.optimizer_axes if name in kept)
    free = _free_axes(axes, [name for dim in dims for name in dim])
    if free[len(free) - len(optimizer) :] != optimizer:
        raise PlanError(
            f"optimizer axes {optimizer} are not the fastest of the replicas' {free}; must be, for MindSpore"
        )
    tensor_map = [list(dim) if isinstance(dim, tuple) else dim for dim in Layout(layout.shape, axes, dims).tensor_map]
    size = 0 if not optimizer else -1 if optimizer == free else math.prod(dict(axes)[name] for name in optimizer)
    return LayoutItem(
        [n for _, n in axes],
        tensor_map,
        0,
        _step(axes, free) if optimizer else 0,
        size,
        list(layout.shape) if with_shape else None,
    )


def _kept_axes(axes: Axes) -> Axes:
    """The axes that a file contains: those of more than one device; if there are none, the last axis."""
    return tuple((name, size) for name, size in axes if size > 1) or axes[-1:]


def _named_axes(matrix: list[int], mesh: Mesh | None) -> Axes:
    if mesh is not None:
        for axes in (mesh.axes, _kept_axes(mesh.axes)):
            if [size for _, size in axes] == matrix:
                return axes
    return tuple((f"d{i}", size) for i, size in enumerate(matrix))


def _dim_axes(dim: int | list[int], axes: Axes) -> tuple[str, ...]:
    numbers = [number for number in (dim if isinstance(dim, list) else [dim]) if number != -1]
    if wrong := [number for number in numbers if not 0 <= number < len(axes)]:
        raise PlanError(
            f"tensor_map has {wrong[0]}; must be -1 or an axis of dev_matrix {[size for _, size in axes]}, counted from"
            " the last, which is 0"
        )
    return tuple(axes[-1 - number][0] for number in numbers)


def _free_axes(axes: Axes, used: list[str]) -> tuple[str, ...]:
    return tuple(name for name, size in axes if name not in used and size > 1)


def _step(axes: Axes, free: tuple[str, ...]) -> int:
    """Rank distance of neighbours in the optimizer's group: the product of the axes after the group's fastest axis."""
    names = [name for name, _ in axes]
    return math.prod(size for _, size in axes[names.index(free[-1]) + 1 :])


def _optimizer_axes(item: LayoutItem, axes: Axes, used: list[str]) -> tuple[Axes, tuple[str, ...]]:
    """The axes over which the optimizer shards: the fastest-varying of the axes that shard no dimension. If only a part
    of an axis belongs to the group, the returned axes have it split in two."""
    step, left = item.opt_weight_shard_step, item.opt_weight_shard_size
    if step == 0 or left == 0:
        return axes, ()
    free, sizes = _free_axes(axes, used), dict(axes)
    group: list[str] = []
    where = f"opt_weight_shard_step {step}, opt_weight_shard_size {left}"
    if not item.tensor_map or not free or left < -1 or step != _step(axes, free):
        raise PlanError(
            f"{where}: dev_matrix {item.dev_matrix} and tensor_map {item.tensor_map} have no such group; save the"
            " strategy again"
        )
    # The group takes whole axes, the fastest first; of the last one it takes only a part if `left` is smaller.
    left = math.prod(sizes[name] for name in free) if left == -1 else left
    for name in reversed(free):
        if left == 1 or sizes[name] % left and left % sizes[name]:
            break
        if left < sizes[name]:
            split = {name: ((f"{name}.0", sizes[name] // left), (f"{name}.1", left))}
            return tuple(part for axis in axes for part in split.get(axis[0], (axis,))), (f"{name}.1", *group)
        group.insert(0, name)
        left //= sizes[name]
    if left != 1:
        raise PlanError(
            f"{where}: must be a product of axes that cut nothing, the fastest first; dev_matrix is {item.dev_matrix}"
        )
    return axes, tuple(group)
