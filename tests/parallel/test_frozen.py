"""Weights that training leaves as they are, under a plan: see tests/frozen.py."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.reshard import Source, reshard
from pangu_ms.config import load_config
from pangu_ms.core.isolated import python_command
from pangu_ms.models.common.init import initial_values
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner import memory
from pangu_ms.planner.cluster import CHIPS, bandwidth
from pangu_ms.planner.slices import Slices
from pangu_ms.planner.time import step_terms
from pangu_ms.rehearsal import execute, rehearse
from pangu_ms.train.distributed_model import whole_shapes
from pangu_run.launcher import run_ranks
from tests.checkpoint.reshard_common import ALPHA, planned, rank_slice
from tests.frozen import MATRIX, TABLE, frozen, permutation, unfrozen

CHILD = "tests.frozen_child"
SMALL = [
    "model.vocab_size=64",
    "model.hidden_size=128",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.seq_length=16",
    "model.dropout=0.0",
]
SMALL += ["train.batch_size=2", "tokenizer.vocab_size=64", "parallel.data_parallel=2", "parallel.model_parallel=2"]
SHARD, STAGES = "parallel.optimizer_shard=true", ("parallel.pipeline_stage=2", "parallel.micro_batch_num=2")


@pytest.fixture(autouse=True)
def with_frozen_weights(monkeypatch):
    """Here and in child processes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for module in (execute, rehearse):
        monkeypatch.setattr(
            module, "python_command", lambda module, *arguments: python_command(CHILD, module, *arguments)
        )
    with frozen():
        yield


def start_ranks(command, *rest, **options):
    """The starter of ranks; each of them freezes the weights, too."""
    return run_ranks(lambda rank: ["-m", CHILD, *command(rank)[1:]], *rest, **options)


def laid_out(*fields):
    return Plan.of(load_config("alpha/tiny", [*SMALL, *fields]))


@pytest.mark.parametrize("fields", [(), (SHARD,), STAGES, (SHARD, *STAGES)])
def test_memory_has_moments_and_gradients_of_what_is_trained_alone(fields):
    """The bytes of every slice added up, name by name."""
    plan = laid_out(*fields)
    for stage in range(plan.mesh.num_stages):
        held = {name: 4 * math.prod(plan.layouts[name].slice_shape) for name in plan.stage_parameters(stage)}
        moved = sum(size for name, size in held.items() if name not in (MATRIX, TABLE))
        assert (moved < sum(held.values())) == (stage == 0)
        lines = {line.name: line.bytes for line in memory.stage_memory(plan, stage, CHIPS["ascend910"], Slices(plan))}
        assert (lines["parameters"], lines["moments"], lines["gradients"]) == (sum(held.values()), 2 * moved, moved)
        assert (memory.parameter_bytes(plan, stage), memory.optimizer_bytes(plan, stage)) == (
            sum(held.values()),
            2 * moved,
        )
        assert memory.state_bytes(Slices(plan), stage) == sum(held.values()) + 3 * moved


def test_time_has_no_gradient_of_a_frozen_matrix():
    """By hand: one of two products of its backward pass, its exchange over dp and its update are saved; the table adds
    none of these."""
    chip, plan = CHIPS["ascend910"], laid_out()
    less = {term.name: term.seconds for term in step_terms(plan, chip, Slices(plan))}
    with unfrozen():
        plain = laid_out()
        more = {term.name: term.seconds for term in step_terms(plain, chip, Slices(plain))}
    cut, tokens = 4 * 128 * 128 // 2, 2 * 16
    assert more["compute"] - less["compute"] == pytest.approx(2 * cut * tokens / (chip.peak_flops * chip.achievable))
    assert more["update"] - less["update"] == pytest.approx(7 * 4 * cut / chip.hbm_bandwidth)
    ring = (1 - chip.overlap) * 2 * 1 / 2 * 4 * cut / bandwidth(chip, plan.mesh, ("dp",))[0]  # all-reduce over two
    assert more["reduce gradients"] - less["reduce gradients"] == pytest.approx(ring)


@pytest.mark.slow
def test_ranks_with_frozen_weights_compute_what_one_process_does():
    found = execute.execute(laid_out(SHARD).config, start_ranks, 5, progress=False)
    assert found.agrees, [one for one in found.differences if one.error > execute.TOLERANCE]
    names = {kind: {one.name for one in found.differences if one.kind == kind} for kind in ("gradient", "parameter")}
    assert names["parameter"] - names["gradient"] == {MATRIX, TABLE}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [(SHARD,), STAGES])
def test_the_compiler_makes_moments_of_what_is_trained_alone(fields):
    """MindSpore's own count of a rank of each stage."""
    plan = laid_out(*fields)
    for report in rehearse.rehearse(plan.config, rehearse.sample_ranks(plan), progress=False):
        assert report.differences == []
        assert (report.parameter_bytes, report.optimizer_bytes) == (
            memory.parameter_bytes(plan, report.stage),
            memory.optimizer_bytes(plan, report.stage),
        )


@pytest.mark.slow
def test_a_rank_loads_and_saves_its_slices_of_them(tmp_path):
    """Of its parameters, initial values and what a checkpoint has; of moments only those of what is trained. Slices are
    cut by the rules in words."""
    plan, rank = (2, 2, 1, 1, 0, 4), 3
    config, rng = planned(ALPHA, plan), np.random.default_rng(3)
    shapes = whole_shapes(config)
    arrays = {
        group: {name: rng.standard_normal(shape).astype(np.float32) for name, shape in named.items()}
        for group, named in shapes.items()
    }
    arrays["model"][TABLE] = permutation(config.model.vocab_size)[::-1].copy()
    source = store.save(tmp_path / "source", 5, arrays, {"step": 5}, config)
    command = [
        sys.executable,
        "-m",
        CHILD,
        "tests.train.planned_child",
        tmp_path,
        str(rank),
        json.dumps(plan),
    ]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    found = dict(np.load(tmp_path / "held.npz"))

    expected = {name: value for tensors in arrays.values() for name, value in tensors.items()}
    expected |= {f"first/{name}": value for name, value in initial_values(config.model, config.train.seed)}
    assert not [name for name in found if name.startswith("adam_") and name.endswith((MATRIX, TABLE))]
    names = [name for name in found if name.removeprefix("first/") in arrays["model"] or name in arrays["optimizer"]]
    assert {MATRIX, TABLE, f"first/{MATRIX}", f"first/{TABLE}", "adam_m.blocks.1.ffn.up.weight"} <= set(names)
    for name in names:
        part, _ = rank_slice(plan, name.removeprefix("first/"), expected[name], rank)
        assert found[name].dtype == part.dtype and np.array_equal(found[name], part), name

    same = reshard(Source.of(store.open_checkpoint(source)), tmp_path / "same", config)
    for group in arrays:
        file = f"{group}-rank-{rank:05d}.safetensors"
        assert (tmp_path / "saved/.step-00000005.ranks.tmp" / file).read_bytes() == (same / file).read_bytes()
