"""A step saved by eight processes, each with its own slices: what comes out, and that a rank that fails or dies leaves
nothing behind."""

import json
import subprocess
import sys

import pytest

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.reshard import Source, reshard
from tests.checkpoint import rank_saver
from tests.checkpoint.common import assert_same
from tests.checkpoint.reshard_common import assert_lies_as


def save(root, step, *mishaps):
    """Whether all ranks ended well, and what they said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.rank_saver", str(root), str(step), *mishaps],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    words = {int(path.name.rpartition("-")[2]): path for path in root.parent.glob("words-*")}
    return done.returncode == 0, {rank: (path.read_text(), path.unlink())[0] for rank, path in words.items()}


def entries(root):
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Step 5, saved by all ranks."""
    root = tmp_path_factory.mktemp("ranks") / "checkpoints"
    assert save(root, 5) == (True, {})
    return root


def test_the_ranks_together_write_what_reshard_writes(root, tmp_path):
    found, passed_over = store.latest_valid(root)
    assert found.step == 5 and not passed_over and entries(root) == ["step-00000005"]
    groups = rank_saver.groups()
    for group, tensors in groups.items():
        assert_same(found.tensors(group), tensors)
    assert_lies_as(found, rank_saver.PLAN, groups)
    whole = store.save(tmp_path / "whole", 5, groups, rank_saver.STATE, rank_saver.config())
    other = reshard(Source.of(store.open_checkpoint(whole)), tmp_path / "resharded", rank_saver.config())
    names = sorted(path.name for path in other.iterdir())
    assert names == sorted(path.name for path in found.path.iterdir()) and len(names) > 10
    for name in names:
        mine, its = ((directory / name).read_bytes() for directory in (found.path, other))
        if name == "manifest.json":
            mine, its = (
                {key: value for key, value in json.loads(text).items() if key not in ("created", "sha256")}
                for text in (mine, its)
            )
            assert list(mine["files"]) == list(its["files"])
        assert mine == its, name


def test_a_rank_with_a_full_disk_is_told_to_all_and_nothing_is_committed(root):
    well, words = save(root, 6, "5:full:7")
    assert not well and words.keys() == set(range(8))
    assert "NoRoom" in words[5] and "free some room" in words[5]
    assert all(
        "CheckpointError" in words[rank] and "another rank could not write" in words[rank]
        for rank in words
        if rank != 5
    )
    assert entries(root) == ["step-00000005"]


def test_a_killed_rank_leaves_no_step_and_the_next_save_cleans_up(root):
    for rank in (6, 0):
        well, words = save(root, 7, f"{rank}:killed:4")
        assert not well and words == dict.fromkeys(set(range(8)) - {rank}, "PeerLost: 70")
        # Rank 0 removes what was begun, but notices the loss while others may still write; who removes it if
        # rank 0 is gone? The next save.
        assert set(entries(root)) - {".step-00000007.ranks.tmp"} == {"step-00000005"}
        assert store.latest_valid(root)[0].step == 5
    for step in (7, 8):
        assert save(root, step) == (True, {})
    assert entries(root) == ["step-00000007", "step-00000008"] and store.latest_valid(root)[0].step == 8  # two are kept
