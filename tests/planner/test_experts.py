"""Experts in plans: where groups may end, and their bytes and seconds against closed forms."""

import json
import re

import numpy as np
import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.config.parallel import group_owners
from pangu_ms.core.errors import ConfigError
from pangu_ms.parallel.flops import layer_flops_per_token, model_flops_per_token
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import CHIPS, GIB
from pangu_ms.planner.estimate import Estimate
from pangu_ms.planner.memory import layer_activations, optimizer_bytes, parameter_bytes
from pangu_ms.planner.slices import expert_padding

A910 = CHIPS["ascend910"]
RATE = A910.peak_flops * A910.achievable
S, E, F, L, V, K, N = 1024, 5120, 20480, 40, 40000, 640, 8
FOUR_GROUPS = f"model.group_of_domain={[domain % 4 for domain in range(40)]}"


def config(*fields, name="sigma/1t"):
    return load_config(name, [f if "." in f.partition("=")[0] else f"parallel.{f}" for f in fields])


def ranks(dp, ep, mp=8):
    return [f"data_parallel={dp}", f"expert_parallel={ep}", f"model_parallel={mp}"]


def estimate(*fields, chip=A910):
    return Estimate.of(Plan.of(config(*fields)), chip)


def terms(*fields):
    return {term.name: term.seconds for term in estimate(*fields).terms}


# Where groups may end


