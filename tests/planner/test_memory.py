"""Bytes against closed forms, sums over devices and the literature's activation formula."""

import math

import pytest

from pangu_ms.config import load_config
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner import memory
from pangu_ms.planner.cluster import CHIPS
from pangu_ms.planner.slices import Slices, distinct_stages

A910, A910B = CHIPS["ascend910"], CHIPS["ascend910b"]


def plan(name, *fields):
    return Plan.of(load_config(name, [f if "." in f.partition("=")[0] else f"parallel.{f}" for f in fields]))


def lines(laid, stage, chip=A910):
    return {line.name: line.bytes for line in memory.stage_memory(laid, stage, chip, Slices(laid))}


def kept(laid, layer=0, chip=A910):
    """Bytes of a layer for one sequence: (all, what selective recomputation drops)."""
    tensors = memory.layer_activations(laid, layer, chip)
    return sum(t.bytes for t in tensors), sum(t.bytes for t in tensors if t.selective)


PLANS = [
    ("alpha/tiny", "data_parallel=2"),
    ("alpha/2_6b", "data_parallel=4", "model_parallel=2", "optimizer_shard=true"),
    (
        "alpha/2_6b",
        "data_parallel=2",
        "model_parallel=2",
        "pipeline_stage=4",
        "micro_batch_num=4",
        "vocab_embedding=row",
        "optimizer_shard=true",
    ),
    (
        "pi/openpangu_7b",
        "data_parallel=2",
        "model_parallel=4",
        "pipeline_stage=2",
        "micro_batch_num=2",
        "optimizer_shard=true",
        "train.batch_size=2",
    ),
    (
        "pi/tiny",
        "model_parallel=2",
        "pipeline_stage=3",
        "micro_batch_num=4",
        "model.tie_word_embeddings=true",
        "model.siaf_mode=matrices",
    ),
]


@pytest.mark.parametrize("case", PLANS)
def test_parameters_and_moments_are_the_slices_of_the_layouts(case):
    laid = plan(*case)
    everywhere = 0
    for stage in range(laid.mesh.num_stages):
        held = 0
        for name in laid.stage_parameters(stage):
            slices = laid.layouts[name].slices(0)
            held += 4 * math.prod(part.stop - part.start for part in slices)
        assert memory.parameter_bytes(laid, stage) == held and memory.optimizer_bytes(laid, stage) == 2 * held
        shown = lines(laid, stage)
        assert (shown["parameters"], shown["moments"], shown["gradients"]) == (held, 2 * held, held)
        everywhere += held * laid.mesh.stage_size
    shapes = laid.config.model.parameter_shapes()
    copies = {
        name: laid.mesh.stage_size // math.prod(layout.counts) * len(laid.parameter_stages[name])
        for name, layout in laid.layouts.items()
    }
    assert everywhere == sum(4 * math.prod(shape) * copies[name] for name, shape in shapes.items())


