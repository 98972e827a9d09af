"""Core binding: each rank gets an equal share of the physical cores of one NUMA node. Ranks fill the nodes in the order
of their devices."""

import os
from collections.abc import Sequence
from pathlib import Path

CORES = "PANGU_CORES"
"""Environment variable with the numbers of the cores that a rank is bound to, such as 0,1; without it a rank may use
all cores."""
SYSTEM = Path("/sys/devices/system")
Node = Sequence[Sequence[int]]
"""The physical cores of a NUMA node, each with the numbers of its hardware threads."""


def numa_nodes(root: Path = SYSTEM) -> list[list[list[int]]]:
    """The physical cores of each NUMA node that this process may use. If the machine shows no nodes, the result is one
    node with all cores."""
    allowed = os.sched_getaffinity(0)
    paths = sorted(root.glob("node/node[0-9]*/cpulist"), key=lambda path: int(path.parent.name[4:]))
    nodes = [allowed & set(parse_cores(path.read_text())) for path in paths]
    return [physical_cores(node, root) for node in nodes if node] or [physical_cores(allowed, root)]


def physical_cores(threads: set[int], root: Path) -> list[list[int]]:
    """Hardware threads grouped by physical core, ordered by the first thread of each group. If the machine does not
    show which threads share a core, each thread is a group."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for thread in sorted(threads):
        siblings = root / f"cpu/cpu{thread}/topology/thread_siblings_list"
        groups.setdefault(tuple(parse_cores(siblings.read_text())) if siblings.exists() else (thread,), []).append(
            thread
        )
    return list(groups.values())


def parse_cores(text: str) -> list[int]:
    """The numbers in a list in the kernel's format, such as "0-3,8"."""
    ranges = [part.split("-") for part in text.strip().split(",") if part]
    return [core for low, *high in ranges for core in range(int(low), int(high[0] if high else low) + 1)]


def cores_of(index: int, count: int, nodes: Sequence[Node]) -> list[int]:
    """Hardware threads of the `index`-th of `count` local ranks: all threads of each of its cores. Ranks share cores if
    there are fewer cores than ranks."""
    node_number = index * len(nodes) // count
    mates = [i for i in range(count) if i * len(nodes) // count == node_number]
    node, position = nodes[node_number], mates.index(index)
    # Whole cores: two ranks on the threads of one core would slow each other down.
    first, last = position * len(node) // len(mates), (position + 1) * len(node) // len(mates)
    return sorted(thread for core in node[first : max(last, first + 1)] for thread in core)
