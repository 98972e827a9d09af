"""A plan as MindSpore's compiler understands it: the step compiled for one virtual rank, in a child process, since that
changes a process for good."""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_ms.config.load import load_config
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import MOMENTS, Plan

SIZES = [
    "model.vocab_size=512",
    "tokenizer.vocab_size=512",
    "model.hidden_size=256",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.seq_length=32",
]
SIZES += ["train.batch_size=4", "parallel.search_mode=sharding_propagation", "parallel.model_parallel=2"]
NODE = re.compile(r"= (?:\w+(?:::\w+)*::)?(?:PrimFunc_)?(\w+)\(")


def compiled(family: str, rank: int, graphs: Path, *overrides: str) -> tuple[Plan, dict]:
    """The plan, and of the compiled step {"nodes": [[kind, line]], "layouts": {name: [matrix, tensor map, slice
    shape]}, "held": names}."""
    environment = os.environ | {
        "GLOG_v": "3",
        "MS_DEV_SAVE_GRAPHS": "2",
        "MS_DEV_DUMP_IR_PASSES": "validate",
        "MS_DEV_SAVE_GRAPHS_PATH": str(graphs),
    }
    arguments = [sys.executable, "-m", __name__, family, str(rank), *SIZES, *overrides]
    child = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr[-3000:]
    lines = max(graphs.rglob("*validate*.ir")).read_text(errors="ignore").splitlines()
    nodes = [(match[1], line) for line in lines if (match := NODE.search(line))]
    plan = Plan.of(load_config(f"{family}/tiny", [*SIZES, *overrides]))
    return plan, {
        "nodes": nodes,
        "held": re.findall(r"^%para\d+_([^ :]+)", "\n".join(lines), re.M),
        "layouts": json.loads(child.stdout.splitlines()[-1]),
    }


def count(graph: dict, mark: str = "") -> dict[str, int]:
    """Nodes of each kind whose line has a mark."""
    return collections.Counter(kind for kind, line in graph["nodes"] if mark in line)


def assert_layouts_agree(plan: Plan, graph: dict, stage: int) -> None:
    """Parameters and moments that a stage's graph has, and the slice that each device holds."""
    held = plan.stage_parameters(stage)
    wanted = [prefix + name for prefix in ("", *MOMENTS) for name in held]
    assert sorted(wanted) == sorted(
        name for name in graph["held"] if name.removeprefix("adam_m.").removeprefix("adam_v.") in plan.layouts
    )
    for name in held:
        layout, (matrix, tensor_map, _) = plan.layouts[name], graph["layouts"][name]
        axes = tuple((str(i), size) for i, size in enumerate(matrix))
        dims = [d if isinstance(d, list) else [d] for d in tensor_map]
        theirs = Layout(
            layout.shape, axes, tuple(tuple(str(len(matrix) - 1 - i) for i in dim if i >= 0) for dim in dims)
        )
        ours = Layout(layout.shape, layout.axes, layout.dims)
        assert [ours.slices(r) for r in range(ours.num_devices)] == [
            theirs.slices(r) for r in range(theirs.num_devices)
        ], name
        for prefix in ("", *MOMENTS):
            assert tuple(graph["layouts"][prefix + name][2]) == layout.slice_shape, prefix + name


def test_layouts_and_recomputed_probabilities(tmp_path):
    overrides = [
        "parallel.data_parallel=2",
        "parallel.optimizer_shard=true",
        "parallel.vocab_embedding=row",
        "parallel.recompute=selective",
    ]
    plan, graph = compiled("pi", 3, tmp_path, *overrides, "model.ffn_hidden_size=512", "model.num_kv_heads=2")
    assert_layouts_agree(plan, graph, 0)
    again = count(graph, "duplicated: Bool(1)")
    assert (
        again["BatchMatMul"] == again["Softmax"] == 2 and again["MatMul"] == 0
    )  # the scores of two layers, and no product with a weight


def test_sequence_parallel_has_megatrons_collectives(tmp_path):
    plan, graph = compiled("alpha", 1, tmp_path, "parallel.sequence_parallel=true", "parallel.data_parallel=2")
    assert_layouts_agree(plan, graph, 0)
    groups = collections.Counter(
        (kind, re.search(r'group: "(.*?)"', line)[1]) for kind, line in graph["nodes"] if "group: " in line
    )
    (pair,) = (group for kind, group in groups if kind == "AllGather")
    # Korthikanti et al. 2022, figure 5: four and four in a layer; one more pair where the stream begins, and one
    # at the head
    assert groups["AllGather", pair] == groups["ReduceScatter", pair] == 4 * 2 + 2 and groups["AllReduce", pair] == 0


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Rank 0 of the first and of the second stage of alpha, whose word table is tied."""
    overrides = [
        "parallel.pipeline_stage=2",
        "parallel.micro_batch_num=2",
        "parallel.optimizer_shard=true",
        "parallel.recompute=full",
    ]
    return [compiled("alpha", 2 * stage, tmp_path_factory.mktemp("graphs"), *overrides) for stage in range(2)]


def transfers(graph: dict, kind: str) -> list[tuple[str, str]]:
    return sorted(
        (re.search(r"sr_tag: I64\((\d+)\)", line)[1], re.search(r"shape: (\[.*?\])", line)[1])
        for k, line in graph["nodes"]
        if k == kind
    )


def test_stages_hold_what_the_plan_says_and_wait_for_each_other(stages):
    for stage, (plan, graph) in enumerate(stages):
        assert_layouts_agree(plan, graph, stage)
        assert count(graph, "duplicated: Bool(1)")["MatMul"] > 0
        assert count(graph, '"2-stages-of-0"')["AllReduce"] == 1  # one on each: a stage with more would wait for ever
        assert count(graph, "PARALLEL_GLOBALNORM_BETWEEN_STAGES")["AllReduce"] == 1
    first, second = (graph for _, graph in stages)
    assert transfers(first, "Send") == transfers(second, "Receive") and transfers(first, "Receive") == transfers(
        second, "Send"
    )
    assert ("0", "[512, 256]") in transfers(
        first, "Send"
    )  # the tied table: without it the last stage would wait for it


def test_a_tied_tables_gradient_counts_once_in_the_norm(stages):
    for stage, (plan, graph) in enumerate(stages):
        own = [name for name, (first, *_) in plan.parameter_stages.items() if first == stage]
        assert count(graph, "grad_scale: Bool(1)")["ExpandDims"] == len(own)


def main(family: str, rank: int, overrides: list[str]) -> None:
    """The child."""
    import mindspore as ms

    import ascend_ops
    from pangu_ms.models.build import build_model
    from pangu_ms.parallel import apply
    from pangu_ms.rehearsal import virtual_cluster
    from pangu_ms.train.steps.rank_graph import build_rank_graph, example_inputs

    ms.set_context(mode=ms.GRAPH_MODE)
    config = load_config(f"{family}/tiny", overrides)
    plan = Plan.of(config)
    virtual_cluster.enter(plan.mesh.world, rank)
    apply.begin(plan, rank)
    model = build_model(config.model)
    apply.apply(plan, model)
    step = build_rank_graph(plan, model)
    with ascend_ops.use("composed"):
        step.set_train().compile(*example_inputs(plan))
    shapes = {p.name: p.shape for p in step.get_parameters()}  # the layouts' own do not know optimizer_shard
    print(json.dumps({name: [*layout[:2], shapes.get(name)] for name, layout in step.parameter_layout_dict.items()}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
