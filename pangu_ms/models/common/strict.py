"""Strict comparison of tensors with what a configuration expects. No mindspore import."""

from collections.abc import Mapping
from typing import Any

from pangu_ms.core.errors import CheckpointError

ROUTING_TABLE = ".routing"
"""End of the names of PanGu-Sigma's tables."""
_SHOWN, _LONGEST = 5, 200  # names listed of each kind, and characters of one: a damaged file has any


class Mismatch(CheckpointError):
    """Names or shapes are not those of the configuration."""


def check_names_and_shapes(where: str, tensors: Mapping[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    """Require exactly the expected names and shapes.

    Args:
        where: begins the message: the file or directory.
        tensors: arrays by name, or whatever has a shape.
        expected: shapes by name.

    Raises:
        CheckpointError: one line that lists missing, unexpected and misshaped tensors.
    """
    _require_tables(where, tensors, expected)
    both = {name: (tuple(tensors[name].shape), tuple(shape)) for name, shape in expected.items() if name in tensors}
    wrong = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {found} instead of {shape}" for name, (found, shape) in both.items() if found != shape
        ],
    }
    found = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in wrong.items() if names)
    if found:
        raise Mismatch(
            f"{where}: {found}; names and shapes must be exactly those of the configuration; use the one that belongs"
            " to these weights"
        )


def _require_tables(where: str, tensors: Mapping[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    """Name routing tables by what they are: no other file can stand in for one."""
    for name, shape in expected.items():
        if not name.endswith(ROUTING_TABLE) or (name in tensors and tuple(tensors[name].shape) == shape):
            continue
        if name not in tensors:
            found = f"holds no routing table {name}, so that nothing says which expert a token goes to"
        else:
            domains, vocabulary = tensors[name].shape[0], tensors[name].shape[-1]
            found = (
                f"routing table {name} is of {domains} domains and a vocabulary of {vocabulary}, the model has"
                f" {shape[0]} and {shape[-1]}"
            )
        raise CheckpointError(
            f"{where}: {found}; weights work only with the table that they were trained with; use a checkpoint that has"
            " it"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"{name:.{_LONGEST}}" for name in names[:_SHOWN])
    return shown + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
