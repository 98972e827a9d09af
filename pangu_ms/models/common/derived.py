"""Models that are made of the parameters of others, described without the values. No mindspore import."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pangu_ms.models.common.config import ModelConfig, ParameterSpec
from pangu_ms.models.common.stacks import COLLECTIONS, member_name


@dataclass(frozen=True, eq=False)
class Copy:
    """A parameter that is a copy of one of another model."""

    name: str
    """Name of that parameter. A member of a stack is a parameter of its own here, see stacks.py."""
    rows: np.ndarray | None = None
    """int64: for each row of the copy the row that it is a copy of, or -1 for a row with initial values; None copies
    all rows."""
    donor: bool = False
    """Whether that parameter is of the donor, a second model, and not of the first one."""


@dataclass(frozen=True, eq=False)
class Derived:
    """A model whose parameters come from other models."""

    config: ModelConfig
    parameters: dict[str, Copy | np.ndarray]
    """Where the values of each parameter come from, or the values themselves, in the order of the model. Each member of
    a stack is a parameter of its own."""


def single_parameters(config: ModelConfig) -> Iterator[tuple[str, str, int | None, ParameterSpec]]:
    """Every parameter in the model's order, with each member of a stack by itself: its name; the name of the parameter
    or stack in the model; the index in the stack (None if it is none); and the description of the single parameter."""
    sizes = config.axis_sizes()
    for name, spec in config.parameters().items():
        if spec.axes[0] not in COLLECTIONS:
            yield name, name, None, spec
            continue
        one = dataclasses.replace(spec, axes=spec.axes[1:], lazy=False)
        for index in range(sizes[spec.axes[0]]):
            yield member_name(name, index), name, index, one
