"""Every bad table is refused with the place and words of its faults, none by a crash; every good one is taken."""

import json

import pytest

from pangu_ms.core.errors import RankTableError
from pangu_run.rank_table import RankTable, check
from tests.faults.rank_tables import BAD, GOOD


def test_enough():
    assert len(GOOD) == 20 and len(BAD) >= 80
    assert {world for _, world in GOOD.values()} >= {1, 2048}


@pytest.mark.parametrize("name", BAD)
def test_bad(name, tmp_path):
    content, words = BAD[name]
    path = tmp_path / "hccl.json"
    path.write_bytes(content)
    faults = check(path)
    said = "\n".join(map(str, faults))
    assert all(word in said for word in words), said
    with pytest.raises(RankTableError) as error:
        RankTable.read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 10_000
    assert all(fault.found in message for fault in faults[:20])


@pytest.mark.parametrize(
    "name", [name for name in BAD if len(BAD[name][1]) == 1 and not name.startswith(("no addresses", "all ranks"))]
)
def test_one_mistake_is_one_fault(name, tmp_path):
    """A user mends what is wrong, not what follows from it: one changed value makes at most one further fault (a rank
    that it took from another)."""
    path = tmp_path / "hccl.json"
    path.write_bytes(BAD[name][0])
    assert len(check(path)) <= 2, [str(fault) for fault in check(path)]


@pytest.mark.parametrize("name", GOOD)
def test_good(name, tmp_path):
    content, world = GOOD[name]
    path = tmp_path / "hccl.json"
    path.write_bytes(content)
    assert check(path) == [] and check(path, world=world) == []
    assert [fault.location for fault in check(path, world=world + 1)] == ["rank_id"]
    table = RankTable.read(path)
    assert list(table.ranks()) == list(range(world)) and table.world == world
    path.write_text(json.dumps(table.as_dict()))
    again = RankTable.read(path)
    assert [(s.server_id, s.super_pod_id, d) for s, d in again.ranks().values()] == [
        (s.server_id, s.super_pod_id, d) for s, d in table.ranks().values()
    ]
