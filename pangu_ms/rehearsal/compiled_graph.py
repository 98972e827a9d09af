"""Reads the collectives of a compiled graph from MindSpore's text form of it. No mindspore import."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_KINDS = "AllReduce|AllGather|ReduceScatter|AlltoAllV|AlltoAll|AllToAll|NeighborExchange|Broadcast|Send|Receive"
_CALL = re.compile(rf"= (?:\w+(?:::\w+)*::)?(?:PrimFunc_)?({_KINDS})\(.*?\bgroup: \"([^\"]*)\"")
_TYPES = re.compile(r"<Tensor\[(\w+)\](?:, \(([^)]*)\))?>")
_PARAMETER = re.compile(r"mirror_user_id: \"([^\"]*)\"")
_SCOPE = re.compile(r"# Fullname with scope: \(([^)]*)\)")
_BYTES = {"Float32": 4, "Float16": 2, "BFloat16": 2, "Int32": 4, "Int64": 8, "Bool": 1}
WORLD = "hccl_world_group"


@dataclass(frozen=True)
class Collective:
    """One collective of a rank's graph."""

    kind: str
    """AllReduce, AllGather, ReduceScatter, AlltoAll, Broadcast, Send or Receive."""
    group: str
    """MindSpore's name of the group."""
    group_size: int
    """Number of ranks in the group; 2 for a Send or Receive."""
    op: str
    """sum, max or empty."""
    bytes: int
    """Bytes of the larger of input and output on one rank."""
    parameter: str
    """The parameter whose gradient or slice it communicates, or empty."""
    scope: str
    """Its scope in the model."""


def collectives(lines: Iterable[str], world: int) -> Iterator[Collective]:
    """The collectives of a graph, in the graph's order.

    Args:
        lines: lines of MindSpore's validate.ir; an operation has one line each for its call, its types and its scope.
        world: number of ranks.
    """
    call, types = "", ""
    for line in lines:
        if line.startswith("  %"):
            call, types = (line, "") if _CALL.search(line) else ("", "")
        elif call and not types and line.lstrip().startswith(": ("):
            types = line
        elif call and (scope := _SCOPE.search(line)):
            found = _collective(call, types, scope[1], world)
            if found.group_size > 1:  # MindSpore leaves some collectives over one rank, which communicate nothing
                yield found
            call = ""


def _collective(call: str, types: str, scope: str, world: int) -> Collective:
    found = _CALL.search(call)
    assert found, "the caller has seen it"
    kind, group = found.groups()
    op, parameter = re.search(r"\bop: \"(\w+)\"", call), _PARAMETER.search(call)
    if kind in ("Send", "Receive"):
        size = 2
    elif group == WORLD:
        size = world
    else:
        # Groups are named "<size>-...". The ranks listed for a group that the model created are wrong.
        size = int(group.split("-")[0])
    return Collective(kind, group, size, op[1] if op else "", _largest(types), parameter[1] if parameter else "", scope)


def _largest(types: str) -> int:
    """Bytes of the largest tensor in a line of types."""
    found = [
        _BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n.strip())
        for dtype, shape in _TYPES.findall(types)
    ]
    return max(found, default=0)


def totals(found: Iterable[Collective]) -> list[tuple[str, int, int, int]]:
    """(kind, group size, number of calls, bytes) for each kind and group size, the most bytes first."""
    numbers: Counter[tuple[str, int]] = Counter()
    sizes: Counter[tuple[str, int]] = Counter()
    for one in found:
        numbers[one.kind, one.group_size] += 1
        sizes[one.kind, one.group_size] += one.bytes
    return sorted(
        ((kind, size, number, sizes[kind, size]) for (kind, size), number in numbers.items()),
        key=lambda row: (-row[3], row),
    )
