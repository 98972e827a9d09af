"""Calls the compiled graph of a cell without the work that nn.Cell does before: at every call it sets an attribute of
each cell below and makes a key of the arguments, 1.4 ms for 10 layers and more for more. mindspore is imported by the
first call of a cell."""

from collections.abc import Callable
from typing import Any


def repeated_call(cell: Callable[..., Any]) -> Callable[..., Any]:
    """A function like a cell that was called before, for inputs of the same shapes and dtypes.

    Args:
        cell: what is no cell with a compiled graph is returned as it is.
    """
    phase = getattr(cell, "current_phase", "")
    if not phase:
        return cell
    from mindspore.common.api import _cell_graph_executor

    execute = _cell_graph_executor._graph_executor
    if not execute.has_compiled(phase):
        return cell
    return lambda *inputs: execute(inputs, phase)
