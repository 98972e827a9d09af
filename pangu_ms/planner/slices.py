"""How many parameter values a device of each stage holds, the basis of the memory and time models. Parameters of equal
layout are counted together, so that a dozen layouts are computed instead of a thousand. No mindspore import."""

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pangu_ms.config.parallel import owner_blocks, padding
from pangu_ms.models.common.config import ModelConfig, ParameterSpec
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import Plan


class Kind(NamedTuple):
    """A class of parameters with the same layout: its logical axes, whether it has a gradient and moments, and whether
    weight decay applies."""

    axes: tuple[str, ...]
    trainable: bool
    decay: bool

    @classmethod
    def of(cls, spec: ParameterSpec) -> "Kind":
        """The kind of one parameter."""
        return cls(spec.axes, spec.trainable, spec.decay)


@functools.lru_cache
def layer_kinds(model: ModelConfig) -> tuple[int, ...]:
    """For each layer the number of the first layer of its kind, which has the same parameters and the same role."""
    first: dict[tuple, int] = {}
    kinds = []
    for i, name in enumerate(model.layer_names()):
        specs = tuple(Kind.of(spec) for spec in model.layer_parameters(i).values())
        # Without its number a name says which role a layer has: blocks.3 has that of blocks.4, but query_layer another.
        kinds.append(first.setdefault((specs, re.sub(r"\d+", "", name)), i))
    return tuple(kinds)


@functools.lru_cache
def layer_counts(model: ModelConfig, layer: int) -> Counter[Kind]:
    """How many parameters of each kind a layer has."""
    return Counter(Kind.of(spec) for spec in model.layer_parameters(layer).values())


def has_experts(model: ModelConfig, layer: int) -> bool:
    """Whether a layer has experts."""
    return any("expert" in kind.axes for kind in layer_counts(model, layer))


@functools.lru_cache
def outer_kinds(model: ModelConfig) -> tuple[tuple[Kind, tuple[int, ...]], ...]:
    """(kind, layers that read it) of each parameter outside the layers."""
    before, behind = model.outer_parameters()
    layers = model.outer_parameter_layers()
    return tuple((Kind.of(spec), layers[name]) for name, spec in (before | behind).items())


def stage_kinds(plan: Plan, stage: int) -> Counter[int]:
    """How many layers of each kind a stage has."""
    first = sum(plan.stage_layers[:stage])
    return Counter(layer_kinds(plan.config.model)[first : first + plan.stage_layers[stage]])


def distinct_stages(plan: Plan) -> list[tuple[int, int]]:
    """(first stage, number of stages) of each kind of stage: stages with the same kinds of layers, where the first and
    the last stage are kinds of their own. A later stage of a kind never holds more, since fewer micro-batches are in
    flight."""
    last = len(plan.stage_layers) - 1
    sorts = [(frozenset(stage_kinds(plan, s).items()), s == 0, s == last) for s in range(last + 1)]
    count = Counter(sorts)
    return [(sorts.index(sort), count[sort]) for sort in count]


def stage_outer(plan: Plan, stage: int) -> list[Kind]:
    """Kinds of the parameters outside layers that a stage holds."""
    return [
        kind
        for kind, layers in outer_kinds(plan.config.model)
        if stage in {plan.layer_stages[layer] for layer in layers}
    ]


def expert_padding(plan: Plan) -> float:
    """Rows that the experts of a device get, as a multiple of its tokens."""
    parallel = plan.config.parallel
    return padding(parallel, plan.config.model, max(map(len, owner_blocks(parallel, plan.config.model))))


