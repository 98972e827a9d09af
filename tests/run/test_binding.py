"""Cores of ranks: parts of NUMA nodes, of made-up machines."""

import os

import pytest

from pangu_run.job.binding import cores_of, numa_nodes, parse_cores


def single(*threads):
    """A node whose cores have one thread each."""
    return [[thread] for thread in threads]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Make /sys/devices/system of a machine that this process may use all of."""

    def make(nodes, siblings=()):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
        files = {f"node/node{number}/cpulist": text for number, text in nodes.items()}
        files |= {
            f"cpu/cpu{thread}/topology/thread_siblings_list": text for text in siblings for thread in parse_cores(text)
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text(text + "\n")
        return tmp_path

    return make


def test_each_rank_has_its_part_of_one_node():
    nodes = [single(*range(low, low + 48)) for low in (0, 48, 96, 144)]  # an Atlas 800's four nodes, eight devices
    parts = [cores_of(i, 8, nodes) for i in range(8)]
    assert [part[0] for part in parts] == [0, 24, 48, 72, 96, 120, 144, 168] and all(len(part) == 24 for part in parts)
    assert sorted(core for part in parts for core in part) == list(range(192))


def test_uneven_machines():
    assert [cores_of(i, 3, [single(0, 1, 2, 3), single(4, 5, 6, 7)]) for i in range(3)] == [
        [0, 1],
        [2, 3],
        [4, 5, 6, 7],
    ]
    assert [cores_of(i, 4, [single(0, 1)]) for i in range(4)] == [
        [0],
        [0],
        [1],
        [1],
    ]  # more ranks than cores share them
    assert cores_of(0, 1, [single(0, 1), single(2, 3)]) == [0, 1]


def test_a_rank_has_whole_cores_with_all_their_threads(machine):
    """Two nodes of four cores with two threads each, the second threads counted behind all first ones, as Linux does on
    x86."""
    root = machine({0: "0-3,8-11", 1: "4-7,12-15"}, [f"{core},{core + 8}" for core in range(8)])
    assert [cores_of(i, 4, numa_nodes(root)) for i in range(4)] == [
        [0, 1, 8, 9],
        [2, 3, 10, 11],
        [4, 5, 12, 13],
        [6, 7, 14, 15],
    ]
    assert [cores_of(i, 3, numa_nodes(root)) for i in range(2)] == [[0, 1, 8, 9], [2, 3, 10, 11]]


def test_an_odd_number_of_cores_is_not_cut_between_threads(machine):
    root = machine({0: "0-5"}, ["0-1", "2-3", "4-5"])
    assert [cores_of(i, 2, numa_nodes(root)) for i in range(2)] == [[0, 1], [2, 3, 4, 5]]


def test_nodes_are_read_in_order_and_only_what_this_process_may_use(machine):
    root = machine({10: "1000-1003", 2: "7,1000", 0: "999"})
    assert numa_nodes(root) == [[[7]]]
    assert numa_nodes(root / "none") == [single(*range(96))]
    assert parse_cores("0-2,5,7-8\n") == [0, 1, 2, 5, 7, 8] and parse_cores("") == []
