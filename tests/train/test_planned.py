"""What of planned training is not the device: a rank's compiled step, its slices loaded and saved, what ranks tell each
other, what is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.reshard import Source, reshard
from pangu_ms.cli.main import main
from pangu_ms.config.load import load_config
from pangu_ms.core.errors import CheckpointError, ConfigError
from pangu_ms.models.common.init import initial_values
from pangu_ms.parallel.rendezvous import PeerLost
from pangu_ms.train.checks import needs_ranks, require_executable
from tests.checkpoint.common import assert_same
from tests.checkpoint.rank_saver import groups
from tests.checkpoint.reshard_common import ALPHA, planned, rank_slice
from tests.parallel import stages

ANOTHER_PLAN = (2, 4, 1, 1, 0, 4)


def test_a_rank_compiles_loads_from_any_plan_and_saves_its_slices(made_once, tmp_path):
    """The first of the second stage of two."""
    made = made_once("stages", stages.make)
    require_slices(made, tmp_path, stages.CASES["second stage"], stages.BASE, stages.PLAN)


@pytest.mark.slow
def test_a_rank_of_one_stage_compiles_loads_from_any_plan_and_saves_its_slices(tmp_path):
    """Rank 3 of dp 2 x mp 2 with the optimizer's cut, and rows of the word table."""
    rank, plan = 3, (2, 2, 1, 1, 1, 4)
    stages.write_checkpoints(tmp_path, ALPHA, plan)
    command = [sys.executable, "-m", "tests.train.planned_child", tmp_path, str(rank), json.dumps(plan)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr[-3000:]
    require_slices(tmp_path, tmp_path, rank, ALPHA, plan)


def require_slices(made, tmp_path, rank, base, plan):
    """What planned_child left, against slices that are cut by the rules in words."""
    config = planned(base, plan)
    arrays, whole = groups(config), store.open_checkpoint(made / "whole")
    found = dict(np.load(made / "held.npz"))
    assert found.pop("graphs") == 1 and found.pop("control").tolist() == [0.25, 8.0] and found.pop("sliced")

    first = {f"first/{name}": value for name, value in initial_values(config.model, config.train.seed)}
    first |= {f"first/{name}": np.zeros_like(value) for name, value in arrays["optimizer"].items()}
    everything = {name: value for tensors in arrays.values() for name, value in tensors.items()}
    parts = {
        name: rank_slice(plan, name.removeprefix("first/"), value, rank) for name, value in (everything | first).items()
    }
    assert_same(found, {name: part[0] for name, part in parts.items() if part})

    saved = made / "saved/.step-00000005.ranks.tmp"
    files = sorted(path.name for path in saved.glob("*.safetensors"))
    assert files == [f"{group}-rank-{rank:05d}.safetensors" for group in ("model", "optimizer")]
    same = reshard(Source.of(whole), tmp_path / "same", config)
    assert all((saved / file).read_bytes() == (same / file).read_bytes() for file in files)


def test_what_rank_0_cannot_find_ends_the_others_too(tmp_path):
    """Instead of leaving them in a collective."""
    from pangu_ms.train.distributed_model import ShardedModel

    class Ranks:
        said = "nothing yet"

        def __init__(self, leads):
            self.leads = leads

        def broadcast(self, text=""):
            Ranks.said = text if self.leads else Ranks.said
            return Ranks.said

    first, second = (object.__new__(ShardedModel) for _ in range(2))
    first.ranks, second.ranks = Ranks(True), Ranks(False)
    with pytest.raises(CheckpointError, match="no such directory"):
        first.find_checkpoint(lambda: store.open_checkpoint(tmp_path / "none"))
    with pytest.raises(PeerLost):
        second.find_checkpoint(lambda: pytest.fail("rank 0 alone verifies digests"))
    assert first.find_checkpoint(lambda: None) is None and second.find_checkpoint(lambda: None) is None
    store.save(tmp_path, 5, groups(), {}, planned(ALPHA, ANOTHER_PLAN))
    assert (
        first.find_checkpoint(lambda: store.open_checkpoint(tmp_path)).path == second.find_checkpoint(lambda: None).path
    )


def test_on_ascend_a_launcher_starts_the_ranks_of_any_plan(monkeypatch, capsys, tmp_path):
    fields = ["runtime.device=Ascend", "parallel.data_parallel=2", "parallel.model_parallel=2"]

    def told(*overrides):
        config = load_config("alpha/tiny", [*fields, *overrides])
        assert not needs_ranks(config)
        require_executable(config)

    with pytest.raises(ConfigError, match=r"the plan has 4 ranks; this job has 1 process\(es\) \(RANK_SIZE\)"):
        told()
    monkeypatch.setenv("RANK_SIZE", "4")
    told("parallel.optimizer_shard=true")
    with pytest.raises(ConfigError, match="search_mode=recursive_programming: lays parameters out by itself"):
        told("parallel.search_mode=recursive_programming")
    assert (
        main(["train", "--config", "alpha/tiny", *fields, "--output", str(tmp_path / "run")]) == 2
    )  # each rank would prepare records of its own
    assert (
        "data.records: none; ranks that a launcher starts share records" in capsys.readouterr().err
        and not (tmp_path / "run").exists()
    )
    monkeypatch.setenv("RANK_SIZE", "8")
    with pytest.raises(ConfigError, match="has 4 ranks; this job has 8"):
        told()
