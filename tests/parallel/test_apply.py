"""A plan as MindSpore's compiler understands it: the step compiled for virtual ranks, in a child process, since that
changes a process for good. One child compiles all of them, one after the other."""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
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


SELECTIVE = ["parallel.data_parallel=2", "parallel.optimizer_shard=true", "parallel.vocab_embedding=row"]
SELECTIVE += ["parallel.recompute=selective", "model.ffn_hidden_size=512", "model.num_kv_heads=2", "model.num_layers=1"]
SEQUENCE = ["parallel.sequence_parallel=true", "parallel.data_parallel=2"]
STAGES = ["parallel.pipeline_stage=2", "parallel.micro_batch_num=2", "parallel.optimizer_shard=true"]
STAGES += ["parallel.recompute=full"]
CASES = {
    "sequence": ("alpha", 1, SEQUENCE),
    "first stage": ("alpha", 0, STAGES),
    "second stage": ("alpha", 2, STAGES),
    "selective": ("pi", 3, SELECTIVE),
}
"""Name: family, rank, overrides. The one without optimizer_shard is first: MindSpore forgets that setting only in
part."""


def config_of(case: str) -> RunConfig:
    """The configuration of a case."""
    family, _, overrides = CASES[case]
    return load_config(f"{family}/tiny", [*SIZES, *overrides])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, tuple[Plan, dict]]:
    """Of each case the plan, and of the compiled step {"nodes": [[kind, line]], "layouts": {name: [matrix, tensor map,
    slice shape]}, "held": names}."""
    graphs = tmp_path_factory.mktemp("graphs")
    environment = os.environ | {
        "GLOG_v": "3",
        "MS_DEV_SAVE_GRAPHS": "2",
        "MS_DEV_DUMP_IR_PASSES": "validate",
        "MS_DEV_SAVE_GRAPHS_PATH": str(graphs),
    }
    arguments = [sys.executable, "-m", __name__, str(graphs)]
    child = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=500)
    assert child.returncode == 0, child.stderr[-3000:]
    found = {}
    for case in CASES:
        lines = (graphs / f"{case}.ir").read_text(errors="ignore").splitlines()
        found[case] = (
            Plan.of(config_of(case)),
            {
                "nodes": [(match[1], line) for line in lines if (match := NODE.search(line))],
                "held": re.findall(r"^%para\d+_([^ :]+)", "\n".join(lines), re.M),
                "layouts": json.loads((graphs / f"{case}.json").read_text()),
            },
        )
    return found


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


def test_layouts_and_recomputed_probabilities(compiled):
    plan, graph = compiled["selective"]
    assert_layouts_agree(plan, graph, 0)
    again = count(graph, "duplicated: Bool(1)")
    # the scores of the layer, and no product with a weight
    assert again["BatchMatMul"] == again["Softmax"] == 1 and again["MatMul"] == 0


def test_sequence_parallel_has_megatrons_collectives(compiled):
    plan, graph = compiled["sequence"]
    assert_layouts_agree(plan, graph, 0)
    groups = collections.Counter(
        (kind, re.search(r'group: "(.*?)"', line)[1]) for kind, line in graph["nodes"] if "group: " in line
    )
    (pair,) = (group for kind, group in groups if kind == "AllGather")
    # Korthikanti et al. 2022, figure 5: four and four in a layer; one more pair where the stream begins, and one
    # at the head
    assert groups["AllGather", pair] == groups["ReduceScatter", pair] == 4 * 2 + 2 and groups["AllReduce", pair] == 0


@pytest.fixture
def stages(compiled):
    """Rank 0 of the first and of the second stage of alpha, whose word table is tied."""
    return [compiled["first stage"], compiled["second stage"]]


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


def main(graphs: Path) -> None:
    """The child: writes CASE.json, the layouts, and CASE.ir, the compiled graph."""
    import mindspore as ms

    from pangu_ms.rehearsal import virtual_cluster

    ms.set_context(mode=ms.GRAPH_MODE)
    for case, (_, rank, _) in CASES.items():
        plan = Plan.of(config_of(case))
        ms.reset_auto_parallel_context()
        virtual_cluster.enter(plan.mesh.world, rank)
        step = compile_step(plan, rank)
        shapes = {p.name: p.shape for p in step.get_parameters()}  # the layouts' own do not know optimizer_shard
        layouts = {name: [*layout[:2], shapes.get(name)] for name, layout in step.parameter_layout_dict.items()}
        (graphs / f"{case}.json").write_text(json.dumps(layouts))
        written = sorted(graphs.rglob("*validate*.ir"))
        written[-1].rename(graphs / f"{case}.ir")
        for path in written[:-1]:
            path.unlink()


def compile_step(plan: Plan, rank: int):
    """The step of a virtual rank, compiled."""
    import ascend_ops
    from pangu_ms.models.build import build_model
    from pangu_ms.parallel import apply
    from pangu_ms.train.steps.rank_graph import build_rank_graph, example_inputs

    apply.begin(plan, rank)
    model = build_model(plan.config.model)
    apply.apply(plan, model)
    step = build_rank_graph(plan, model)
    with ascend_ops.use("composed"):
        step.set_train().compile(*example_inputs(plan))
    return step


if __name__ == "__main__":
    main(Path(sys.argv[1]))
