"""A plan as MindSpore's compiler understands it: the step of a virtual rank of each of two stages; see stages.py. Other
plans: tests/rehearsal/test_rehearse.py."""

import collections
import json
import re

import pytest

from pangu_ms.parallel.plan import Plan
from tests.parallel import stages as two_stages
from tests.parallel.common import assert_layouts_agree

NODE = re.compile(r"= (?:\w+(?:::\w+)*::)?(?:PrimFunc_)?(\w+)\(")


@pytest.fixture(scope="module")
def stages(made_once) -> list[tuple[Plan, dict]]:
    """Of the first rank of each stage of alpha, whose word table is tied, the plan, and of the compiled step {"nodes":
    [[kind, line]], "layouts": {name: [matrix, tensor map, slice shape]}, "held": names}."""
    graphs, found = made_once("stages", two_stages.make), []
    for case in two_stages.CASES:
        text = (graphs / f"{case}.ir").read_text(errors="ignore")
        graph = {
            "nodes": [(match[1], line) for line in text.splitlines() if (match := NODE.search(line))],
            "held": re.findall(r"^%para\d+_([^ :]+)", text, re.M),
            "layouts": json.loads((graphs / f"{case}.json").read_text()),
        }
        found.append((Plan.of(two_stages.config()), graph))
    return found


def count(graph: dict, mark: str = "") -> dict[str, int]:
    """Nodes of each kind whose line has a mark."""
    return collections.Counter(kind for kind, line in graph["nodes"] if mark in line)


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


def test_all_reduces_of_a_layer_are_megatrons(stages):
    """Over mp two forward and two backward in the layer of each stage, in both micro-batches: one more is a forgotten
    layout. Source: Shoeybi et al. 2019, section 3. Recomputation repeats the first of those forward."""
    for stage, (_, graph) in enumerate(stages):
        ranks = f"rank_list: ({4 * stage}, {4 * stage + 1})"
        lines = [line for kind, line in graph["nodes"] if kind == "AllReduce" and ranks in line]
        found = collections.Counter(
            re.search(r"instance name: (\w+?)_op_", line)[1] for line in lines if "_op_" in line
        )
        assert found == {"forward": 2 * (2 + 1), "gradforward": 2 * 2}


def test_a_tied_tables_gradient_counts_once_in_the_norm(stages):
    for stage, (plan, graph) in enumerate(stages):
        own = [name for name, (first, *_) in plan.parameter_stages.items() if first == stage]
        assert count(graph, "grad_scale: Bool(1)")["ExpandDims"] == len(own)
