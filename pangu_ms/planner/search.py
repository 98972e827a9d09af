"""Searches all valid plans for a number of devices, and ranks those that fit by speed. No mindspore import."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pangu_ms.config.load import replace
from pangu_ms.config.parallel import expert_degrees
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import PlanError
from pangu_ms.core.progress import progress_bar
from pangu_ms.core.size_text import size_text
from pangu_ms.models.registry import FAMILIES
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.rules import rules_for
from pangu_ms.planner.cluster import Chip, require_dtype
from pangu_ms.planner.estimate import (
    Change,
    Estimate,
    changed,
    describe,
    overrides,
    savings,
    ways_to_fit,
    with_shorter_context,
)
from pangu_ms.planner.memory import state_bytes
from pangu_ms.planner.slices import distinct_stages

SERVERS_OF_A_MATRIX = 4
"""model_parallel over more servers than this is not tried: the all-reduces of every layer would go over the network."""
MOST_MICRO_BATCHES = 32
"""More micro-batches are not tried: the graph contains each micro-batch, and MindSpore's compiler took 13 GB for 32
micro-batches of a stage of the 200B model."""


@dataclass(frozen=True)
class Near:
    """A plan that would be faster but does not fit, and the single change that makes it fit at the least cost in time;
    None if no change does."""

    estimate: Estimate
    change: Change | None
    after: Estimate | None


@dataclass(frozen=True)
class Found:
    """The result of a search. `hbm_bytes` of its estimates is the memory minus the margin."""

    ranked: list[Estimate]
    """The fastest plan that fits of each (dp, ep, mp, pp), fastest first."""
    near: list[Near]
    tried: int
    fitting: int


def search(
    config: RunConfig,
    devices: int,
    chip: Chip,
    hbm_bytes: int,
    global_batch: int = 0,
    margin: float = 0.05,
    progress: bool = True,
) -> Found:
    """Try all valid plans of a model on `devices`, with the same number of sequences per step.

    Args:
        config: configuration whose parallel degrees, batch_size and accumulation_steps are replaced; the rest is kept.
        hbm_bytes: memory of a card.
        global_batch: sequences in a step; 0 means the config's.
        margin: share of the memory that must stay free.

    Raises:
        PlanError: no plan is valid, or none fits; the message then names the three cheapest changes.
    """
    require_dtype(chip, config.model.compute_dtype)
    batch, limit = global_batch or config.global_batch_size, int(hbm_bytes * (1 - margin))
    estimates = list(candidates(config, devices, batch, chip, limit, progress))
    if not estimates:
        raise PlanError(
            f"search: {devices} devices, {batch} sequences a step: no plan is valid; degrees must multiply to the"
            f" devices, mp divide num_heads={config.model.num_heads}, dp the sequences, pp not exceed"
            f" num_layers={config.model.num_layers}; change --devices or --global-batch"
        )
    fitting = [e for e in estimates if e.excess <= 0]
    if not fitting:
        raise PlanError(nothing_fits(min(estimates, key=lambda e: e.bytes), hbm_bytes, margin))
    ranked = _first_of_each_mesh(sorted(fitting, key=lambda e: (e.seconds, e.bytes)))
    return Found(ranked, near_misses(estimates, ranked[0]), len(estimates), len(fitting))


def candidates(
    config: RunConfig, devices: int, global_batch: int, chip: Chip, hbm_bytes: int, progress: bool = True
) -> Iterator[Estimate]:
    """Estimates of all plans that the configuration's own rules accept, except for switches that have no effect
    (sharding over one device).

    If the parameters, moments and gradients alone do not fit, only the variant that needs least memory is returned for
    these layouts.
    """
    if devices < 1 or global_batch < 1:
        raise PlanError(
            f"search: --devices {devices}, {global_batch} sequences a step: both must be positive; change --devices or"
            " --global-batch"
        )
    degrees = list(_degrees(config, devices, global_batch))
    for pp, mp, dp, ep in progress_bar(progress, iterable=degrees, desc="degrees", unit="", leave=False):
        for group in _variants(pp, mp, dp, ep, global_batch // dp):
            yield from _estimates(config, group, chip, hbm_bytes)


def _degrees(config: RunConfig, devices: int, global_batch: int) -> Iterator[tuple[int, int, int, int]]:
    """Degrees (pp, mp, dp, ep), the first three of which multiply to the number of devices, that pass the cheap checks;
    the configuration's own rules decide."""
    parallel, model = config.parallel, config.model
    experts = expert_degrees(model)
    stages = [pp for pp in _divisors(devices) if pp <= model.num_layers]
    for pp, mp in itertools.product(stages, _divisors(devices)):
        dp, rest = divmod(devices, pp * mp)
        if not (
            rest or global_batch % dp or model.num_heads % mp or mp > SERVERS_OF_A_MATRIX * parallel.devices_per_server
        ):
            yield from ((pp, mp, dp, ep) for ep in experts if dp % ep == 0)


Variant = tuple[dict[str, Any], dict[str, Any]]
"""Changed fields of the sections parallel and train."""


