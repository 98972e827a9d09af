"""Layouts of operators on many devices.

Matrix products, tables and custom kernels name the dimensions of their operands (`placed`, `custom.kernel`); a plan
gives the device axes that shard each name (`lay_out`). MindSpore's sharding propagation extends these layouts to the
rest of the graph. Without a plan this module has no effect.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspore import Layout, ops
from mindspore.ops import Primitive, constexpr

Names = str | tuple[str, ...] | None
"""The name of one dimension. Several names shard it one inside the other; None means not sharded."""
Axes = tuple[Names, ...]
STREAM: Axes = (("batch", "sequence"), "embed")
"""Names of the residual stream as rows [B * S, E], one row for each token. Batch and sequence shard the rows together,
since sharding only the sequence does not shard the rows."""


@dataclass(frozen=True)
class Devices:
    """The part of a plan that operators need."""

    axes: tuple[tuple[str, int], ...]
    """(name, size) of the axes of the device matrix, slowest first: (("dp", 16), ("mp", 8))."""
    rules: dict[str, tuple[str, ...]]
    """The axes that shard each named dimension, such as {"batch": ("dp",), "heads": ("mp",), "embed": ()}."""

    def cutting(self, names: Names) -> tuple[str, ...]:
        """The axes of more than one device that shard a dimension.

        Raises:
            KeyError: the plan does not know a name.
        """
        sizes = dict(self.axes)
        each = () if names is None else (names,) if isinstance(names, str) else names
        return tuple(axis for name in each for axis in self.rules[name] if sizes.get(axis, 1) > 1)

    def parts(self, names: Names) -> int:
        """Number of slices of a dimension."""
        return math.prod(dict(self.axes)[axis] for axis in self.cutting(names))

    def strategy(self, operands: tuple[Axes, ...]) -> tuple[tuple[int, ...], ...]:
        """MindSpore's strategy for an operator: for each operand the number of slices of each dimension."""
        return tuple(tuple(self.parts(name) for name in axes) for axes in operands)

    def layouts(self, operands: tuple[Axes, ...]) -> tuple[Layout, ...]:
        """The sharding of each operand as a MindSpore Layout, which custom operators need instead of a strategy."""
        names, sizes = zip(*self.axes, strict=True)
        layout = Layout(sizes, names)
        dims = [[self.cutting(names) for names in axes] for axes in operands]
        return tuple(layout(*("None" if not cut else cut[0] if len(cut) == 1 else cut for cut in dim)) for dim in dims)


_devices: Devices | None = None  # of the process: a graph is compiled in several threads


def lay_out(devices: Devices | None) -> None:
    """Set the plan for cells that are built and graphs that are compiled from now on; None for a single device."""
    global _devices
    _devices = devices


def devices() -> Devices:
    """The current plan; only call this if `is_laid_out()`."""
    assert _devices is not None
    return _devices


def is_laid_out() -> bool:
    """Whether there is a current plan."""
    return _devices is not None


@functools.cache
def _primitive(kind: str, strategies: tuple, attributes: tuple[str, ...]) -> Primitive:
    """`strategies` is empty, or has the strategy of the inputs, or those of inputs and outputs."""
    primitive = getattr(ops, kind)(**dict.fromkeys(attributes, True))
    return primitive.shard(*strategies) if strategies else primitive


@constexpr
def placed(kind, operands, *attributes):
    """Inside a graph: MindSpore's primitive `kind` as a constant. It has the plan's strategy if there is a plan and the
    axes of every operand are given.

    Args:
        kind: name in mindspore.ops.
        operands: the axes of each operand.
        attributes: names of the attributes that are True, such as "transpose_b".

    Raises:
        KeyError: the plan does not know a name.
    """
    known = is_laid_out() and all(axes is not None for axes in operands)
    return _primitive(kind, (_devices.strategy(operands),) if known else (), attributes)


