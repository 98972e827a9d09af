"""How many values a device of each stage holds, from a dozen layouts instead of a thousand: what memory and time are computed from. No mindspore import."""

import functools
import math
import re
from collections import Counter

from pangu_ms.config.base import ModelConfig
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import Plan

Axes = tuple[str, ...]


@functools.lru_cache
def layer_kinds(model: ModelConfig) -> tuple[int, ...]:
    """For each layer the first one that is of its kind: same parameters, same role."""
    first: dict[tuple, int] = {}
    kinds = ((tuple(spec.axes for spec in model.layer_parameters(i).values()), re.sub(r"\d+", "", name)) for i, name in enumerate(model.layer_names()))
    return tuple(first.setdefault(kind, i) for i, kind in enumerate(kinds))


@functools.lru_cache
def layer_axes(model: ModelConfig, layer: int) -> Counter[Axes]:
    """How many parameters of each tuple of axes a layer has."""
    return Counter(spec.axes for spec in model.layer_parameters(layer).values())


@functools.lru_cache
def outer_axes(model: ModelConfig) -> tuple[tuple[Axes, tuple[int, ...]], ...]:
    """(axes, layers that read it) of each parameter outside the layers."""
    before, behind = model.outer_parameters()
    layers = model.outer_parameter_layers()
    return tuple((spec.axes, layers[name]) for name, spec in (before | behind).items())


def stage_kinds(plan: Plan, stage: int) -> Counter[int]:
    """How many layers of each kind a stage has."""
    first = sum(plan.stage_layers[:stage])
    return Counter(layer_kinds(plan.config.model)[first : first + plan.stage_layers[stage]])


def distinct_stages(plan: Plan) -> list[tuple[int, int]]:
    """(stage, how many are like it) of the first stage of each sort; a later one of a sort never holds more, since fewer micro-batches are in flight."""
    last = len(plan.stage_layers) - 1
    sorts = [(frozenset(stage_kinds(plan, s).items()), s == 0, s == last) for s in range(last + 1)]
    count = Counter(sorts)
    return [(sorts.index(sort), count[sort]) for sort in count]


def stage_outer(plan: Plan, stage: int) -> list[Axes]:
    """Axes of the parameters outside layers that a stage holds."""
    return [axes for axes, layers in outer_axes(plan.config.model) if stage in {plan.layer_stages[layer] for layer in layers}]


class Slices:
    """Values of a plan's parameters by their axes, so that a thousand parameters cost a dozen layouts.

    `cut` is what a device stores, `plain` what it had without the optimizer's cut, `sharded` and `whole` are `plain` of what the
    optimizer cuts and of the rest, by the axes of devices that had or have equal slices and so exchange gradients.
    Plans that differ in batch, micro-batches, recompute and sequence_parallel alone can share one.

    Raises:
        PlanError: devices do not divide a dimension.
    """

    def __init__(self, plan: Plan):
        self.plan, self.sizes = plan, plan.config.model.axis_sizes()
        self.at = dict(plan.mesh.axes)
        specs = {spec.axes: spec for kind in set(layer_kinds(plan.config.model)) for spec in plan.config.model.layer_parameters(kind).values()}
        before, behind = plan.config.model.outer_parameters()
        specs |= {spec.axes: spec for spec in (before | behind).values()}
        stages = {axes: len({plan.layer_stages[layer] for layer in layers}) for axes, layers in outer_axes(plan.config.model)}
        self.layouts = {axes: plan.layout(spec, stages.get(axes, 1)) for axes, spec in specs.items()}
        self.cut = {axes: layout.slice_size for axes, layout in self.layouts.items()}
        self.plain = {axes: math.prod(self.sizes[a] // self.devices(a) for a in axes) for axes in specs}
        self.sharded = self._by_group({axes: layout.optimizer_axes for axes, layout in self.layouts.items()})
        self.whole = self._by_group({axes: () if layout.optimizer_axes else _free_axes(layout) for axes, layout in self.layouts.items()})
        self.matrices = {axes for axes, spec in specs.items() if spec.decay}

    def _by_group(self, groups: dict[Axes, tuple[str, ...]]) -> dict[tuple[str, ...], dict[Axes, int]]:
        return {names: {axes: size * (groups[axes] == names) for axes, size in self.plain.items()} for names in dict.fromkeys(groups.values()) if names}

    def devices(self, axis: str) -> int:
        """Devices that share a logical axis."""
        return math.prod(self.at[name] for name in self.plan.rules[axis])

    def layer(self, kind: int, sizes: dict[Axes, int]) -> int:
        """Values of one layer; `sizes` is `cut`, `plain` or one of `sharded` or `whole`."""
        return sum(n * sizes[axes] for axes, n in layer_axes(self.plan.config.model, kind).items())

    def stage(self, stage: int, sizes: dict[Axes, int]) -> int:
        """Values of one stage."""
        return self.layers(stage, sizes) + self.outer(stage, sizes)

    def layers(self, stage: int, sizes: dict[Axes, int]) -> int:
        """Values of a stage's layers."""
        return sum(n * self.layer(kind, sizes) for kind, n in stage_kinds(self.plan, stage).items())

    def outer(self, stage: int, sizes: dict[Axes, int]) -> int:
        """Values of a stage's tables and final norm."""
        return sum(sizes[axes] for axes in stage_outer(self.plan, stage))

    def largest(self, stage: int) -> int:
        """Values of the largest layer or table of a stage, before the optimizer's cut."""
        return max([self.layer(kind, self.plain) for kind in stage_kinds(self.plan, stage)] + [self.plain[axes] for axes in stage_outer(self.plan, stage)])


def _free_axes(layout: Layout) -> tuple[str, ...]:
    used = {name for dim in layout.dims for name in dim}
    return tuple(name for name, size in layout.axes if size > 1 and name not in used)