def _variants(pp: int, mp: int, dp: int, ep: int, batch: int) -> Iterator[list[Variant]]:
    """Groups of variants with equal layouts of the parameters; a group begins with the variant of least memory."""
    degrees = {"num_devices": 0, "stage_layers": (), "pipeline_stage": pp, "model_parallel": mp, "data_parallel": dp}
    degrees["expert_parallel"] = ep
    micros = [n for n in reversed(_divisors(batch)) if n <= MOST_MICRO_BATCHES and (pp == 1 or n >= pp)]
    for shard, vocab in itertools.product(
        (True, False) if dp * mp > 1 else (False,), ("row", "replicated") if mp > 1 else ("replicated",)
    ):
        layout_fields = degrees | {"optimizer_shard": shard, "vocab_embedding": vocab}
        # The first of each is the one with the least memory, so that the first variant of all has it, too.
        group = itertools.product(("full", "selective", "none"), (True, False) if mp > 1 else (False,), micros)
        yield [
            (
                layout_fields
                | {"recompute": recompute, "sequence_parallel": sequence, "micro_batch_num": n if pp > 1 else 1},
                {"batch_size": batch, "accumulation_steps": n if pp == 1 else 1},
            )
            for recompute, sequence, n in group
        ]


def _estimates(config: RunConfig, group: list[Variant], chip: Chip, hbm_bytes: int) -> Iterator[Estimate]:
    """Estimates of the valid plans of a group."""
    table, first = FAMILIES[config.model.family].rules, None
    for parallel, train in group:
        try:
            changed_config = replace(config, parallel=parallel, train=train)
            first = first or Estimate.of(Plan.of(changed_config), chip, hbm_bytes)
        except (ValidationError, PlanError):  # pydantic wraps the ConfigError of a rule
            continue
        plan = dataclasses.replace(first.plan, config=changed_config, rules=rules_for(table, changed_config.parallel))
        yield dataclasses.replace(first, plan=plan)
        # The other variants of the group have the same parameters and moments, which alone do not fit.
        if max(state_bytes(first.slices, stage) for stage, _ in distinct_stages(plan)) > hbm_bytes:
            return


def near_misses(estimates: Iterable[Estimate], best: Estimate) -> list[Near]:
    """The plans that would be faster than the best but do not fit: the three with the least memory, with different
    degrees."""
    faster = (e for e in sorted(estimates, key=lambda e: e.bytes) if e.excess > 0 and e.seconds < best.seconds)
    return [_near_miss(e) for e in _first_of_each_mesh(faster)[:3]]


def _near_miss(estimate: Estimate) -> Near:
    config = estimate.plan.config
    after = [
        (change, other) for change in savings(config) if (other := changed(estimate, change)) and other.excess <= 0
    ]
    change, other = min(after, key=lambda pair: pair[1].seconds, default=(None, None))
    return Near(estimate, change, other)


def _first_of_each_mesh(estimates: Iterable[Estimate]) -> list[Estimate]:
    """The first estimate of each (dp, ep, mp, pp)."""
    first: dict[tuple[int, ...], Estimate] = {}
    for estimate in estimates:
        parallel = estimate.plan.config.parallel
        degrees = (parallel.data_parallel, parallel.expert_parallel, parallel.model_parallel, parallel.pipeline_stage)
        first.setdefault(degrees, estimate)
    return list(first.values())


def nothing_fits(least: Estimate, hbm_bytes: int, margin: float) -> str:
    """The message if no plan fits: the plan that needs the least memory, and the three cheapest changes of it."""
    found = ways_to_fit(least, True)
    ways = [f"{describe(change)} ({_describe_after(change, after)})" for change, after in found]
    verdict = (
        "cheapest ways from there"
        if any(after.excess <= 0 for _, after in found)
        else "no single change suffices; nearest"
    )
    room = f"{size_text(hbm_bytes, 'g')} with {margin:.0%} free"
    if shorter := with_shorter_context(least):
        ways.append(
            f"{describe(shorter[0])} instead of {least.plan.config.model.seq_length}, which takes most of the memory"
            f" ({_describe_after(*shorter)})"
        )
    return (
        f"search: {least.plan.mesh.world} devices: no plan fits in {room}; least needs {size_text(least.bytes, '.2f')}:"
        f" {' '.join(overrides(least.plan.config))}; {verdict}: {'; '.join(ways) or 'none'}"
    )


def _describe_after(change: Change, after: Estimate) -> str:
    """Text about the plan after a change; more replicas mean a larger batch."""
    batch = f", {after.plan.config.global_batch_size} sequences a step" if "parallel.data_parallel" in change else ""
    return f"{after.plan.mesh.world} devices, {size_text(after.bytes, '.2f')}{batch}"


def difference(best: Estimate, other: Estimate) -> list[tuple[str, float, float]]:
    """(term, seconds of the best, seconds of the other), the largest difference first; it shows why the best plan is
    faster."""
    ours, theirs = ({term.name: term.seconds for term in e.terms} for e in (best, other))
    rows = [(name, ours.get(name, 0.0), theirs.get(name, 0.0)) for name in dict.fromkeys([*ours, *theirs])]
    return sorted(rows, key=lambda row: -abs(row[1] - row[2]))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
