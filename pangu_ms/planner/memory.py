"""The memory model: bytes on one device, line by line, each with its formula. No mindspore import.

The lines of parameters and moments are exact: float32 slices of the plan's layouts. The other lines are a model of what
MindSpore's graph keeps, which was never checked on a device. Left out are the statistics of norms, the masks and rotary
tables of a batch, and temporaries of the optimizer (activations have been freed by then).

Notation of the formulas: b sequences of a micro-batch, S sequence, E hidden_size, A width of all heads, H heads, F
ffn_hidden_size, V vocabulary.
"""

import dataclasses
import math
from dataclasses import dataclass

from pangu_ms.models.common.config import MASK_BYTES, Activation, ModelConfig
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import Chip
from pangu_ms.planner.slices import Slices, expert_padding, stage_kinds, trained

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
HCCL_BUFFER_BYTES = 2 * 200 * 10**6
"""Buffers of one communicator, one for sending and one for receiving, each HCCL_BUFFSIZE=200 MB. Source: CANN
documentation of that variable."""
FLASH_STATISTICS_BYTES = 64
"""Bytes of softmax statistics for each head and token: maximum and sum in float32, each repeated 8 times. Source:
outputs of flash_attention_score, [B, N, S, 8]."""


@dataclass(frozen=True)
class Line:
    """One item of a device's memory."""

    name: str
    bytes: int
    formula: str


def parameter_bytes(plan: Plan, stage: int) -> int:
    """Bytes of parameters (float32, int32) on a device of a stage: 4 * sum of the slices of `plan.layouts`."""
    slices = Slices(plan)
    return 4 * slices.stage(stage, slices.cut)


def optimizer_bytes(plan: Plan, stage: int) -> int:
    """Bytes of the two float32 moments of each parameter that is trained on a device of a stage."""
    slices = Slices(plan)
    return 8 * slices.stage(stage, trained(slices.cut))


def state_bytes(slices: Slices, stage: int) -> int:
    """Bytes of parameters, moments and gradients on a device of a stage: the least that a plan needs."""
    return 4 * slices.stage(stage, slices.cut) + 12 * slices.stage(stage, trained(slices.cut))


def micro_batch_size(plan: Plan) -> int:
    """Sequences b of a micro-batch of one replica."""
    return plan.config.train.batch_size // plan.num_micro_batches


def in_flight(plan: Plan, stage: int) -> int:
    """Number of micro-batches whose activations a stage holds at the same time under 1F1B: min(stages from here to the
    last, micro-batches).

    Source: Narayanan et al. 2021 (arXiv 2104.04473), section 2.2.
    """
    return min(plan.mesh.num_stages - stage, plan.num_micro_batches) if plan.mesh.num_stages > 1 else 1


def composed_attention(model: ModelConfig, chip: Chip) -> bool:
    """Whether attention writes its probabilities to memory: the chip has no flash attention, or not for this dtype,
    head size or dropout (ascend_ops/attention.py)."""
    whole_blocks = model.head_dim % 16 == 0 and model.head_dim <= 512
    fused = model.compute_dtype != "float32" and whole_blocks and model.dropout == 0.0
    return not (chip.flash_attention and fused)