class Slices:
    """Numbers of values of a plan's parameters, counted by kind of parameter.

    The attributes give the values of one parameter of each kind on one device.
        cut: what the device stores.
        plain: what it would store without optimizer_shard.
        active: `plain` as far as a token is multiplied with it: of the experts those of the token, with the padding of
            the rows that devices send each other.
        sharded, whole: `plain` of the parameters that optimizer_shard shards and of the others, by the mesh axes along
            which devices would hold or hold equal slices.

    `trained` of each of these counts only parameters with gradients. Plans that differ only in batch, micro-batches,
    recompute and sequence_parallel can share one object.

    Raises:
        PlanError: devices do not divide a dimension.
    """

    def __init__(self, plan: Plan):
        self.plan, self.sizes = plan, plan.config.model.axis_sizes()
        self.at = dict(plan.mesh.axes)
        before, behind = plan.config.model.outer_parameters()
        specs: dict[Kind, ParameterSpec] = {}
        for first in set(layer_kinds(plan.config.model)):
            specs |= {Kind.of(spec): spec for spec in plan.config.model.layer_parameters(first).values()}
        specs |= {Kind.of(spec): spec for spec in (before | behind).values()}
        stages = {
            kind: len({plan.layer_stages[layer] for layer in layers}) for kind, layers in outer_kinds(plan.config.model)
        }
        self.layouts = {kind: plan.layout(spec, stages.get(kind, 1)) for kind, spec in specs.items()}
        self.cut = {kind: layout.slice_size for kind, layout in self.layouts.items()}
        self.plain = {kind: self._values(kind) for kind in specs}
        routed = plan.config.model.experts_per_token * expert_padding(plan)
        self.active = {
            kind: int(self._values(kind, {"expert": 1}) * (routed if "expert" in kind.axes else 1)) for kind in specs
        }
        self.sharded = self._by_group({kind: layout.optimizer_axes for kind, layout in self.layouts.items()})
        self.whole = self._by_group(
            {kind: () if layout.optimizer_axes else _free_axes(layout) for kind, layout in self.layouts.items()}
        )

    def _values(self, kind: Kind, lengths: Mapping[str, int] = MappingProxyType({})) -> int:
        """Values on a device; `lengths` gives the length there of some axes."""
        return math.prod(lengths.get(axis) or self.sizes[axis] // self.devices(axis) for axis in kind.axes)

    def _by_group(self, groups: dict[Kind, tuple[str, ...]]) -> dict[tuple[str, ...], dict[Kind, int]]:
        return {
            names: {kind: size * (groups[kind] == names) for kind, size in self.plain.items()}
            for names in dict.fromkeys(groups.values())
            if names
        }

    def devices(self, axis: str) -> int:
        """Devices that share a logical axis."""
        return math.prod(self.at[name] for name in self.plan.rules[axis])

    def layer(self, first: int, sizes: dict[Kind, int]) -> int:
        """Values of a layer of the kind of `first`; `sizes` is `cut`, `plain`, an entry of `sharded` or `whole`, or
        `trained` of one of these."""
        return sum(n * sizes[kind] for kind, n in layer_counts(self.plan.config.model, first).items())

    def stage(self, stage: int, sizes: dict[Kind, int]) -> int:
        """Values of one stage."""
        return self.layers(stage, sizes) + self.outer(stage, sizes)

    def layers(self, stage: int, sizes: dict[Kind, int]) -> int:
        """Values of a stage's layers."""
        return sum(n * self.layer(first, sizes) for first, n in stage_kinds(self.plan, stage).items())

    def outer(self, stage: int, sizes: dict[Kind, int]) -> int:
        """Values of a stage's parameters outside of layers: tables and final norm."""
        return sum(sizes[kind] for kind in stage_outer(self.plan, stage))

    def largest(self, stage: int, sizes: dict[Kind, int]) -> int:
        """Values of the largest layer or table of a stage."""
        return max(
            [self.layer(first, sizes) for first in stage_kinds(self.plan, stage)]
            + [sizes[kind] for kind in stage_outer(self.plan, stage)]
        )


def trained(sizes: dict[Kind, int]) -> dict[Kind, int]:
    """`sizes` with 0 for parameters that are not trainable."""
    return {kind: size * kind.trainable for kind, size in sizes.items()}


def _free_axes(layout: Layout) -> tuple[str, ...]:
    used = {name for dim in layout.dims for name in dim}
    return tuple(name for name, size in layout.axes if size > 1 and name not in used)
