"""Which cores a rank keeps to: an equal part of the cores of one NUMA node, nodes filled in the order of the devices."""

import os
from collections.abc import Sequence
from pathlib import Path

NODES = Path("/sys/devices/system/node")


def numa_nodes(root: Path = NODES) -> list[list[int]]:
    """Cores of each NUMA node that this process may use; one node with all of them where the machine tells none."""
    allowed = os.sched_getaffinity(0)
    paths = sorted(root.glob("node[0-9]*/cpulist"), key=lambda path: int(path.parent.name[4:]))
    nodes = [sorted(allowed & set(parse_cores(path.read_text()))) for path in paths]
    return [node for node in nodes if node] or [sorted(allowed)]


def parse_cores(text: str) -> list[int]:
    """Numbers of a kernel's list such as "0-3,8"."""
    ranges = [part.split("-") for part in text.strip().split(",") if part]
    return [core for low, *high in ranges for core in range(int(low), int(high[0] if high else low) + 1)]


def cores_of(index: int, count: int, nodes: Sequence[Sequence[int]]) -> list[int]:
    """Cores of the `index`-th of `count` local ranks; ranks share a core where there are fewer cores than ranks."""
    node_number = index * len(nodes) // count
    mates = [i for i in range(count) if i * len(nodes) // count == node_number]
    node, place = nodes[node_number], mates.index(index)
    first, last = place * len(node) // len(mates), (place + 1) * len(node) // len(mates)
    return list(node[first:last]) or [node[first]]