def brute_force(sizes, ep):
    """Whether no rank has experts of two groups one of which is not whole on it; by listing every expert."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    on_rank = [set(part) for part in np.split(group, ep)]
    whole = [sum(g in here for here in on_rank) == 1 for g in range(len(sizes))]
    return all(len(here) == 1 or all(whole[g] for g in here) for here in on_rank)


def test_groups_end_where_ranks_end_against_a_list_of_all_experts():
    generator, both = np.random.default_rng(0), set()
    for _ in range(300):
        sizes = tuple(int(n) for n in generator.choice([1, 2, 3, 4, 8], generator.integers(1, 9)))
        for ep in (n for n in range(1, sum(sizes) + 1) if sum(sizes) % n == 0):
            owners = group_owners(sizes, ep)
            assert (owners is not None) == brute_force(sizes, ep), (sizes, ep)
            both.add(owners is None)
            if owners:
                held = np.split(np.repeat(np.arange(len(sizes)), sizes), ep)
                assert [list(r) for r in owners] == [
                    [rank for rank in range(ep) if group in held[rank]] for group in range(len(sizes))
                ]
    assert both == {True, False}


def test_a_plan_whose_ranks_would_share_groups_is_refused_with_what_works(capsys):
    assert main(["plan", "show", "--config", "sigma/1t", *(f"parallel.{field}" for field in ranks(64, 64))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "parallel.expert_parallel=64: a rank would have 10 experts, and the model has 40 groups of 16; groups must end"
        " where ranks end; use one of 1, 2, 4, 8, or with another data_parallel one of 5, 10, 20, 40, 80, 160, 320, 640"
    ) in error
    here, others = (re.findall(r"\d+", part) for part in re.findall(r"one of ([\d, ]+)", error))
    for ep in here:
        assert Plan.of(config(*ranks(64, ep))).mesh.world == 512
    for ep in others:
        assert Plan.of(config(*ranks(ep, ep)))
    assert main(["plan", "show", "--config", "sigma/1t", *(f"parallel.{f}" for f in ranks(64, 64)), FOUR_GROUPS]) == 0
    assert "512 devices" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("sigma/1t", ranks(48, 48), "expert_parallel=48: must divide the model's num_experts=640; use one of 1, 2, 4,"),
        (
            "sigma/tiny",
            ["model.group_sizes=[5,3]", *ranks(4, 4, 1)],
            "expert_parallel=4: a rank would have 2 experts, and the model has 2 groups of 5, 3; groups must end",
        ),
        ("sigma/tiny", ["model.group_sizes=[5,3]", *ranks(2, 2, 1)], "use one of 1, or with another data_parallel"),
        (
            "sigma/tiny",
            ["model.slot_of_domain=[0,1]", "vocab_embedding=row", *ranks(2, 2, 2)],
            "vocab_embedding=row: the word tables of several slots are read as one table",
        ),
        (
            "sigma/tiny",
            ["model.num_experts=0", "model.num_dense_layers=4", *ranks(2, 2, 1)],
            "=2: this sigma model has no experts; use 1",
        ),
    ],
)
def test_other_plans_of_experts_that_are_refused(name, fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(*fields, name=name)


def test_a_group_may_have_more_ranks_than_another():
    assert Plan.of(config("model.group_sizes=[6,2]", *ranks(4, 4, 1), name="sigma/tiny"))


# Bytes and seconds


def test_experts_count_once_for_time():
    model = config().model
    layer = 24 * E * E + 4 * S * E  # of a token, dense or sparse alike (Narayanan et al.)
    assert {layer_flops_per_token(model, i) for i in range(L)} == {layer}
    assert model_flops_per_token(model) == L * layer + 2 * V * E
    dense = load_config("alpha/13b").model
    assert model_flops_per_token(model) == model_flops_per_token(dense)
    tokens = 8 * S
    for fields in (ranks(1, 1, 1), ranks(40, 40, 1), ranks(64, 8, 1)):
        assert terms(*fields)["compute"] == pytest.approx(3 * (L * layer + 2 * V * E) * tokens / RATE)
    assert terms(*ranks(40, 40, 8))["compute"] == pytest.approx(3 * (L * layer / 8 + 2 * V * E) * tokens / RATE)


@pytest.mark.parametrize("dp, ep", [(1, 1), (64, 8), (40, 40), (80, 40), (640, 640)])
def test_a_device_holds_its_share_of_the_experts_and_of_their_moments(dp, ep):
    plan = Plan.of(config(*ranks(dp, ep, 1)))
    network = 2 * E * F + F + E
    dense = V * E + 2 * S * E + 2 * E + L * (4 * (E * E + E) + 4 * E) + (L - N) * network
    assert parameter_bytes(plan, 0) == 4 * (dense + N * 40 * V + N * K // ep * network)
    assert optimizer_bytes(plan, 0) == 8 * (dense + N * K // ep * network)


def test_gradients_of_experts_are_reduced_over_the_replicas_of_their_devices():
    """With dp = ep no other device has a slice's experts; with dp = 2 ep one has."""
    network = 2 * E * F + F + E
    for dp, of_experts in ((40, 0), (80, N * 16 * network)):
        dense = V * E + 2 * S * E + 2 * E + L * (4 * (E * E + E) + 4 * E) + (L - N) * network
        ring = 0.5 * 2 * 4 / A910.roce_bandwidth
        expected = ring * ((dp - 1) / dp * dense + 1 / 2 * of_experts)
        assert terms(*ranks(dp, 40, 1))["reduce gradients"] == pytest.approx(expected)


def test_all_to_all_among_the_owners_of_a_group():
    stream, latency = 8 * S * E * 2, A910.message_seconds
    assert "all-to-all" not in terms(*ranks(40, 40)), "each rank has a whole group"
    assert "all-to-all" not in terms(*ranks(64, 8)), "each rank has five groups"
    assert "all-to-all" not in {term.name for term in Estimate.of(Plan.of(load_config("alpha/13b")), A910).terms}
    tight = "expert_capacity_factor=1"
    found = terms(*ranks(64, 64), FOUR_GROUPS, tight)["all-to-all"]
    assert found == pytest.approx(N * 4 * (15 * latency + 15 / 16 * stream / 12.5e9))  # 16 servers: RoCE
    fields = (FOUR_GROUPS, "recompute=full", "train.accumulation_steps=4", "expert_capacity_factor=1.5")
    found = terms(*ranks(64, 64), *fields)["all-to-all"]
    assert found == pytest.approx(4 * N * 6 * (15 * latency + 15 / 16 * 1.5 * stream / 4 / 12.5e9))
    found = terms(*ranks(160, 160, 1), tight)["all-to-all"]
    assert found == pytest.approx(N * 4 * (3 * latency + 3 / 4 * stream / 90e9))  # four cards of a server: HCCS
    stages = ["pipeline_stage=4", "micro_batch_num=8", "stage_layers=[12,12,12,4]", tight]
    found = terms(*ranks(160, 160, 1), *stages)["all-to-all"]
    assert found == pytest.approx(8 * 4 * 4 * (3 * latency + 3 / 4 * stream / 8 / 12.5e9)), "stages lie between"


