"""Collectives in a compiled graph, read from MindSpore's text form of it. No mindspore import."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_KINDS = "AllReduce|AllGather|ReduceScatter|AlltoAllV|AlltoAll|AllToAll|NeighborExchange|Broadcast|Send|Receive"
_CALL = re.compile(rf"= (?:\w+(?:::\w+)*::)?(?:PrimFunc_)?({_KINDS})\(.*?\bgroup: \"([^\"]*)\"")
_RANKS = re.compile(r"(?:group_rank_ids|rank_list): \(([^)]*)\)")
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
    """MindSpore's name of its group."""
    group_size: int
    """Ranks that take part: 2 of a Send or Receive."""
    op: str
    """sum, max or empty."""
    bytes: int
    """Of the larger of what goes in and what comes out on one rank."""
    parameter: str
    """The parameter whose gradient or slice it is, or empty."""
    scope: str
    """Where it stands in the model."""


def collectives(lines: Iterable[str], world: int) -> Iterator[Collective]:
    """The collectives of a graph, in its order.

    Args:
        lines: of MindSpore's validate.ir: an operation, its types, its scope.
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
            if found.group_size > 1:  # MindSpore leaves some over one rank, which move nothing
                yield found
            call = ""


def _collective(call: str, types: str, scope: str, world: int) -> Collective:
    found = _CALL.search(call)
    assert found, "the caller has seen it"
    kind, group = found.groups()
    ranks, op, parameter = _RANKS.search(call), re.search(r"\bop: \"(\w+)\"", call), _PARAMETER.search(call)
    if kind in ("Send", "Receive"):
        size = 2
    elif group == WORLD:
        size = world
    else:
        size = len([r for r in ranks[1].split(",") if r.strip()]) if ranks else int(group.split("-")[0])
    return Collective(kind, group, size, op[1] if op else "", _largest(types), parameter[1] if parameter else "", scope)


def _largest(types: str) -> int:
    """Bytes of the largest tensor in a line of types."""
    found = [
        _BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n.strip())
        for dtype, shape in _TYPES.findall(types)
    ]
    return max(found, default=0)


def totals(found: Iterable[Collective]) -> list[tuple[str, int, int, int]]:
    """(kind, group size, number, bytes) for each kind and size of group, the most bytes first."""
    numbers: Counter[tuple[str, int]] = Counter()
    sizes: Counter[tuple[str, int]] = Counter()
    for one in found:
        numbers[one.kind, one.group_size] += 1
        sizes[one.kind, one.group_size] += one.bytes
    return sorted(
        ((kind, size, number, sizes[kind, size]) for (kind, size), number in numbers.items()),
        key=lambda row: (-row[3], row),
    )
