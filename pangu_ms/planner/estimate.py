"""Estimates of a plan's memory and time, changes that would save memory, and predictions compared with published
numbers. No mindspore import."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pangu_ms.config.load import load_config, replace
from pangu_ms.config.parallel import expert_degrees
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import CHIPS, GIB, Chip, require_dtype
from pangu_ms.planner.memory import Line, stage_memory
from pangu_ms.planner.slices import Slices, distinct_stages
from pangu_ms.planner.time import Term, mfu, step_seconds, step_terms, tokens_per_step

Change = dict[str, Any]
"""Maps dotted names of fields to new values."""


@dataclass(frozen=True)
class Estimate:
    """The predicted memory and time of one plan on one chip."""

    plan: Plan
    chip: Chip
    hbm_bytes: int
    slices: Slices

    @classmethod
    def of(cls, plan: Plan, chip: Chip, hbm_bytes: int = 0) -> "Estimate":
        """Estimate a plan on a chip; `hbm_bytes` 0 means the chip's memory.

        Raises:
            PlanError: the chip has no published rate for the compute dtype.
        """
        require_dtype(chip, plan.config.model.compute_dtype)
        return cls(plan, chip, hbm_bytes or chip.hbm_bytes, Slices(plan))

    @functools.cached_property
    def memory(self) -> dict[int, list[Line]]:
        """The memory lines of the first stage of each kind (see `distinct_stages`); later stages of that kind hold no
        more."""
        return {
            stage: stage_memory(self.plan, stage, self.chip, self.slices) for stage, _ in distinct_stages(self.plan)
        }

    @functools.cached_property
    def worst_stage(self) -> int:
        """The stage whose devices need the most memory."""
        return max(self.memory, key=lambda stage: sum(line.bytes for line in self.memory[stage]))

    @functools.cached_property
    def bytes(self) -> int:
        """Bytes that a device of the worst stage needs."""
        return sum(line.bytes for line in self.memory[self.worst_stage])

    @property
    def excess(self) -> int:
        """Bytes needed beyond the device's memory; negative if the plan fits with memory to spare."""
        return self.bytes - self.hbm_bytes

    @functools.cached_property
    def terms(self) -> list[Term]:
        """The terms of a step's time."""
        return step_terms(self.plan, self.chip, self.slices)

    @functools.cached_property
    def seconds(self) -> float:
        """Seconds of a step."""
        return step_seconds(self.terms)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all devices together."""
        return tokens_per_step(self.plan) / self.seconds

    @property
    def tokens_per_second_per_device(self) -> float:
        """Tokens per second of one device, the form in which throughput is published."""
        return self.tokens_per_second / self.plan.mesh.world

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization; see time.MFU_FORMULA."""
        return mfu(self.plan, self.chip, self.tokens_per_second_per_device)

    def row(self) -> dict[str, Any]:
        """The totals as plain values, without memory lines and time terms."""
        return {
            "devices": self.plan.mesh.world,
            "gib": self.bytes / GIB,
            "fits": self.excess <= 0,
            "step_seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_per_device": self.tokens_per_second_per_device,
            "mfu": self.mfu,
        }


_DEGREES = ("data_parallel", "model_parallel", "pipeline_stage", "micro_batch_num")
SEARCHED = {
    "parallel": (*_DEGREES, "optimizer_shard", "recompute", "sequence_parallel", "vocab_embedding"),
    "train": ("batch_size", "accumulation_steps"),
}
"""The fields that decide memory and time for one model, chip and number of devices."""


def overrides(config: RunConfig) -> list[str]:
    """Overrides to paste after `--config`: the searched fields, and those that reset what a base config may set for
    another number of devices."""
    words = ["parallel.num_devices=0", f"parallel.stage_layers={list(config.parallel.stage_layers)}"]
    if config.model.num_experts:
        words.append(f"parallel.expert_parallel={config.parallel.expert_parallel}")
    for section, names in SEARCHED.items():
        words += [f"{section}.{name}={_text(getattr(getattr(config, section), name))}" for name in names]
    return words


def describe(change: Change) -> str:
    """A change as overrides."""
    return " ".join(f"{key}={_text(value)}" for key, value in change.items())


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def changed(estimate: Estimate, change: Change) -> Estimate | None:
    """The estimate with some fields changed; None if the configuration refuses the change."""
    # num_devices=0: the number of devices follows from the changed degrees. Layers are divided anew over the stages.
    sections: dict[str, dict[str, Any]] = {
        "parallel": {"num_devices": 0} | ({"stage_layers": ()} if "parallel.pipeline_stage" in change else {})
    }
    for key, value in change.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    try:
        return Estimate.of(Plan.of(replace(estimate.plan.config, **sections)), estimate.chip, estimate.hbm_bytes)
    except (ValidationError, PlanError):  # pydantic wraps the ConfigError of a rule
        return None


