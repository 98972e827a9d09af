"""Layouts of operators on many devices.

Products and tables say what their operands' dimensions are called (`placed`); a plan says into how many parts each name is cut (`lay_out`). From
there layouts spread over the rest of the graph by MindSpore's sharding propagation. Without a plan nothing here does anything.
"""

import functools
from mindspore import ops
from mindspore.ops import Primitive, constexpr

Axes = tuple[str | None, ...]
_cuts: dict[str, int] | None = None  # of the process: a graph is compiled in several threads


def lay_out(cuts: dict[str, int] | None) -> None:
    """From now on cells are built and graphs compiled for many devices, or with None for one.

    Args:
        cuts: parts that each named dimension is cut into, such as {"batch": 16, "heads": 8}; a name that is missing is an error where it is used.
    """
    global _cuts
    _cuts = cuts


def is_laid_out() -> bool:
    """Whether a plan is in force."""
    return _cuts is not None


def strategy(*operands: Axes) -> tuple[tuple[int, ...], ...]:
    """MindSpore's strategy of an operator: for each operand the number of parts of each dimension; None is a whole one.

    Raises:
        KeyError: the plan does not know a name.
    """
    return tuple(tuple(1 if axis is None else _cuts[axis] for axis in axes) for axes in operands)


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
    """
    known = is_laid_out() and all(axes is not None for axes in operands)
    return _primitive(kind, strategy(*operands) if known else None, attributes)


@constexpr
def laid_out():
    """`is_laid_out`, inside a graph."""
    return is_laid_out()
