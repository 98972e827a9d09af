"""How a family describes its models for GGUF files, which llama.cpp reads. No mindspore import."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pangu_ms.core.errors import CheckpointError


@dataclass(frozen=True)
class GgufModel:
    """A model in the terms of llama.cpp."""

    architecture: str
    """llama.cpp's name of what computes it."""
    fields: dict[str, int | float]
    """Sizes and constants, by key without the architecture in front of it."""
    names: dict[str, str]
    """GGUF's name of each of our parameters."""
    interleaved: dict[str, int] = field(default_factory=dict)
    """Parameters whose rows are reordered within each head, with their number of heads: we rotate row i together with
    row i + D / 2, and this architecture rotates row 2 i with row 2 i + 1."""


Describe = Callable[[Any], GgufModel]
"""Describes a model by its configuration. Raises CheckpointError if llama.cpp computes something else."""


def absent(part: str) -> Describe:
    """The description of a family with a part that llama.cpp lacks: it raises CheckpointError."""

    def describe(config: Any) -> GgufModel:
        raise CheckpointError(
            f"model.family={config.family}: llama.cpp has no {part}, so that it would compute something else; only"
            " models of family pi without series activation and shortcuts can be written for it"
        )

    return describe