def layer_activations(plan: Plan, layer: int, chip: Chip) -> list[Activation]:
    """Activations that one layer keeps for one sequence on one device with recompute=none: norms and attention, which
    all families have, and those of `feed_forward_activations`.

    For alpha this is Korthikanti et al. 2022 (arXiv 2205.05198), eq. 1, 2 and 4, S E (34 + 5 H S / E) in 2 bytes with
    dropout, but for: dropout factors of 4 bytes instead of 1 (+6 S E, +3 H S^2); softmax in float32 (+2 H S^2); with
    sequence_parallel the gathered inputs of the products stay gathered, where Megatron gathers them again (+4 S E (1 -
    1/mp)). With flash attention the H S^2 terms are replaced by two numbers for each row.
    """
    model, mp = plan.config.model, plan.config.parallel.model_parallel
    sizes, c, S = model.axis_sizes(), DTYPE_BYTES[model.compute_dtype], model.seq_length
    cut = math.prod(dict(plan.mesh.axes)[name] for name in plan.rules["sequence"])
    stream = c * S * sizes["embed"]
    # sequence_parallel cuts the inputs of the norms; their outputs, inputs of matrix products, stay gathered.
    return [
        Activation("inputs of the two norms", 2 * stream // cut, count=2),
        Activation("outputs of the two norms", 2 * stream, count=2),
        Activation("queries and context", 2 * c * S * sizes["heads"] // mp, count=2),
        Activation("keys and values", 2 * c * S * sizes["kv_heads"] // mp, count=2),
        *_attention(model, chip, c, mp),
        *(_padded(plan, one) for one in model.feed_forward_activations(layer, c, mp, cut)),
    ]


def _padded(plan: Plan, activation: Activation) -> Activation:
    size = int(activation.bytes * expert_padding(plan)) if activation.routed else activation.bytes
    return dataclasses.replace(activation, bytes=size)


def _attention(model: ModelConfig, chip: Chip, c: int, mp: int) -> list[Activation]:
    H, S, dropout = model.num_heads, model.seq_length, model.dropout > 0
    if not composed_attention(model, chip):
        return [Activation("softmax statistics", FLASH_STATISTICS_BYTES * H * S // mp, count=0)]
    product = c if dropout or c != 4 else 0  # input of the second product, unless that is the softmax's output itself
    kept = [("softmax", 4, 1), ("attention dropout", MASK_BYTES * dropout, 0), ("probabilities", product, 1)]
    return [Activation(name, size * H * S * S // mp, selective=True, count=count) for name, size, count in kept if size]


def stage_memory(plan: Plan, stage: int, chip: Chip, slices: Slices) -> list[Line]:
    """All memory lines of a device of one stage. The backward passes of the head and of the layers run one after the
    other, so only the larger one counts."""
    stored, working = _activations(plan, stage, chip)
    head = _head(plan, stage, slices)
    larger = max(working, head, key=lambda lines: sum(line.bytes for line in lines))
    return [
        *_state(plan, stage, slices),
        *_weights(plan, stage, slices),
        *stored,
        *larger,
        *_buffers(plan, stage, chip),
    ]


def _state(plan: Plan, stage: int, slices: Slices) -> list[Line]:
    values, moved = slices.stage(stage, slices.cut), slices.stage(stage, trained(slices.cut))
    shard = ", cut over equal replicas" if plan.config.parallel.optimizer_shard else ""
    lines = [
        Line("parameters", 4 * values, f"4 * {values:,} values{shard}"),
        Line("moments", 8 * moved, f"2 * 4 * {moved:,}"),
    ]
    # All gradients stay until the global norm is known. optimizer_shard does not shard the sums over micro-batches,
    # since MindSpore reduces them only once per step.
    lines.append(Line("gradients", 4 * moved, f"4 * {moved:,}, float32"))
    if plan.num_micro_batches > 1 and shard:
        plain = slices.stage(stage, trained(slices.plain))
        lines.append(Line("sums over micro-batches", 4 * plain, f"4 * {plain:,}, not cut by the optimizer"))
    if plan.config.parallel.optimizer_shard or plan.num_micro_batches > 1:
        largest = slices.largest(stage, trained(slices.plain))
        lines.append(
            Line(
                "gradient of one layer",
                4 * largest,
                f"4 * {largest:,}: the largest layer or table before it is reduced or added",
            )
        )
    return lines


def _weights(plan: Plan, stage: int, slices: Slices) -> list[Line]:
    """Copies of the parameters that matrix products read, after cast and gather. With full recomputation the backward
    pass casts again; gathered parameters stay for the whole step."""
    parallel, dtype = plan.config.parallel, plan.config.model.compute_dtype
    c = DTYPE_BYTES[dtype]
    if c == 4 and not parallel.optimizer_shard:
        return []
    if parallel.recompute != "full" or parallel.optimizer_shard:
        values, tables = (
            slices.stage(stage, slices.plain),
            sum(slices.outer(stage, part) for part in slices.sharded.values()),
        )
        formula = f"{c} * {values:,}, whole stage: kept for the step" + (
            f"; 4 * {tables:,} of gathered tables" if tables else ""
        )
        return [Line(f"weights in {dtype}", c * values + 4 * tables, formula)]
    values = slices.largest(stage, slices.plain)
    return [Line(f"weights in {dtype}", c * values, f"{c} * {values:,}: the largest layer or table")]


def _activations(plan: Plan, stage: int, chip: Chip) -> tuple[list[Line], list[Line]]:
    """Two groups of lines: activations that are stored for the backward pass, and what the backward pass of one layer
    needs in addition."""
    model, mode, b, flight = (
        plan.config.model,
        plan.config.parallel.recompute,
        micro_batch_size(plan),
        in_flight(plan, stage),
    )
    kinds = {kind: layer_activations(plan, kind, chip) for kind in stage_kinds(plan, stage)}
    total = {kind: sum(k.bytes for k in kept) for kind, kept in kinds.items()}
    again = {kind: sum(k.bytes for k in kept if k.selective) for kind, kept in kinds.items()}
    layer_input = {kind: kept[0].bytes // 2 for kind, kept in kinds.items()}  # one of the two norms' inputs
    left = {"none": total, "selective": {k: total[k] - again[k] for k in kinds}, "full": layer_input}[mode]
    size = sum(n * left[kind] for kind, n in stage_kinds(plan, stage).items())
    stored = [
        Line(
            "activations",
            flight * b * size,
            f"{flight} in flight * b={b} * {size:,} of {plan.stage_layers[stage]} layers, recompute={mode}",
        )
    ]
    if stage == 0 and model.dropout:
        mask = MASK_BYTES * model.seq_length * model.hidden_size
        stored.append(
            Line(
                "embedding dropout",
                flight * b * mask,
                f"{flight} * b={b} * {MASK_BYTES} * S={model.seq_length} * E={model.hidden_size}",
            )
        )
    widest, name = max((k.bytes // k.count, k.name) for kept in kinds.values() for k in kept if k.count)
    working = [
        Line(
            "activation gradients",
            2 * b * widest,
            f"2 * b={b} * {widest:,}: into and out of the largest tensor, of {name}",
        )
    ]
    if mode != "none":
        redone = max((again if mode == "selective" else total).values())
        working.append(Line("recomputed layer", b * redone, f"b={b} * {redone:,} of one layer"))
    return stored, working


def _head(plan: Plan, stage: int, slices: Slices) -> list[Line]:
    """The last stage's line for the input and output of the final norm, the logits, and in float32 their log-softmax
    and its gradient."""
    if stage < plan.mesh.num_stages - 1:
        return []
    model, b = plan.config.model, micro_batch_size(plan)
    c, vocab = DTYPE_BYTES[model.compute_dtype], model.vocab_size // slices.devices("vocab")
    size = b * model.seq_length * (2 * c * model.hidden_size + (c + 8) * vocab)
    return [
        Line(
            "head and loss",
            size,
            f"b={b} * S={model.seq_length} * (2 * {c} * E={model.hidden_size} + ({c} + 4 + 4) * V={vocab:,})",
        )
    ]


def _buffers(plan: Plan, stage: int, chip: Chip) -> list[Line]:
    sizes, pp = dict(plan.mesh.axes), plan.mesh.num_stages
    groups = ["all"] if plan.mesh.world > 1 else []
    groups += [name for name, size in sizes.items() if size > 1]
    groups += (["previous stage"] if stage > 0 else []) + (["next stage"] if stage < pp - 1 else [])
    lines = (
        [Line("communicators", HCCL_BUFFER_BYTES * len(groups), f"2 * 200 MB * {len(groups)}: {', '.join(groups)}")]
        if groups
        else []
    )
    return [*lines, Line("runtime", chip.reserve_bytes, "reserve, assumed")]