def _rows(axes: Axes) -> Names:
    """Names by which the rows of a product with a weight are sharded. If the weight is not sharded, a device needs only
    its own rows of the stream; otherwise it needs all rows of its batch."""
    return STREAM[0] if all(devices().parts(axis) == 1 for axis in axes) else ("batch",)


@constexpr
def placed_product(axes):
    """`placed` MatMul of rows and the transpose of a weight with these axes. If its results are partial sums of the
    stream, each device gets its own rows of the sum (a reduce-scatter)."""
    if not is_laid_out() or axes is None:
        return _primitive("MatMul", (), ("transpose_b",))
    strategies = (_devices.strategy(((_rows(axes), axes[1]), axes)),)
    if axes[0] == "embed" and _devices.parts("sequence") > 1 and _devices.parts(axes[1]) > 1:
        strategies += (_devices.strategy((STREAM,)),)
    return _primitive("MatMul", strategies, ("transpose_b",))


@constexpr
def placed_bias(axes):
    """`placed` Add of a result of `placed_product` and a bias."""
    if not is_laid_out() or axes is None:
        return _primitive("Add", (), ())
    rows = STREAM[0] if axes[0] == "embed" else _rows(axes)
    return _primitive("Add", (_devices.strategy(((rows, axes[0]), axes[:1])),), ())


def _first(*values):
    return values[0]


def on_own_slices(
    function: Callable,
    operands: tuple[Axes, ...],
    result: Axes | None = None,
    result_shape: Callable[..., Sequence[int]] = _first,
) -> Primitive:
    """A function as one operator, which every device computes on its own slices of the operands, with collectives of
    its own if it needs any. MindSpore replaces the operator by the function after it has sharded the graph, and before
    it derives the backward pass.

    Args:
        function: takes the operands; the result has the dtype of the first one.
        operands: the axes of each operand.
        result: the axes of the result; None for those of the first operand.
        result_shape: gives the shape of the whole result for the shapes of the whole operands.
    """
    layouts = devices().layouts(operands)
    operator = ops.Morph(function, result_shape, _first).add_prim_attr("self_define_shard", True)
    return operator.shard(layouts, layouts[:1] if result is None else devices().layouts((result,)))


@constexpr
def laid_out():
    """The value of `is_laid_out()` as a constant, for use inside a graph."""
    return is_laid_out()


@constexpr
def placed_on_stream(kind, rank, num_operands, *attributes):
    """`placed` operator on the residual stream, as rows (rank 2) or [B, S, E]."""
    axes = {2: STREAM, 3: ("batch", None, "embed")}.get(rank)
    known = is_laid_out() and axes is not None
    return _primitive(kind, (_devices.strategy((axes,) * num_operands),) if known else (), attributes)


@constexpr
def _sequence_is_sharded():
    return is_laid_out() and _devices.parts("sequence") > 1


def as_stream(x):
    """Inside a graph: [B, S, E] as rows [B * S, E] if a plan shards the sequence, otherwise unchanged.

    Rows are used only in that case, because at the ends of a pipeline stage MindSpore sends and receives a tensor from
    a reshape whole, not split over the replicas.
    """
    return ops.reshape(x, (-1, x.shape[-1])) if _sequence_is_sharded() and x.ndim == 3 else x


def as_before(rows, x):
    """Inside a graph: the inverse of `as_stream(x)`."""
    return ops.reshape(rows, x.shape) if _sequence_is_sharded() and x.ndim == 3 else rows


def as_rows(x):
    """Inside a graph: [B, S, E] as rows [B * S, E] if there is a plan, otherwise unchanged. With rows MindSpore does
    not have to guess layouts between two products."""
    return ops.reshape(x, (-1, x.shape[-1])) if laid_out() and x.ndim == 3 else x


def from_rows(rows, x):
    """Inside a graph: the inverse of `as_rows(x)`."""
    return ops.reshape(rows, x.shape) if laid_out() and x.ndim == 3 else rows
