"""Names of stacked parameters. No mindspore import.

Experts of a layer, and embedding slots, are one parameter each in a graph, with one index for each member along the
first dimension: `blocks.2.ffn.experts.up.weight` [K, F, E]. Everywhere else each member is a tensor of its own, with
its number in the name: `blocks.2.ffn.experts.17.up.weight` [F, E]. So initial values depend on the member alone,
checkpoints hold each member by itself, and nothing needs a whole stack, which can be larger than a host's memory.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T", bound=Iterable[Any])
"""An array, or what is like one."""
COLLECTIONS = {"expert": "experts", "slot": "slots"}
"""Maps the logical axis of a stack to the part of a name that the member's number follows."""
_PREFIX = rf"(.*\b(?:{'|'.join(COLLECTIONS.values())}))"
_STACK = re.compile(rf"{_PREFIX}\.(?!\d+\.)(.+)")
_MEMBER = re.compile(rf"{_PREFIX}\.(\d+)\.(.+)")


def is_stack(name: str) -> bool:
    """Whether a parameter, or a moment of one, is a stack."""
    return bool(_STACK.fullmatch(name))


def member_name(stack: str, index: int) -> str:
    """The name of one member of a stack."""
    match = _STACK.fullmatch(stack)
    assert match, stack
    return f"{match[1]}.{index}.{match[2]}"


def stack_of(member: str) -> tuple[str, int] | None:
    """The stack's name and the index of a member; None for any other name."""
    match = _MEMBER.fullmatch(member)
    return (f"{match[1]}.{match[3]}", int(match[2])) if match else None


def members(tensors: Mapping[str, T]) -> Iterator[tuple[str, T]]:
    """Name and array of every tensor, with each stack taken apart into views of its members."""
    for name, array in tensors.items():
        if is_stack(name):
            yield from ((member_name(name, i), member) for i, member in enumerate(array))
        else:
            yield name, array


def stored_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint: of each stack those of its members."""
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if is_stack(name):
            stored |= {member_name(name, i): shape[1:] for i in range(shape[0])}
        else:
            stored[name] = shape
    return stored


def join(
    tensors: dict[str, T], shapes: Mapping[str, tuple[int, ...]], stack: Callable[[list[Any]], Any] = np.stack
) -> dict[str, T]:
    """The inverse of `members`: the tensors of `shapes`, in its order, each stack made of its members where `tensors`
    lacks the stack itself. Empties `tensors` as it goes, so that members and stacks are not all in memory together.

    Args:
        tensors: arrays, or what is like arrays.
        shapes: the names to give; of a stack the number of members, too.
        stack: stacks members along a new first dimension.
    """
    joined = {}
    for name, shape in shapes.items():
        whole = tensors.pop(name, None)
        joined[name] = stack([tensors.pop(member_name(name, i)) for i in range(shape[0])]) if whole is None else whole
    return joined