def test_padding_costs_products_activations_and_traffic():
    network, tokens = 2 * E * F, 8 * S
    one, two, all_rows = (estimate(*ranks(64, 64, 1), FOUR_GROUPS, f"expert_capacity_factor={n}") for n in (1, 2, 0))
    seconds = [{term.name: term.seconds for term in each.terms} for each in (one, two, all_rows)]
    extra = 3 * 2 * N * network * tokens / RATE
    assert seconds[1]["compute"] - seconds[0]["compute"] == pytest.approx(extra)
    assert seconds[2]["compute"] - seconds[0]["compute"] == pytest.approx(15 * extra)
    assert seconds[2]["all-to-all"] > 7 * seconds[1]["all-to-all"]
    kept = [sum(line.bytes for line in each.memory[0] if line.name == "activations") for each in (one, two)]
    assert kept[1] - kept[0] == 8 * N * 2 * S * (2 * F + 2 * E)


@pytest.mark.parametrize("ep, padding", [(1, 1), (2, 1), (4, 1), (8, 1)])
def test_a_learned_router_always_has_room_for_all_that_can_come(ep, padding):
    """8 of 64 experts, one in each of 8 groups: a rank with whole groups gets as many rows as it has groups."""
    plan = Plan.of(config(f"data_parallel={ep}", f"expert_parallel={ep}", name="moge/72b"))
    assert expert_padding(plan) == padding
    rows = [plan.config.model.most_experts_on_a_rank(ranks) for ranks in (1, 2, 8, 16, 64)]
    assert rows == [8, 4, 1, 1, 1]


def test_a_sparse_layer_keeps_the_rows_sorted_by_expert():
    plan = Plan.of(config(*ranks(40, 40, 1)))
    kept = [sum(tensor.bytes for tensor in layer_activations(plan, layer, A910)) for layer in (31, 32)]
    assert kept[1] - kept[0] == 2 * 2 * S * E  # in float16


def test_estimate_shows_the_exchange_as_a_line_of_its_own(capsys):
    fields = [f"parallel.{field}" for field in ranks(64, 64)]
    code = main(["plan", "estimate", "--config", "sigma/1t", *fields, FOUR_GROUPS, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert code == (shown["gib"] * GIB > A910.hbm_bytes) and "all-to-all" in json.dumps(shown)


def test_the_search_chooses_expert_parallel(capsys):
    """22 B parameters in float32 with moments and gradients do not fit without it; its line of overrides is a plan."""
    words = ["plan", "search", "--config", "sigma/22b"]
    assert main([*words, "--devices", "32", "--global-batch", "32", "--hbm", "32GiB", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    found = [int(re.search(r"expert_parallel=(\d+)", " ".join(plan["overrides"]))[1]) for plan in plans]
    assert found[0] > 1 and len(set(found)) > 1
    best = Estimate.of(Plan.of(load_config("sigma/22b", plans[0]["overrides"])), A910)
    assert best.excess <= 0 and best.plan.mesh.world == 32
    assert best.tokens_per_second == pytest.approx(plans[0]["tokens_per_second"])
    assert main([*words, "--devices", "4", "--global-batch", "8", "--hbm", "512GiB", "--top", "2"]) == 0
    assert re.search(r"^ *dp +ep +mp +pp", capsys.readouterr().out, re.MULTILINE)
