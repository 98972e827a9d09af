"""The time model: seconds of one training step, term by term, each with its formula. No mindspore import.

The model was never checked on a device. It assumes matrix products at a share of the chip's peak that was fitted on one
published run, ring collectives at the link's published rate, and the 1F1B schedule. It assumes that a micro-batch of
one sequence is as efficient as a large one, that all cards are equally fast, and that all experts get equally many
tokens. Left out are latencies but for those of all-to-all exchanges, the norm of the gradient, the exchange of a table
that two stages share, reading records and writing checkpoints.
"""

import math
from dataclasses import dataclass

from pangu_ms.config.parallel import owner_blocks
from pangu_ms.parallel.flops import model_flops_per_token
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import Chip, bandwidth, link
from pangu_ms.planner.memory import DTYPE_BYTES, composed_attention, micro_batch_size
from pangu_ms.planner.slices import Slices, distinct_stages, expert_padding, has_experts, stage_kinds, trained

MFU_FORMULA = (
    "tokens/s per card * 3 * forward FLOP per token / peak; attention not halved for the causal mask, recomputation not"
    " counted"
)


@dataclass(frozen=True)
class Term:
    """One part of a step's time."""

    name: str
    seconds: float
    formula: str


def tokens_per_step(plan: Plan) -> int:
    """Tokens that all replicas read in a step."""
    return plan.config.global_batch_size * plan.config.model.seq_length


def mfu(plan: Plan, chip: Chip, tokens_per_second_per_device: float) -> float:
    """Model FLOPs utilization; see MFU_FORMULA."""
    # The backward pass has two products for each one of the forward pass.
    return tokens_per_second_per_device * 3 * model_flops_per_token(plan.config.model) / chip.peak_flops


def step_terms(plan: Plan, chip: Chip, slices: Slices) -> list[Term]:
    """The terms of a step; their sum is its time.

    Under 1F1B a step takes m micro-batches on the slowest stage and one on each of the others. Source: Narayanan et al.
    2021 (arXiv 2104.04473), section 2.2, whose bubble (p - 1) / m is the special case of equal stages.
    """
    m = plan.num_micro_batches
    stages = [
        (_compute(plan, chip, slices, stage), _tensor_parallel(plan, chip, stage), count)
        for stage, count in distinct_stages(plan)
    ]
    compute, exchange, _ = max(stages, key=lambda stage: stage[0] + stage[1])
    micro = compute + exchange
    every = sum((c + e) * count for c, e, count in stages)
    pp, above = plan.mesh.num_stages, micro * plan.mesh.num_stages / every - 1
    rate = f"{chip.peak_flops / 1e12:g} TFLOPS * {chip.achievable:g}"
    terms = [Term("compute", m * compute, f"{m} micro-batches * {compute * 1e3:.2f} ms, slowest stage, at {rate}")]
    if exchange:
        speed, link = bandwidth(chip, plan.mesh, ("mp",))
        formula = (
            f"{m} * {exchange * 1e3:.2f} ms: ring all-reduce over mp={plan.config.parallel.model_parallel} at"
            f" {speed / 1e9:g} GB/s {link}, not hidden"
        )
        terms.append(Term("tensor parallel", m * exchange, formula))
    if pp > 1:
        formula = (
            f"one micro-batch of the other {pp - 1} stages; (pp - 1) / m = {(pp - 1) / m:.3f}; slowest stage"
            f" {above:.1%} above the mean"
        )
        terms += [Term("pipeline bubble", every - micro, formula), _send_receive(plan, chip)]
    return terms + _all_to_all(plan, chip) + _data_parallel_terms(plan, chip, slices) + [_update(plan, chip, slices)]


def _compute(plan: Plan, chip: Chip, slices: Slices, stage: int) -> float:
    """Seconds of a micro-batch on one stage: the forward pass, twice that for the backward pass, and recomputation."""
    layers = sum(n * _layer_flops(plan, chip, slices, kind) for kind, n in stage_kinds(plan, stage).items())
    model = plan.config.model
    head = (
        3 * 2 * model.hidden_size * model.vocab_size // slices.devices("vocab")
        if stage == plan.mesh.num_stages - 1
        else 0
    )
    return (layers + head) * micro_batch_size(plan) * model.seq_length / (chip.peak_flops * chip.achievable)