def test_tensor_parallel_alpha_by_hand():
    laid, (E, L, V, S) = plan("alpha/13b", "model_parallel=8"), (5120, 40, 40000, 1024)
    layer = 12 * E * E // 8 + 7 * E // 8 + 2 * E + 4 * E  # matrices; biases of q, k, v, up; of output and down; norms
    assert memory.parameter_bytes(laid, 0) == 4 * (L * layer + V * E + 2 * S * E + 2 * E)
    rows = plan("alpha/13b", "model_parallel=8", "vocab_embedding=row")
    assert memory.parameter_bytes(laid, 0) - memory.parameter_bytes(rows, 0) == 4 * V * E * 7 // 8
    replicas = plan("alpha/13b", "data_parallel=64")
    assert memory.parameter_bytes(replicas, 0) == 4 * replicas.config.model.num_parameters()


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_of_alpha_are_those_of_korthikanti(t, dropout):
    S, E, H = 1024, 5120, 40
    scores = H * S * S // t
    with_masks = dropout > 0
    theirs = (
        S * E * (8 + 2 * with_masks) + 24 * S * E // t + (5 if with_masks else 2) * scores
    )  # 34 and 5 with 1-byte masks, tensor parallel
    ours, dropped = kept(plan("alpha/13b", f"model_parallel={t}", f"model.dropout={dropout}"))
    assert (
        ours - theirs == with_masks * (6 * S * E + 3 * scores) + (2 if with_masks else 4) * scores
    )  # 4-byte masks; softmax in float32 beside its cast
    assert dropped == (10 if with_masks else 6) * scores + 2 * S * 4 * E // t
    if t > 1:
        theirs = ((34 if with_masks else 32) * S * E + (5 if with_masks else 2) * H * S * S) // t
        ours, _ = kept(plan("alpha/13b", f"model_parallel={t}", "sequence_parallel=true", f"model.dropout={dropout}"))
        gathered = 4 * S * E - 4 * S * E // t
        assert (
            ours - theirs == gathered + with_masks * (6 * S * E // t + 3 * scores) + (2 if with_masks else 4) * scores
        )
    query, _ = kept(plan("alpha/13b", f"model_parallel={t}", f"model.dropout={dropout}"), layer=39)
    assert query - kept(plan("alpha/13b", f"model_parallel={t}", f"model.dropout={dropout}"))[0] == 2 * S * E


def test_attention_is_written_out_where_no_flash_attention_computes_it():
    S, H = 1024, 40
    plain = plan("alpha/13b", "model.dropout=0.0")
    assert kept(plain)[0] - kept(plain, chip=A910B)[0] == 6 * H * S * S - 64 * H * S
    assert kept(plan("alpha/13b"), chip=A910B) == kept(
        plan("alpha/13b")
    )  # with dropout our attention is composed everywhere
    assert memory.composed_attention(
        plan("alpha/13b", "model.dropout=0.0", "model.compute_dtype=float32").config.model, A910B
    )
    fields = ["model.dropout=0.0", "model.compute_dtype=float32"]
    assert (
        kept(plan("alpha/13b", *fields))[0] == 4 * (S * 5120 * 16) + 4 * H * S * S
    )  # float32: the softmax is what the product reads


def test_activations_of_pi_by_hand():
    S, E, F, KV, H, mp = 2048, 1792, 4864, 1792, 14, 2
    fields = ["model_parallel=2", "train.accumulation_steps=1", "model.num_kv_heads=14"]

    def layer(*more):
        return kept(plan("pi/1b_pro", *fields, *more), chip=A910B)[0]

    common = 2 * S * (2 * E + 2 * E) + 2 * S * (2 * E + 2 * KV) // mp + 64 * H * S // mp
    siaf, branch = 3 * 2 * S * F // mp, 2 * 2 * S * E // 32
    assert layer("model.siaf_terms=1", "model.aug_shortcut_branches=0") == common + siaf
    assert (
        layer("model.siaf_terms=2", "model.aug_shortcut_branches=2") == common + siaf + 2 * branch
    )  # a series needs nothing more
    assert (
        layer("model.siaf_terms=2", "model.aug_shortcut_branches=0", "model.siaf_position=product")
        == common + 4 * 2 * S * F // mp
    )
    assert (
        layer("model.siaf_terms=3", "model.aug_shortcut_branches=0", "model.siaf_mode=matrices")
        == common + 5 * 2 * S * F // mp
    )
    assert (
        layer("model.siaf_terms=1", "model.aug_shortcut_branches=0", "model.num_kv_heads=2")
        == common + siaf - 2 * 2 * S * (KV - KV // 7) // mp
    )


def test_pipeline_stages_hold_their_micro_batches_in_flight():
    S, E, b = 1024, 5120, 2
    fields = [
        "pipeline_stage=4",
        "micro_batch_num=3",
        "recompute=full",
        "train.batch_size=6",
        "stage_layers=[10,10,10,10]",
    ]

    def stored(fields, stage):
        return lines(plan("alpha/13b", *fields), stage)["activations"]

    fields[1] = "micro_batch_num=6"
    fields[3] = "train.batch_size=12"
    assert [stored(fields, s) for s in range(4)] == [flight * b * 10 * 2 * S * E for flight in (4, 3, 2, 1)]
    fields[0], fields[1], fields[4] = "pipeline_stage=2", "micro_batch_num=2", "stage_layers=[20,20]"
    assert [stored(fields, s) for s in range(2)] == [flight * 6 * 20 * 2 * S * E for flight in (2, 1)]
    one = ["recompute=full", "train.batch_size=12", "train.accumulation_steps=6"]
    assert stored(one, 0) == b * 40 * 2 * S * E  # accumulation without stages has one at a time


def test_recompute_gives_memory_back_for_one_layer():
    modes = {
        mode: lines(plan("alpha/13b", "model_parallel=8", f"recompute={mode}"), 0)
        for mode in ("none", "selective", "full")
    }
    laid = plan("alpha/13b", "model_parallel=8")
    whole, dropped = kept(laid)
    extra = kept(laid, 39)[0] - whole
    stored = {mode: found["activations"] // 8 for mode, found in modes.items()}
    assert stored == {
        "none": 40 * whole + extra,
        "selective": 40 * (whole - dropped) + extra,
        "full": 40 * 2 * 1024 * 5120,
    }
    assert (
        modes["none"]["weights in float16"] == memory.parameter_bytes(laid, 0) // 2
    )  # kept from the forward to the backward pass
    assert (
        modes["full"]["weights in float16"] == 2 * 40000 * 5120
    )  # only the word table, larger than a layer on 8 devices


def test_optimizer_shard_cuts_state_and_adds_whole_layers():
    plain, cut = (
        plan("alpha/13b", "data_parallel=4", "model_parallel=4", f"optimizer_shard={flag}", "recompute=full")
        for flag in ("false", "true")
    )
    tables = (
        40000 + 2 * 1024
    ) * 5120  # whole on each of the 4 model_parallel devices, so cut over 16; small parameters stay whole
    assert memory.parameter_bytes(cut, 0) == pytest.approx(4 * (40 * 12 * 5120**2 + tables) / 16, rel=3e-3)
    assert memory.parameter_bytes(plain, 0) == pytest.approx(4 * (40 * 12 * 5120**2 / 4 + tables), rel=1e-3)
    kept = plan("alpha/13b", "data_parallel=4", "model_parallel=4", "optimizer_shard=true")
    assert (
        lines(kept, 0)["weights in float16"] == memory.parameter_bytes(plain, 0) // 2 + 4 * tables
    )  # tables are gathered in float32
    before, after = lines(plain, 0), lines(cut, 0)
    assert "gradient of one layer" not in before and after["gradient of one layer"] == 4 * 40000 * 5120
    assert (
        after["weights in float16"] == lines(kept, 0)["weights in float16"]
    )  # gathered once a step, whatever is recomputed
    sums = plan(
        "alpha/13b",
        "data_parallel=4",
        "model_parallel=4",
        "optimizer_shard=true",
        "recompute=full",
        "train.accumulation_steps=2",
    )
    assert lines(sums, 0)["sums over micro-batches"] == memory.parameter_bytes(
        plain, 0
    )  # MindSpore's accu_grads, which the optimizer does not cut
    assert lines(sums, 0)["gradients"] == memory.parameter_bytes(cut, 0) and "sums over micro-batches" not in after
    assert before["communicators"] == after["communicators"] == 3 * 400_000_000  # all, dp, mp


def test_the_last_stage_has_the_logits():
    fields = ["model_parallel=8", "pipeline_stage=2", "micro_batch_num=8", "recompute=none", "model.seq_length=128"]
    whole, rows = (lines(plan("alpha/13b", *fields, f"vocab_embedding={how}"), 1) for how in ("replicated", "row"))
    assert whole["head and loss"] == 128 * (2 * 2 * 5120 + 10 * 40000) and "head and loss" not in lines(
        plan("alpha/13b", *fields), 0
    )
    assert rows.get("head and loss", 128 * (2 * 2 * 5120 + 10 * 5000)) == 128 * (2 * 2 * 5120 + 10 * 5000)


def test_a_later_stage_of_a_sort_never_holds_more():
    laid = plan("alpha/13b", "pipeline_stage=8", "micro_batch_num=8", "model_parallel=2")
    totals = [sum(lines(laid, s).values()) for s in range(8)]
    shown = [stage for stage, _ in distinct_stages(laid)]
    assert (
        max(totals) == max(totals[s] for s in shown)
        and sum(count for _, count in distinct_stages(laid)) == 8
        and len(shown) < 8
    )