def savings(config: RunConfig) -> Iterator[Change]:
    """Single changes that save memory on the same devices, with the same batch."""
    parallel, train = config.parallel, config.train
    levels = ("none", "selective", "full")
    for level in levels[levels.index(parallel.recompute) + 1 :]:
        yield {"parallel.recompute": level}
    if parallel.data_parallel * parallel.model_parallel > 1 and not parallel.optimizer_shard:
        yield {"parallel.optimizer_shard": True}
    if parallel.model_parallel > 1 and not parallel.sequence_parallel:
        yield {"parallel.sequence_parallel": True}
    if parallel.model_parallel > 1 and parallel.vocab_embedding != "row":
        yield {"parallel.vocab_embedding": "row"}
    for degree in expert_degrees(config.model):
        if degree > parallel.expert_parallel and parallel.data_parallel % degree == 0:
            yield {"parallel.expert_parallel": degree}
    if parallel.pipeline_stage > 1:
        yield {"parallel.micro_batch_num": 2 * parallel.micro_batch_num}
    else:
        yield {"train.accumulation_steps": 2 * train.accumulation_steps}


def growths(config: RunConfig, factor: int) -> Iterator[Change]:
    """Single changes that spread the same batch, or one with more replicas, over `factor` times as many devices."""
    parallel, train = config.parallel, config.train
    yield {"parallel.model_parallel": factor * parallel.model_parallel}
    stages = factor * parallel.pipeline_stage
    # A pipeline needs at least as many micro-batches as stages.
    micro = max(stages, parallel.micro_batch_num, train.accumulation_steps)
    yield {"parallel.pipeline_stage": stages, "parallel.micro_batch_num": micro, "train.accumulation_steps": 1}
    yield {"parallel.data_parallel": factor * parallel.data_parallel, "parallel.optimizer_shard": True}


def ways_to_fit(estimate: Estimate, more_devices_only: bool = False) -> list[tuple[Change, Estimate]]:
    """The three cheapest changes that make a plan fit, ordered by number of devices, then by tokens per second; if none
    does, the three that come closest.

    A change is a saving on the same devices (two together if one is not enough), or more devices along one degree.
    """
    config = estimate.plan.config
    single = [] if more_devices_only else list(savings(config))
    pairs = [a | b for a, b in itertools.combinations(single, 2) if not a.keys() & b.keys()]
    more = [change for factor in (2, 4, 8, 16) for change in growths(config, factor)]
    ways = _estimates_that_save(estimate, single)
    if not any(after.excess <= 0 for _, after in ways):
        ways += _estimates_that_save(estimate, pairs)
    ways += _estimates_that_save(estimate, more)
    kinds: dict[str, tuple[Change, Estimate]] = {}
    for change, after in sorted(ways, key=lambda way: (way[1].plan.mesh.world, -way[1].tokens_per_second)):
        if after.excess <= 0:
            kinds.setdefault(next(iter(change)), (change, after))  # the best change for each first field
    return list(kinds.values())[:3] or sorted(ways, key=lambda way: way[1].bytes)[:3]


def _estimates_that_save(estimate: Estimate, changes: list[Change]) -> list[tuple[Change, Estimate]]:
    """The changes that the configuration allows and that save memory, with their estimates."""
    return [
        (change, after) for change in changes if (after := changed(estimate, change)) and after.bytes < estimate.bytes
    ]


SHORT_CONTEXT = 4096
"""Tokens of the context that is tried for a model whose own context takes most of the memory."""


def with_shorter_context(estimate: Estimate) -> tuple[Change, Estimate] | None:
    """The change to a context of SHORT_CONTEXT tokens, if it saves more than half of the memory; else None.

    It is not one of `ways_to_fit`: another context is another training.
    """
    change = {"model.seq_length": SHORT_CONTEXT}
    if estimate.plan.config.model.seq_length <= SHORT_CONTEXT or not (after := changed(estimate, change)):
        return None
    return (change, after) if after.bytes < estimate.bytes / 2 else None


@dataclass(frozen=True)
class Published:
    """A published training throughput on Ascend 910, and the plan that was presumably used."""

    config: str
    overrides: tuple[str, ...]
    tokens_per_second_per_device: float
    assumption: str


_PUBLISHED_PARALLEL = ("parallel.recompute=full",)  # MF yaml: recompute on (spec A3.1)
PUBLISHED = (
    Published(
        "alpha/2_6b",
        ("parallel.data_parallel=8", "parallel.optimizer_shard=true", *_PUBLISHED_PARALLEL),
        4075,
        "8 cards, dp 8, mp 1 as in the MindFormers YAML (spec A4)",
    ),
    Published(
        "alpha/13b",
        ("parallel.model_parallel=8", *_PUBLISHED_PARALLEL),
        575,
        "8 cards, dp 1, mp 8: spec A4, N/8 replicas",
    ),
    Published(
        "alpha/13b",
        (
            "parallel.data_parallel=4",
            "parallel.model_parallel=4",
            "parallel.optimizer_shard=true",
            *_PUBLISHED_PARALLEL,
        ),
        575,
        "16 cards, dp 4, mp 4: spec A4, MindFormers comment",
    ),
)
"""Published throughputs, spec A9.1. `Chip.achievable` was fitted on the first one; the others are predictions. The
number of cards of the 13B run was not published."""


def published_rows() -> list[dict[str, Any]]:
    """Our prediction for each published number, and the ratio of the two."""
    rows = []
    for i, run in enumerate(PUBLISHED):
        estimate = Estimate.of(Plan.of(load_config(run.config, run.overrides)), CHIPS["ascend910"])
        ratio = estimate.tokens_per_second_per_device / run.tokens_per_second_per_device
        published = {
            "config": run.config,
            "assumption": run.assumption,
            "published": run.tokens_per_second_per_device,
            "fitted": i == 0,
        }
        rows.append(published | {"ratio": ratio} | estimate.row())
    return rows
