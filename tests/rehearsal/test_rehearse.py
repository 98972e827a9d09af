"""Rehearsals: MindSpore's own compiler against the plan. Each compiles in a child process; `-m slow` holds the shipped
cluster configs."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pangu_ms.cli.main import main
from pangu_ms.config.load import load_config, replace
from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.operator_file import OperatorStrategy, read_operator_strategies, write_operator_strategies
from pangu_ms.parallel.plan import MOMENTS, Plan
from pangu_ms.rehearsal import rehearse as rehearsal
from pangu_ms.rehearsal.compiled_graph import totals
from pangu_ms.rehearsal.rehearse import rehearse, sample_ranks, thinned
from tests.parallel.common import assert_layouts_agree

TWO_BY_TWO = ("parallel.data_parallel=2", "parallel.model_parallel=2")
CUT = (*TWO_BY_TWO, "parallel.optimizer_shard=true", "parallel.sequence_parallel=true", "model.num_layers=2")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What `pangu plan rehearse` prints and writes of rank 0 of 2 x 2, with parameters cut once more by the optimizer,
    cut positions and an uneven table."""
    words = ["plan", "rehearse", "--config", "alpha/tiny", *CUT, "--ranks", "0", "--json", "--output"]
    output = tmp_path_factory.mktemp("rehearsal") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*words, str(output)]) == 0
    return json.loads(printed.getvalue()), output


@pytest.fixture(scope="module")
def alpha(command: tuple[dict[str, Any], Path]) -> tuple[Plan, rehearsal.RankReport]:
    """The plan, and the report that was written."""
    (report,) = json.loads((command[1] / "report.json").read_text())["ranks"]
    report["slices"] = {name: tuple(shape) for name, shape in report["slices"].items()}
    report["collectives"] = [rehearsal.Collective(**one) for one in report["collectives"]]
    return Plan.of(load_config("alpha/tiny", CUT)), rehearsal.RankReport(**report)


def test_the_compiler_cuts_every_parameter_and_moment_as_the_plan_says(
    alpha: tuple[Plan, rehearsal.RankReport],
) -> None:
    plan, report = alpha
    assert report.differences == []
    assert report.slices.keys() == {prefix + name for name in plan.layouts for prefix in ("", *MOMENTS)}
    assert report.parameter_bytes == sum(4 * layout.slice_size for layout in plan.layouts.values())
    assert report.optimizer_bytes == 2 * report.parameter_bytes
    assert any(layout.optimizer_axes for layout in plan.layouts.values()), "the optimizer must cut something"


def test_layouts_are_those_of_the_plan_not_only_their_shapes(alpha: tuple[Plan, rehearsal.RankReport]) -> None:
    """Rank 1 of (1, 2) and rank 1 of (2, 1) hold slices of one shape, but not the same ones."""
    plan, report = alpha
    for name, layout in plan.layouts.items():
        if 2 in layout.tensor_map or layout.dims != ((),) * len(layout.dims):
            matrix, tensor_map = report.layouts[name][:2]
            kept = [size for size in matrix if size > 1]
            assert kept == [2, 2] and [
                m if m == -1 or matrix[len(matrix) - 1 - m] == 1 else m for m in tensor_map
            ] == list(layout.tensor_map), name


def test_sequence_parallel_has_megatrons_collectives(alpha: tuple[Plan, rehearsal.RankReport]) -> None:
    """Over mp four gathers and four scatters in each of two layers; one more, or an all-reduce, is a forgotten layout.
    The first layer gets whole positions from the embedding, and the head gathers them again. Source: Korthikanti et al.
    2022, figure 5."""
    _, report = alpha
    activations = [c for c in report.collectives if not c.parameter]
    (pair,) = {c.group for c in activations if c.kind == "AllGather"}
    assert Counter(c.kind for c in activations if c.group == pair) == {"AllGather": 4 * 2, "ReduceScatter": 4 * 2}