def _layer_flops(plan: Plan, chip: Chip, slices: Slices, first: int) -> int:
    """Operations for one token on one device in a layer like `first`.

    Matrices that are not sharded over mp are multiplied on each of the mp devices. The backward pass of a matrix has
    two products; a frozen matrix needs only one, since it has no gradient of its own.
    """
    model, mode = plan.config.model, plan.config.parallel.recompute
    matrices = {kind: size * kind.decay for kind, size in slices.active.items()}
    every, moved = slices.layer(first, matrices), slices.layer(first, trained(matrices))
    # The scores; the context costs the same.
    attention = 2 * model.seq_length * slices.sizes["heads"] // plan.config.parallel.model_parallel
    forward = 2 * every + 2 * attention
    again = {"none": 0, "selective": attention if composed_attention(model, chip) else 0, "full": forward}[mode]
    return 3 * forward - 2 * (every - moved) + again


def _tensor_parallel(plan: Plan, chip: Chip, stage: int) -> float:
    """Seconds of a micro-batch's all-reduces on one stage. A layer has two forward and two backward, and if it is
    recomputed one more, or two more with several stages.

    With sequence_parallel each is a reduce-scatter and an all-gather with the same traffic. vocab_embedding=row adds
    one on the first and one on the last stage.
    """
    parallel, mp = plan.config.parallel, plan.config.parallel.model_parallel
    if mp == 1:
        return 0.0
    again = 0 if parallel.recompute != "full" else 1 if plan.mesh.num_stages == 1 else 2
    count = plan.stage_layers[stage] * (4 + again)
    count += (parallel.vocab_embedding == "row") * ((stage == 0) + (stage == plan.mesh.num_stages - 1))
    # A ring all-reduce sends (mp - 1) / mp of the tensor twice: to reduce it, and to gather the result.
    return count * 2 * (mp - 1) / mp * _stream_bytes(plan) / bandwidth(chip, plan.mesh, ("mp",))[0]


def _all_to_all(plan: Plan, chip: Chip) -> list[Term]:
    """Seconds in which tokens travel to the devices of their experts and back, among the devices that hold a group of
    experts. A layer has two forward and two backward, and if it is recomputed two more. Each of n devices sends a
    bucket of 1 / n of its tokens, times the padding, to each of the others, in a message of its own; the stage with the
    most such layers counts."""
    model, m = plan.config.model, plan.num_micro_batches
    most = max(owner_blocks(plan.config.parallel, model), key=len)
    devices = len(most)
    if devices == 1:
        return []
    again = 2 if plan.config.parallel.recompute == "full" else 0
    sparse = max(
        sum(n for first, n in stage_kinds(plan, stage).items() if has_experts(model, first))
        for stage, _ in distinct_stages(plan)
    )
    count = m * sparse * (4 + again)
    size = int(_stream_bytes(plan) * model.experts_per_token * expert_padding(plan))
    along_ep = plan.mesh.group(0, "ep")
    speed, name = link(chip, plan.mesh.servers([along_ep[i] for i in most]))
    seconds = (devices - 1) * chip.message_seconds + (devices - 1) / devices * size / speed
    formula = (
        f"{count} * (({devices} - 1) * {chip.message_seconds * 1e6:g} us + ({devices} - 1) / {devices} * {size:,} bytes"
        f" at {speed / 1e9:g} GB/s {name}), {devices} devices a group, not hidden"
    )
    return [Term("all-to-all", count * seconds, formula)]


def _stream_bytes(plan: Plan) -> int:
    """Bytes of a micro-batch's residual stream."""
    model = plan.config.model
    return micro_batch_size(plan) * model.seq_length * model.hidden_size * DTYPE_BYTES[model.compute_dtype]


