"""Ranks of a plan as processes against one process. The comparison itself is checked on made-up results with known
errors."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import ascend_ops
from pangu_ms.cli.main import main
from pangu_ms.config.load import config_from_dict, config_to_dict, load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import PlanError
from pangu_ms.models.registry import FAMILIES
from pangu_ms.parallel.expert_batches import arranged, tokens_sent
from pangu_ms.parallel.plan import Plan
from pangu_ms.rehearsal import execute, execute_child
from pangu_run.launcher import run_ranks

TINY = [
    "model.vocab_size=64",
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.seq_length=16",
    "train.batch_size=2",
]
TINY += ["model.ffn_hidden_size=64", "tokenizer.vocab_size=64"]


def tiny(family: str, *fields: str):
    fields = [field if "." in field.partition("=")[0] else f"parallel.{field}" for field in fields]
    return load_config(f"{family}/tiny", [*TINY, *fields])


_child = execute._child


def child_or_this_process(who: str, mode: str, *rest: str) -> Any:
    """The single process is this one, which need not import mindspore again. It computes by kernels, of which a graph
    has fewer operators to compile, and which are not those of the ranks."""
    if mode != "single":
        return _child(who, mode, *rest)
    directory = Path(rest[0])
    request = json.loads((directory / execute.REQUEST).read_text())
    config = execute.on_one_device(config_from_dict(request["config"], "test"))
    with mock.patch.object(ascend_ops, "use", lambda backend: contextlib.nullcontext()):
        execute_child.run_single(config, request["steps"], directory)


def run(config: RunConfig, steps: int) -> execute.Execution:
    with mock.patch.object(execute, "_child", child_or_this_process):
        return execute.execute(config, run_ranks, steps, progress=False)


def executed(family: str, *fields: str, steps: int = 20) -> execute.Execution:
    found = run(tiny(family, *fields), steps)
    assert len(found.losses) == steps
    assert found.agrees, [one for one in found.differences if one.error > execute.TOLERANCE]
    assert {one.kind for one in found.differences} == {"history", "gradient", "parameter"}
    return found


EXPERTS = ["model.num_experts=4", "model.ffn_hidden_size=32", "model.hidden_size=16", "model.seq_length=8"]
ONE_GROUP = "model.group_of_domain=[0,0]"


def experts_executed(*overrides: str, steps: int = 3) -> execute.Execution:
    config = load_config("sigma/tiny", [*TINY, *EXPERTS, *overrides])
    found = run(config, steps)
    assert found.agrees, [one for one in found.differences if one.error > execute.TOLERANCE]
    return found


def made_up(plan: Plan):
    """What a single process might have computed, and what ranks have to of it."""
    generator = np.random.default_rng(0)
    tensors = {
        f"{kind} {name}": generator.standard_normal(lay.shape)
        for name, lay in plan.layouts.items()
        for kind in ("gradient", "parameter")
    }
    history = np.column_stack([generator.random((5, 3)) + 1, np.ones(5)])
    cut = {name: plan.layouts[name.split(" ")[1]] for name in tensors}
    ranks = [
        {"history": history} | {name: value[cut[name].slices(rank)].copy() for name, value in tensors.items()}
        for rank in range(plan.mesh.world)
    ]
    return {"history": history} | tensors, ranks


def test_comparison_finds_a_rank_that_differs_and_only_it():
    plan = Plan.of(tiny("alpha", "data_parallel=2", "model_parallel=2"))
    single, ranks = made_up(plan)
    assert {one.error for one in execute.compare(plan, single, ranks)} == {0.0}
    name = next(name for name, layout in plan.layouts.items() if layout.counts != (1,) * len(layout.counts))
    ranks[3][f"gradient {name}"] *= 1.001  # a wrong scale
    ranks[1][f"parameter {name}"], ranks[0][f"parameter {name}"] = (
        ranks[0][f"parameter {name}"],
        ranks[1][f"parameter {name}"],
    )  # the wrong slices
    ranks[2]["history"] = single["history"] + [0, 0, np.nan, 0]
    wrong = [one for one in execute.compare(plan, single, ranks) if one.error > execute.TOLERANCE]
    assert [(one.kind, one.name) for one in wrong] == [
        ("history", "gradient norm"),
        ("gradient", name),
        ("parameter", name),
    ]
    assert wrong[1].rank == 3 and wrong[1].error == pytest.approx(1e-3, rel=0.5)


def test_a_gradient_of_zero_is_compared_by_the_size_of_the_others():
    plan = Plan.of(tiny("alpha", "model_parallel=2"))
    single, ranks = made_up(plan)
    key, rng = "gradient blocks.0.attention.key.bias", np.random.default_rng(1)
    single[key] = 1e-9 * rng.standard_normal(single[key].shape)
    assert [
        f"{one.kind} {one.name}" for one in execute.compare(plan, single, ranks) if one.error > execute.TOLERANCE
    ] == [key]  # theirs are not 0
    for rank in ranks:
        rank[key] = 1e-9 * rng.standard_normal(rank[key].shape)
    assert all(one.error <= execute.TOLERANCE for one in execute.compare(plan, single, ranks))


@pytest.mark.parametrize(
    "override, words",
    [
        ("parallel.pipeline_stage=2 parallel.micro_batch_num=2", "send and receive"),
        ("parallel.data_parallel=1", "needs 2 to 8"),
        ("parallel.data_parallel=16", "needs 2 to 8"),
        ("model.dropout=0.1", "model.dropout=0.1"),
        ("model.compute_dtype=float16", "compute_dtype=float16"),
    ],
)
def test_what_a_cpu_cannot_execute_is_one_line(override, words, capsys):
    data = [] if "data_parallel" in override or "pipeline" in override else ["parallel.data_parallel=2"]
    assert main(["plan", "execute", "--config", "alpha/tiny", *TINY, *data, *override.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_collectives_that_cannot_be_emulated_are_refused_with_their_name(monkeypatch, tmp_path):
    monkeypatch.setattr(
        execute,
        "_child",
        lambda who, mode, *rest: {"collectives": {"AllReduce sum": 3, "NeighborExchange": 2}, "groups": {}},
    )
    with pytest.raises(PlanError, match="NeighborExchange, which a CPU has not; rehearse it"):
        execute.execute(tiny("alpha", "data_parallel=2"), run_ranks, progress=False)


@pytest.mark.slow
def test_alpha_on_two_by_two_ranks_computes_what_one_process_does():
    found = executed("alpha", "data_parallel=2", "model_parallel=2")
    assert set(found.collectives) == {"AllReduce sum"} and not found.emulated


@pytest.mark.slow  # in the default tier experts on two ranks are executed and compared
def test_pi_with_its_vocabulary_cut_computes_what_one_process_does():
    """All that is emulated stands in this plan, but the exchange of tokens among experts."""
    found = executed("pi", "model_parallel=2", "vocab_embedding=row", "model.num_layers=1", steps=5)
    assert set(found.emulated) == set(execute.EMULATED) - {"AlltoAll"}


def test_experts_on_two_ranks_compute_what_one_process_does():
    """A sparse layer exchanges rows, counts and results, and their gradients but that of the counts."""
    found = experts_executed("parallel.data_parallel=2", "parallel.expert_parallel=2", ONE_GROUP)
    assert found.collectives["AlltoAll"] == 5 and found.emulated == ["AlltoAll"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, exchanges",
    [
        (["parallel.data_parallel=4", "parallel.expert_parallel=4"], 5),  # two ranks hold a group
        (["parallel.data_parallel=4", "parallel.expert_parallel=2", ONE_GROUP], 5),
        (["parallel.data_parallel=4", "parallel.expert_parallel=2"], 0),  # each rank has a group
        (["parallel.data_parallel=4", "parallel.expert_parallel=2", "model.slot_of_domain=[0,1]"], 0),
        (["parallel.data_parallel=2", "parallel.expert_parallel=2", "parallel.model_parallel=2", ONE_GROUP], 5),
        (
            [
                "parallel.data_parallel=4",
                "parallel.expert_parallel=4",
                ONE_GROUP,
                "model.routing_mode=frequency_balanced",
                "parallel.expert_capacity_factor=2.5",
            ],
            5,
        ),
        (
            [
                "parallel.data_parallel=4",
                "parallel.expert_parallel=2",
                "parallel.optimizer_shard=true",
                "model.hidden_size=64",
                "model.ffn_hidden_size=256",
                ONE_GROUP,
            ],
            5,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_experts_on_four_ranks_compute_what_one_process_does(overrides, exchanges):
    assert experts_executed(*overrides).collectives.get("AlltoAll", 0) == exchanges


@pytest.mark.slow
def test_every_rank_gets_the_tokens_that_numpy_counts(tmp_path):
    """Counted by the executed graphs themselves; see count_child.py."""
    fields = ["parallel.data_parallel=4", "parallel.expert_parallel=4", ONE_GROUP, "model.num_experts=8"]
    config = load_config("sigma/tiny", [*TINY, *EXPERTS, *fields, "parallel.expert_capacity_factor=0"])
    plan, root = Plan.of(config), Path(__file__).parents[2]
    (tmp_path / execute.REQUEST).write_text(json.dumps({"config": config_to_dict(config), "steps": 1}))
    groups = {}
    for rank in range(4):
        command = [sys.executable, "-m", "tests.rehearsal.count_child", "compile", str(tmp_path), str(rank)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        groups |= json.loads(done.stdout)["groups"]
    (tmp_path / execute.GROUPS).write_text(json.dumps(dict(sorted(groups.items()))))
    child = ["-m", "pangu_ms.rehearsal.execute_child", "run", str(tmp_path)]
    assert run_ranks(lambda rank: [*child, str(rank)], 4, tmp_path, {"GLOG_v": "3"}, stream_rank=None, name="test") == 0

    batch, name = execute.batch(config, 0), "query_layer.ffn.routing"
    table = dict(execute.starting_values(config))[name]
    expert = table[batch.extra["domain"][:, None], batch.ids[:, :-1]]
    expected = np.bincount(expert.ravel(), minlength=8)
    for rank in range(4):
        found = np.load(tmp_path / execute.result_name(rank))["gradient query_layer.ffn.experts.down.bias"]
        counted = found * expert.size
        assert np.allclose(counted, expected[2 * rank : 2 * rank + 2, None], atol=1e-3), rank
    sent = tokens_sent(arranged(batch, plan), {name: table}, plan)
    assert np.array_equal(sent[0, 0].sum(0), expected.reshape(4, 2).sum(1)) and expected.sum() == 8 * 8


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "parallel",
    [
        ["data_parallel=2"],
        ["model_parallel=2"],
        ["data_parallel=4"],
        ["model_parallel=4"],
        ["model_parallel=2", "vocab_embedding=row"],
        ["data_parallel=2", "model_parallel=2", "vocab_embedding=row"],
    ],
    ids=" ".join,
)
def test_grid(family, parallel):
    executed(family, *parallel)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [["data_parallel=2"], ["data_parallel=2", "model_parallel=2"]], ids=" ".join)
def test_groups_of_experts_on_devices_compute_what_one_process_does(parallel):
    executed("moge", *parallel, "expert_parallel=2", steps=5)


@pytest.mark.slow
def test_command_line_reports_agreement(capfd):
    assert (
        main(
            ["plan", "execute", "--config", "alpha/tiny", *TINY, "parallel.model_parallel=2", "--steps", "2", "--json"]
        )
        == 0
    )
    found = json.loads(capfd.readouterr().out)
    assert found["agrees"] and len(found["losses"]) == 2 and len(found["worst"]) == 3
