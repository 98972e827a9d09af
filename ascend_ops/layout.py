"""Layouts of operators on many devices.

Products, tables and custom kernels say what their operands' dimensions are called (`placed`, `custom.kernel`); a plan says which axes of the devices cut
each name (`lay_out`). From there layouts spread over the rest of the graph by MindSpore's sharding propagation. Without a plan nothing here does anything.
"""

import functools
import math
from dataclasses import dataclass

from mindspore import Layout, ops
from mindspore.ops import Primitive, constexpr

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Devices:
    """What a plan says to operators."""

    axes: tuple[tuple[str, int], ...]
    """(name, size) of the matrix of devices, slowest first: (("dp", 16), ("mp", 8))."""
    rules: dict[str, tuple[str, ...]]
    """The axes that cut each named dimension, such as {"batch": ("dp",), "heads": ("mp",), "embed": ()}."""

    def parts(self, name: str | None) -> int:
        """Number of parts of a dimension; None is a whole one."""
        sizes = dict(self.axes)
        return 1 if name is None else math.prod(sizes.get(axis, 1) for axis in self.rules[name])

    def strategy(self, operands: tuple[Axes, ...]) -> tuple[tuple[int, ...], ...]:
        """MindSpore's strategy of an operator: for each operand the number of parts of each dimension."""
        return tuple(tuple(self.parts(name) for name in axes) for axes in operands)

    def layouts(self, operands: tuple[Axes, ...]) -> tuple[Layout, ...]:
        """The same as MindSpore's Layouts, which custom operators take in place of a strategy."""
        names, sizes = zip(*self.axes, strict=True)
        layout = Layout(sizes, names)
        return tuple(layout(*(self._cutting(name) for name in axes)) for axes in operands)

    def _cutting(self, name: str | None) -> str | tuple[str, ...]:
        cutting = () if name is None else tuple(axis for axis in self.rules[name] if dict(self.axes).get(axis, 1) > 1)
        return "None" if not cutting else cutting[0] if len(cutting) == 1 else cutting


_devices: Devices | None = None  # of the process: a graph is compiled in several threads


def lay_out(devices: Devices | None) -> None:
    """From now on cells are built and graphs compiled for many devices, or with None for one."""
    global _devices
    _devices = devices


def devices() -> Devices | None:
    """The plan in force."""
    return _devices


def is_laid_out() -> bool:
    """Whether a plan is in force."""
    return _devices is not None


@functools.cache
def _primitive(kind: str, strategy: tuple | None, attributes: tuple[str, ...]) -> Primitive:
    primitive = getattr(ops, kind)(**dict.fromkeys(attributes, True))
    return primitive if strategy is None else primitive.shard(strategy)


@constexpr
def placed(kind, operands, *attributes):
    """Inside a graph: MindSpore's primitive `kind` as a constant, laid out by the plan where there is one and every operand's axes are known.

    Args:
        kind: name in mindspore.ops.
        operands: the axes of each operand.
        attributes: those that are true, such as "transpose_b".

    Raises:
        KeyError: the plan does not know a name.
    """
    known = is_laid_out() and all(axes is not None for axes in operands)
    return _primitive(kind, _devices.strategy(operands) if known else None, attributes)


@constexpr
def laid_out():
    """`is_laid_out`, inside a graph."""
    return is_laid_out()
