"""Cores of ranks: parts of NUMA nodes, of made-up machines."""

import os

from run.binding import cores_of, numa_nodes, parse_cores


def test_each_rank_has_its_part_of_one_node():
    nodes = [list(range(0, 48)), list(range(48, 96)), list(range(96, 144)), list(range(144, 192))]  # an Atlas 800's four nodes, eight devices
    parts = [cores_of(i, 8, nodes) for i in range(8)]
    assert [part[0] for part in parts] == [0, 24, 48, 72, 96, 120, 144, 168] and all(len(part) == 24 for part in parts)
    assert sorted(core for part in parts for core in part) == list(range(192))


def test_uneven_machines():
    assert [cores_of(i, 3, [[0, 1, 2, 3], [4, 5, 6, 7]]) for i in range(3)] == [[0, 1], [2, 3], [4, 5, 6, 7]]
    assert [cores_of(i, 4, [[0, 1]]) for i in range(4)] == [[0], [0], [1], [1]]  # more ranks than cores share them
    assert cores_of(0, 1, [[0, 1], [2, 3]]) == [0, 1]


def test_nodes_are_read_in_order_and_only_what_this_process_may_use(tmp_path):
    allowed = sorted(os.sched_getaffinity(0))
    for number, text in (("10", "1000-1003"), ("2", f"{allowed[0]}"), ("0", "999")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}/cpulist").write_text(text + "\n")
    assert numa_nodes(tmp_path) == [[allowed[0]]]
    assert numa_nodes(tmp_path / "none") == [allowed]
    assert parse_cores("0-2,5,7-8\n") == [0, 1, 2, 5, 7, 8] and parse_cores("") == []