def test_a_difference_between_compiler_and_plan_is_told(alpha: tuple[Plan, rehearsal.RankReport]) -> None:
    plan, report = alpha
    raw = {
        "rank": 0, "seconds": 0, "peak_bytes": 0, "collectives": [], "operators": {},
        "layouts": {name: [] for name in report.slices if name != "final_norm.bias"},
        "parameters": dict(report.slices) | {"blocks.0.ffn.up.weight": [1]},
    }  # fmt: skip
    assert rehearsal._report(plan, raw).differences == [
        "blocks.0.ffn.up.weight: has shape [1], the plan says "
        + str(list(plan.layouts["blocks.0.ffn.up.weight"].slice_shape)),
        "final_norm.bias: is not on the rank, but on stage 0 of the plan",
    ]


@pytest.fixture(scope="module")
def pi() -> tuple[Plan, dict[str, Any]]:
    """A layer of pi with series activations by kernels on rank 3 of 2 x 2, cut by the optimizer and by rows of its
    tables, with fewer heads of keys and values, and recomputed in part: the plan and the child's report."""
    fields = ["num_layers=1", "siaf_position=product", "num_heads=4", "num_kv_heads=2", "ffn_hidden_size=512"]
    fields += ["vocab_size=512", "hidden_size=256", "seq_length=32"]
    overrides = [*TWO_BY_TWO, "parallel.optimizer_shard=true", "parallel.vocab_embedding=row", "train.batch_size=4"]
    overrides += ["parallel.recompute=selective", "tokenizer.vocab_size=512", *(f"model.{field}" for field in fields)]
    child = Path(__file__).with_name("custom_layout_child.py")
    done = subprocess.run([sys.executable, child, "pi/tiny", "3", *overrides], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return Plan.of(load_config("pi/tiny", overrides)), json.loads(done.stdout)


def test_custom_kernels_carry_their_layouts(pi: tuple[Plan, dict[str, Any]]) -> None:
    """Series activations by kernels: parameters cut, their gradients summed over the replicas, and nothing in a layer
    redistributed."""
    plan, raw = pi
    report = rehearsal._report(plan, raw)
    assert report.differences == []
    activations = [c for c in report.collectives if not c.parameter and ("Block" in c.scope or "Linear" in c.scope)]
    assert {c.kind for c in activations} == {"AllReduce"}
    assert [c.group_size for c in report.collectives if c.parameter.endswith("siaf.scale")] == [2]
    assert raw["layouts"]["blocks.0.ffn.siaf.scale"][:2] == [[2, 2], [-1, 0]]


def test_layouts_and_recomputed_probabilities(pi: tuple[Plan, dict[str, Any]]) -> None:
    plan, raw = pi
    layouts = {name: [*layout[:2], raw["parameters"].get(name)] for name, layout in raw["layouts"].items()}
    assert_layouts_agree(plan, {"held": [*raw["layouts"]], "layouts": layouts}, 0)
    again = Counter(raw["recomputed"])
    # the scores of the layer, and no product with a weight
    assert again["BatchMatMul"] == again["Softmax"] == 1 and again["MatMul"] == 0


def test_the_command_line_writes_a_report_and_strategy_files(command: tuple[dict[str, Any], Path]) -> None:
    printed, output = command
    (summary,) = printed["ranks"]
    assert printed["layers"] == [2, 2] and printed["micro_batches"] == [1, 1]
    assert summary["rank"] == 0 and summary["differences"] == []
    assert summary["collectives"][0].keys() == {"kind", "group_size", "count", "bytes"}
    (stored,) = json.loads((output / "report.json").read_text())["ranks"]
    assert stored["operators"] and (output / "strategy_rank_0.ckpt").stat().st_size > 0
    assert stored["operators"].keys() <= read_operator_strategies(output / "operators_rank_0.json").keys()


def test_operator_strategies_must_name_every_operator_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler knows stands in a file that it writes; here a stand-in writes it."""
    known = [OperatorStrategy(f"Default/model/{kind}-op0", ((2, 1), (1, 1))) for kind in ("MatMul", "Mul")]
    monkeypatch.setattr(
        rehearsal,
        "run_child",
        lambda config, rank, soc, output: write_operator_strategies(known, f"{output}/operators_rank_{rank}.json"),
    )
    for name, operators, message in (
        (
            "unknown",
            [*known, OperatorStrategy("Default/model/Mull-op0", ((2, 1), (1, 1)))],
            "Mull-op0: the model has no such operator; .* did you mean",
        ),
        ("missing", known[:1], "Default/model/Mul-op0 is missing"),
        (
            "devices",
            [OperatorStrategy("Default/model/MatMul-op0", ((3, 1), (1, 1))), known[1]],
            "3 must divide the 2 devices",
        ),
    ):
        path = tmp_path / f"{name}.json"
        write_operator_strategies(operators, path)
        config = load_config("alpha/tiny", ["parallel.data_parallel=2", f"parallel.operator_strategies={path}"])
        with pytest.raises(PlanError, match=message):
            rehearse(config, [0], progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["alpha", "pi"])
def test_composed_products_of_rounded_weights_are_cut_as_the_plan_says(family: str, dtype: str) -> None:
    """The operators that round a weight read the parameter, too."""
    config = load_config(f"{family}/tiny", [*CUT, f"model.compute_dtype={dtype}"])
    (report,) = rehearse(config, [0], "", progress=False)
    assert report.differences == []


@pytest.mark.slow
def test_saved_operator_strategies_make_the_same_graph(tmp_path: Path) -> None:
    config = load_config("alpha/tiny", [*TWO_BY_TWO, "model.num_layers=2"])
    (saved,) = rehearse(config, [0], "", tmp_path, progress=False)
    loading = replace(config, parallel={"operator_strategies": f"{tmp_path}/operators_rank_0.json"})
    (again,) = rehearse(loading, [0], "", progress=False)
    assert again.layouts == saved.layouts and totals(again.collectives) == totals(saved.collectives)


def test_bad_ranks_and_a_refusing_compiler_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["plan", "rehearse", "--config", "alpha/tiny", "--ranks", "9"]) == 2
    assert capsys.readouterr().err == "pangu plan: rank 9: the plan has 1 devices; ranks are 0 to 0\n"
    assert main(["plan", "rehearse", "--config", "alpha/tiny", "--ranks", "a"]) == 2
    assert "numbers with commas" in capsys.readouterr().err
    assert main(["plan", "rehearse", "--config", "pi/openpangu_7b"]) == 2
    assert "compute_dtype=bfloat16: ascend910 has no bfloat16; set model.compute_dtype=f" in capsys.readouterr().err
    said = (
        "[ERROR] PARALLEL(1,7f,python):2026-01-01-00:00:00.0.0 [mindspore/x/matmul_info.cc:1] Init] MatMulInfo7: 5 must"
        " divide 32\nTraceback"
    )
    monkeypatch.setattr(rehearsal.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", said))
    with pytest.raises(PlanError, match="rank 0: MindSpore refuses the plan: MatMulInfo7: 5 must divide 32; "):
        rehearsal.run_child(load_config("alpha/tiny"), 0, "")
    monkeypatch.setattr(rehearsal.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, -11, "", ""))
    with pytest.raises(PlanError, match="SIGSEGV"):
        rehearsal.run_child(load_config("alpha/tiny"), 0, "")


def test_an_unknown_mindspore_is_refused_before_anything_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import mindspore

    from pangu_ms.rehearsal import virtual_cluster

    environment, device = dict(os.environ), mindspore.get_context("device_target")
    monkeypatch.setattr(mindspore, "__version__", "9.9.9")
    monkeypatch.setattr(mindspore.context, "set_context", lambda **values: pytest.fail("the process is changed"))
    with pytest.raises(PlanError, match="rehearsal: not available: MindSpore 9.9.9"):
        virtual_cluster.enter(8, 0)
    assert os.environ == environment and mindspore.get_context("device_target") == device


def test_thinning_keeps_widths_and_degrees() -> None:
    config = load_config(
        "alpha/13b", ["parallel.pipeline_stage=4", "parallel.micro_batch_num=4", "parallel.stage_layers=[10,10,10,10]"]
    )
    thin = thinned(config, 2)
    assert thin.model.num_layers == 8 and Plan.of(thin).stage_layers == (2, 2, 2, 2)
    assert thin.model.hidden_size == config.model.hidden_size and thinned(config, 10) == config


def test_samples_have_every_stage_first_and_then_other_places() -> None:
    plan = Plan.of(
        load_config(
            "alpha/13b", ["parallel.pipeline_stage=4", "parallel.micro_batch_num=4", "parallel.data_parallel=4"]
        )
    )
    assert sample_ranks(plan) == [0, 4, 8, 12]
    assert sample_ranks(plan, 2) == [0, 12]
    more = sample_ranks(plan, 8)
    assert len(more) == 8 and Counter(plan.mesh.coordinate(r).stage for r in more) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert sample_ranks(plan, 99) == list(range(16))


def _exchanged(config, rank):
    """(group size, bytes) of every all-to-all of a rank, and the report."""
    report = rehearse(config, [rank], progress=False)[0]
    assert report.differences == []
    return [(one.group_size, one.bytes) for one in report.collectives if one.kind == "AlltoAll"], report


@pytest.mark.slow  # their number, and what the ranks compute: test_execute.py, experts on two ranks
@pytest.mark.parametrize(
    "ep, overrides, ranks",
    [
        (4, [], 2),
        (2, ["model.group_of_domain=[0,0]"], 2),
        (2, [], 1),
        (4, ["model.group_of_domain=[0,0]", "model.num_layers=3"], 4),
    ],
)
def test_tokens_travel_among_the_ranks_that_hold_a_group(ep, overrides, ranks) -> None:
    """Forward rows, numbers of rows, and results; backward the gradients of rows and of results. No other collective
    is larger than those of parameters: a forgotten layout would gather the experts."""
    sizes = ["model.num_layers=2", "model.hidden_size=48", "train.batch_size=2"]
    degrees = [f"parallel.data_parallel={ep}", f"parallel.expert_parallel={ep}"]
    config = load_config("sigma/tiny", [*sizes, *overrides, *degrees])
    found, report = _exchanged(config, ep - 1)
    sparse, here = config.model.num_layers - 1, 8 // ep
    rows = 2 * 128 * 48 * 4 * min(2, ranks)  # two sequences, in float32, with room for twice an even share
    counts = ranks * here * 4
    assert sorted(found) == sorted([(ranks, rows)] * 4 * sparse + [(ranks, counts)] * sparse) * (ranks > 1)
    of_experts = [one for one in report.collectives if "experts" in one.parameter]
    assert of_experts == [], "no other rank has the same experts"
    assert {c.kind for c in report.collectives} <= {"AllReduce", "AlltoAll"}


@pytest.mark.slow
def test_a_trillion_parameters_on_512_devices() -> None:
    """At full width, in the reading that lies on 64 expert ranks: 4 groups of 160. One dense layer and one sparse."""
    groups = f"model.group_of_domain={[domain % 4 for domain in range(40)]}"
    degrees = ["parallel.data_parallel=64", "parallel.expert_parallel=64", "parallel.model_parallel=8"]
    config = thinned(load_config("sigma/1t", [groups, *degrees]), 2)
    assert (config.model.num_layers, len(config.model.sparse_layers)) == (2, 1)
    found, report = _exchanged(config, 77)
    tokens, width, half = 8 * 1024, 5120, 2
    assert sorted(found) == [(16, 16 * 10 * 4)] + [(16, 2 * tokens * width * half)] * 4
    network = 2 * width * 20480 // 8 + 20480 // 8 + width
    assert sum(math.prod(report.slices[name]) for name in report.slices if name.startswith("query_layer.ffn.e")) == (
        10 * network
    )
    ends = [one for one in report.collectives if one.group_size == 8 and one.bytes == tokens * width * half]
    assert len(ends) == 8, "two forward and two backward in each layer, dense or sparse (Shoeybi et al. 2019)"


def test_thinning_keeps_layers_of_every_kind() -> None:
    config = load_config("sigma/1t")
    for layers in (2, 3, 10):
        kept = thinned(config, layers).model
        assert kept.num_layers == layers and 0 < len(kept.sparse_layers) < layers
    assert len(thinned(config, 10).model.sparse_layers) == 2
    assert thinned(load_config("sigma/tiny", ["model.num_dense_layers=0"]), 2).model.num_dense_layers == 0