def _send_receive(plan: Plan, chip: Chip) -> Term:
    """Seconds of sending the residual stream between stages. With sequence_parallel MindSpore gathers and sends the
    stream of all replicas, because the pieces of one device are not a slice of the batch dimension."""
    m, replicas = (
        plan.num_micro_batches,
        (plan.config.parallel.data_parallel if plan.config.parallel.sequence_parallel else 1),
    )
    speed, link = bandwidth(chip, plan.mesh, ("stage",))
    size = _stream_bytes(plan) * replicas
    formula = f"{m} * 2 * {size:,} bytes at {speed / 1e9:g} GB/s {link}, {chip.overlap:.0%} hidden"
    return Term("send and receive", (1 - chip.overlap) * m * 2 * size / speed, formula)


def _data_parallel_terms(plan: Plan, chip: Chip, slices: Slices) -> list[Term]:
    """Reductions of gradients over devices with equal slices, and gathers of sharded parameters. All stages do this at
    the same time, so the slowest one counts.

    Gradients are sent in float32 (MindSpore's gradient_fp32_sync): whole ones are all-reduced; with optimizer_shard
    they are reduce-scattered, and parameters are gathered, those of layers in the compute dtype and tables in float32.
    Each of these happens once per step. Kinds, groups and bytes are those that `pangu plan rehearse` counts.
    """
    terms: dict[str, Term] = {}
    for stage, _ in distinct_stages(plan):
        for term in [*_gather(plan, chip, slices, stage), *_reduce(plan, chip, slices, stage)]:
            terms[term.name] = max(terms.get(term.name, term), term, key=lambda t: t.seconds)
    return list(terms.values())


def _gather(plan: Plan, chip: Chip, slices: Slices, stage: int) -> list[Term]:
    c = DTYPE_BYTES[plan.config.model.compute_dtype]
    sizes = {
        names: c * slices.layers(stage, part) + 4 * slices.outer(stage, part) for names, part in slices.sharded.items()
    }
    return _collectives(plan, chip, "gather parameters", [("all-gather", 1, sizes)])


def _reduce(plan: Plan, chip: Chip, slices: Slices, stage: int) -> list[Term]:
    scattered = {names: 4 * slices.stage(stage, trained(part)) for names, part in slices.sharded.items()}
    reduced = {names: 4 * slices.stage(stage, trained(part)) for names, part in slices.whole.items()}
    return _collectives(plan, chip, "reduce gradients", [("reduce-scatter", 1, scattered), ("all-reduce", 2, reduced)])


def _collectives(
    plan: Plan, chip: Chip, name: str, kinds: list[tuple[str, int, dict[tuple[str, ...], int]]]
) -> list[Term]:
    """One term for several collectives, each given as (kind, passes of the ring, bytes by group)."""
    total, parts = 0.0, []
    for kind, passes, sizes in kinds:
        for names, size in sizes.items():
            seconds, where = _ring(plan, chip, names, passes * size)
            total += seconds
            parts += [f"{kind} of {size / 1e6:,.1f} MB over {where}"] if size else []
    return [Term(name, total, f"{'; '.join(parts)}; {chip.overlap:.0%} hidden")] if parts else []


def _ring(plan: Plan, chip: Chip, names: tuple[str, ...], size: int) -> tuple[float, str]:
    """(seconds, description) of the part of a ring collective that computation does not hide: (n - 1) / n of the bytes
    go over each link."""
    speed, link = bandwidth(chip, plan.mesh, names)
    devices = math.prod(dict(plan.mesh.axes)[name] for name in names)
    return (1 - chip.overlap) * (
        devices - 1
    ) / devices * size / speed, f"{'*'.join(names)}={devices} at {speed / 1e9:g} GB/s {link}"


def _update(plan: Plan, chip: Chip, slices: Slices) -> Term:
    values = max(slices.stage(stage, trained(slices.cut)) for stage, _ in distinct_stages(plan))
    formula = (
        f"7 * 4 * {values:,} bytes at {chip.hbm_bandwidth / 1e12:g} TB/s: AdamW reads parameter, gradient, moments and"
        " writes three"
    )
    return Term("update", 7 * 4 * values / chip.hbm_bandwidth, formula)


def step_seconds(terms: list[Term]) -> float:
    """The step's time."""
    return math.fsum(term.seconds for term in terms)
