"""Calls the compiled graph of a cell without the work that nn.Cell does before: at every call it sets an attribute of
each cell below and makes a key of the arguments, 1.4 ms for 10 layers and more for more. mindspore is imported by the
first call of a cell."""

from collections.abc import Callable
from typing import Any


def repeated_call(cell: Callable[..., Any]) -> Callable[..., Any]:
    """A function like a cell that was called before, for inputs of the same shapes and dtypes.

    Args:
        cell: what is no cell with a compiled graph on a CPU is returned as it is; other devices were not tried.
    """
    from mindspore import get_context, nn
    from mindspore.common.api import _cell_graph_executor

    if not isinstance(cell, nn.Cell) or get_context("device_target") != "CPU":
        return cell
    # A cell that was computed without a graph has no phase.
    phase, execute = vars(cell).get("current_phase"), _cell_graph_executor._graph_executor
    if not phase or not execute.has_compiled(phase):
        return cell
    return lambda *inputs: execute(inputs, phase)
