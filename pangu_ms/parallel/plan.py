"""The plan of a run: the layout of every parameter and the stage of every layer, computed only from the configuration.
No mindspore import."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ParameterSpec
from pangu_ms.models.common.sharding import Rules
from pangu_ms.models.registry import FAMILIES
from pangu_ms.parallel.flops import head_flops_per_token, layer_flops_per_token
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.mesh import Mesh
from pangu_ms.parallel.rules import rules_for

MOMENTS = ("adam_m.", "adam_v.")
"""Prefixes of the optimizer's two states of each parameter, which have the parameter's layout."""
OPTIMIZER_SHARD_MIN_BYTES = 64 << 10
"""With optimizer_shard a parameter whose whole (not slice) is smaller is not sharded: gathering it would cost more than
it saves. This is MindSpore's default of parallel_optimizer_threshold."""


@dataclass(frozen=True)
class Plan:
    """How one configuration is distributed over its devices."""

    config: RunConfig
    mesh: Mesh
    rules: Rules
    stage_layers: tuple[int, ...]
    """Number of layers of each stage."""

    @classmethod
    def of(cls, config: RunConfig, num_devices: int = 0) -> "Plan":
        """The plan of a configuration whose degrees have been checked.

        Args:
            num_devices: number of devices that the plan must have; 0 for any.

        Raises:
            ConfigError: degrees do not multiply to `num_devices`, or a logical axis has no rule.
        """
        parallel = config.parallel
        if num_devices not in (0, parallel.world):
            raise ConfigError(
                f"parallel: data_parallel={parallel.data_parallel} * model_parallel={parallel.model_parallel} *"
                f" pipeline_stage={parallel.pipeline_stage} = {parallel.world}: must be the number of devices,"
                f" {num_devices}; change a degree"
            )
        rules = rules_for(FAMILIES[config.model.family].rules, parallel)
        model = config.model
        for name, spec in model.parameters().items():
            if unknown := [axis for axis in spec.axes if axis not in rules]:
                raise ConfigError(
                    f"plan of {model.family}: {name}: axis {unknown[0]} has no rule; add it to the family's table in"
                    " the family's sharding.py"
                )
        costs = [layer_flops_per_token(model, i) for i in range(model.num_layers)]
        # The last stage also computes the logits.
        costs[-1] += head_flops_per_token(model)
        return cls(config, Mesh.of(parallel), rules, parallel.stage_layers or balance(costs, parallel.pipeline_stage))

    @property
    def num_micro_batches(self) -> int:
        """Number of micro-batches per step: those that flow through the pipeline stages, or those of gradient
        accumulation."""
        return max(self.config.parallel.micro_batch_num, self.config.train.accumulation_steps)

    @functools.cached_property
    def layer_stages(self) -> tuple[int, ...]:
        """The stage of each layer."""
        return tuple(stage for stage, count in enumerate(self.stage_layers) for _ in range(count))

    @functools.cached_property
    def parameter_stages(self) -> dict[str, tuple[int, ...]]:
        """The stages that hold each parameter, in the model's order: a tied word table is on the first and the last
        stage."""
        model, stages = self.config.model, self.layer_stages
        held: dict[str, tuple[int, ...]] = {}
        for name, layers in model.outer_parameter_layers().items():
            held[name] = tuple(dict.fromkeys(stages[layer] for layer in layers))
        for i, prefix in enumerate(model.layer_names()):
            held |= {f"{prefix}.{name}": (stages[i],) for name in model.layer_parameters(i)}
        return {name: held[name] for name in model.parameters()}

    @functools.cached_property
    def layouts(self) -> dict[str, Layout]:
        """The layout of every parameter on the devices of a stage that holds it, in the model's order; its moments have
        the same layout."""
        return {
            name: self.layout(spec, len(self.parameter_stages[name]))
            for name, spec in self.config.model.parameters().items()
        }

    def layout(self, spec: ParameterSpec, num_stages: int = 1) -> Layout:
        """The layout of one parameter that `num_stages` stages hold. optimizer_shard does not apply to a parameter on
        several stages, because MindSpore 2.9 cannot compile that."""
        sizes = self.config.model.axis_sizes()
        shape = tuple(sizes[axis] for axis in spec.axes)
        plain = Layout(shape, self.mesh.axes, tuple(self.rules[axis] for axis in spec.axes))
        return with_optimizer_shard(plain) if self.config.parallel.optimizer_shard and num_stages == 1 else plain

    def stage_parameters(self, stage: int) -> list[str]:
        """Names of the parameters that a stage holds."""
        return [name for name, stages in self.parameter_stages.items() if stage in stages]


def parameter_of(name: str) -> str:
    """The parameter to which a tensor of a checkpoint belongs: itself, or the one that it is a moment of."""
    return next((name.removeprefix(prefix) for prefix in MOMENTS if name.startswith(prefix)), name)


def with_optimizer_shard(layout: Layout) -> Layout:
    """Shard dimension 0 of a float32 parameter further, over the axes that do not shard the parameter, if it is large
    enough and divisible, as MindSpore does."""
    used = {name for dim in layout.dims for name in dim}
    free = tuple(name for name, size in layout.axes if name not in used and size > 1)
    count = functools.reduce(lambda product, name: product * dict(layout.axes)[name], free, 1)
    if 4 * math.prod(layout.shape) < OPTIMIZER_SHARD_MIN_BYTES or layout.slice_shape[0] % count:
        return layout
    return Layout(layout.shape, layout.axes, layout.dims, free)


def balance(costs: Sequence[float], num_stages: int) -> tuple[int, ...]:
    """Split `costs` into contiguous, non-empty parts such that the largest sum of a part is minimal; returns their
    lengths. Of equal solutions it takes one whose earlier parts are short."""
    # best[end]: for the first `end` costs in `stage` parts, the smallest largest sum and the lengths that have it.
    total = [0.0, *itertools.accumulate(costs)]
    best: dict[int, tuple[float, tuple[int, ...]]] = {end: (total[end], (end,)) for end in range(1, len(costs) + 1)}
    for stage in range(2, num_stages + 1):
        best = {
            end: min(_extended(best, total, end, start) for start in range(stage - 1, end))
            for end in range(stage, len(costs) + 1)
        }
    return best[len(costs)][1]


def _extended(
    best: dict[int, tuple[float, tuple[int, ...]]], total: list[float], end: int, start: int
) -> tuple[float, tuple[int, ...]]:
    largest, lengths = best[start]
    return max(largest, total[end] - total[start]), (*lengths, end - start)
