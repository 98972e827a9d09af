"""Layouts of operators on many devices.

Products, tables and custom kernels say what their operands' dimensions are called (`placed`, `custom.kernel`); a plan
says which axes of the devices cut each name (`lay_out`). From there layouts spread over the rest of the graph by
MindSpore's sharding propagation. Without a plan nothing here does anything.
"""

import functools
import math
from dataclasses import dataclass

from mindspore import Layout, ops
from mindspore.ops import Primitive, constexpr

Names = str | tuple[str, ...] | None
"""What one dimension is called: several names cut it one inside the other, None is a whole one."""
Axes = tuple[Names, ...]
STREAM: Axes = (("batch", "sequence"), "embed")
"""Of the residual stream as rows, one for each token: batch and sequence are cut together, since no cut of the sequence
alone is one of rows."""


@dataclass(frozen=True)
class Devices:
    """What a plan says to operators."""

    axes: tuple[tuple[str, int], ...]
    """(name, size) of the matrix of devices, slowest first: (("dp", 16), ("mp", 8))."""
    rules: dict[str, tuple[str, ...]]
    """The axes that cut each named dimension, such as {"batch": ("dp",), "heads": ("mp",), "embed": ()}."""

    def cutting(self, names: Names) -> tuple[str, ...]:
        """The axes of more than one device that cut a dimension.

        Raises:
            KeyError: the plan does not know a name.
        """
        sizes = dict(self.axes)
        each = () if names is None else (names,) if isinstance(names, str) else names
        return tuple(axis for name in each for axis in self.rules[name] if sizes.get(axis, 1) > 1)

    def parts(self, names: Names) -> int:
        """Number of parts of a dimension."""
        return math.prod(dict(self.axes)[axis] for axis in self.cutting(names))

    def strategy(self, operands: tuple[Axes, ...]) -> tuple[tuple[int, ...], ...]:
        """MindSpore's strategy of an operator: for each operand the number of parts of each dimension."""
        return tuple(tuple(self.parts(name) for name in axes) for axes in operands)

    def layouts(self, operands: tuple[Axes, ...]) -> tuple[Layout, ...]:
        """The same as MindSpore's Layouts, which custom operators take in place of a strategy."""
        names, sizes = zip(*self.axes, strict=True)
        layout = Layout(sizes, names)
        dims = [[self.cutting(names) for names in axes] for axes in operands]
        return tuple(layout(*("None" if not cut else cut[0] if len(cut) == 1 else cut for cut in dim)) for dim in dims)


_devices: Devices | None = None  # of the process: a graph is compiled in several threads


def lay_out(devices: Devices | None) -> None:
    """From now on cells are built and graphs compiled for many devices, or with None for one."""
    global _devices
    _devices = devices


def devices() -> Devices:
    """The plan in force; there is one where `is_laid_out`."""
    assert _devices is not None
    return _devices


def is_laid_out() -> bool:
    """Whether a plan is in force."""
    return _devices is not None


@functools.cache
def _primitive(kind: str, strategies: tuple, attributes: tuple[str, ...]) -> Primitive:
    """`strategies`: none, that of the inputs, or those of inputs and outputs."""
    primitive = getattr(ops, kind)(**dict.fromkeys(attributes, True))
    return primitive.shard(*strategies) if strategies else primitive


@constexpr
def placed(kind, operands, *attributes):
    """Inside a graph: MindSpore's primitive `kind` as a constant, laid out by the plan where there is one and every
    operand's axes are known.

    Args:
        kind: name in mindspore.ops.
        operands: the axes of each operand.
        attributes: those that are true, such as "transpose_b".

    Raises:
        KeyError: the plan does not know a name.
    """
    known = is_laid_out() and all(axes is not None for axes in operands)
    return _primitive(kind, (_devices.strategy(operands),) if known else (), attributes)


def _rows(axes: Axes) -> Names:
    """How the rows of a product with a weight are cut: one that the devices do not share needs no more rows than the
    device's own of the stream."""
    return STREAM[0] if all(devices().parts(axis) == 1 for axis in axes) else ("batch",)


@constexpr
def placed_product(axes):
    """`placed` MatMul of rows and the transpose of a weight with these axes. Where it adds up parts of the stream, each
    device gets its rows of the sum."""
    if not is_laid_out() or axes is None:
        return _primitive("MatMul", (), ("transpose_b",))
    strategies = (_devices.strategy(((_rows(axes), axes[1]), axes)),)
    if axes[0] == "embed" and _devices.parts("sequence") > 1 and _devices.parts(axes[1]) > 1:
        strategies += (_devices.strategy((STREAM,)),)
    return _primitive("MatMul", strategies, ("transpose_b",))


@constexpr
def placed_bias(axes):
    """`placed` Add of what `placed_product` makes and a bias."""
    if not is_laid_out() or axes is None:
        return _primitive("Add", (), ())
    rows = STREAM[0] if axes[0] == "embed" else _rows(axes)
    return _primitive("Add", (_devices.strategy(((rows, axes[0]), axes[:1])),), ())


@constexpr
def laid_out():
    """`is_laid_out`, inside a graph."""
    return is_laid_out()


@constexpr
def placed_on_stream(kind, rank, num_operands, *attributes):
    """`placed` operator on the residual stream, as rows (rank 2) or [B, S, E]."""
    axes = {2: STREAM, 3: ("batch", None, "embed")}.get(rank)
    known = is_laid_out() and axes is not None
    return _primitive(kind, (_devices.strategy((axes,) * num_operands),) if known else (), attributes)


@constexpr
def _sequence_is_cut():
    return is_laid_out() and _devices.parts("sequence") > 1


def as_stream(x):
    """Inside a graph: [B, S, E] as rows [B * S, E] where a plan cuts the sequence, else as it is.

    Rows only there: at the ends of a pipeline stage MindSpore sends and receives a tensor whole over the replicas if it
    comes from a reshape.
    """
    return ops.reshape(x, (-1, x.shape[-1])) if _sequence_is_cut() and x.ndim == 3 else x


def as_before(rows, x):
    """Inside a graph: undoes `as_stream(x)`."""
    return ops.reshape(rows, x.shape) if _sequence_is_cut() and x.ndim == 3 else rows


def as_rows(x):
    """Inside a graph: [B, S, E] as rows [B * S, E] where a plan is in force, else as it is: between two products
    nothing then has to be guessed."""
    return ops.reshape(x, (-1, x.shape[-1])) if laid_out() and x.ndim == 3 else x


def from_rows(rows, x):
    """Inside a graph: undoes `as_rows(x)`."""
    return ops.reshape(rows, x.shape) if laid_out() and x.ndim == 3 else rows
