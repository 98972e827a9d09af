"""Reads MindSpore's parameter-layout files, writes them from a plan, and compares them with a plan. No mindspore
import."""

import contextlib
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.mesh import Mesh
from pangu_ms.parallel.plan import MOMENTS, Plan
from pangu_ms.parallel.stored_layout import StoredLayout, layout_item
from pangu_ms.parallel.strategy_wire import Content, StrategyItem, read_content, write_content

PLACEHOLDER = "Plan-stage"
"""Beginning of the name of the only operator in a file that was written from a plan. It must have one, because
MindSpore reads the stage from the first operator; it ignores operators that its model lacks."""
STATES = (*MOMENTS, "moment1.", "moment2.", "moments.", "lamb_m.", "lamb_v.", "accu_grads.")
"""Prefixes of the names of tensors that MindSpore's optimizers and gradient accumulation keep for a parameter, with its
layout."""
# In a merged file the names of tensors begin with their stage: `0-blocks.0.attention.query.weight`.
_STAGED = re.compile(r"(\d{1,9})-(.+)", re.DOTALL)


@dataclass(frozen=True)
class Difference:
    """A tensor whose layout in a file differs from the plan's."""

    stage: int
    name: str
    found: Layout
    wanted: Layout


@dataclass(frozen=True)
class StrategyFile:
    """Parameter layouts of one stage, or of all stages in a merged file."""

    path: Path
    stages: dict[int, dict[str, StoredLayout]]
    """For each stage its tensors, optimizer states included, in the file's order. As in MindSpore, a file that names no
    stage is of stage 0."""
    is_merged: bool

    @property
    def stage_size(self) -> int:
        """Devices of a stage, the same for every tensor."""
        return next(stored.pattern.num_devices for tensors in self.stages.values() for stored in tensors.values())

    @property
    def world(self) -> int:
        """Devices of the stages in this file."""
        return self.stage_size * len(self.stages)

    def layouts(self, stage: int, slice_shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Layout]:
        """The layout of each tensor of a stage.

        Args:
            slice_shapes: shape of the slice of each tensor on one device; needed for protobuf files.

        Raises:
            PlanError: the file lacks the stage, or a shape is missing or does not fit.
        """
        if stage not in self.stages:
            raise PlanError(
                f"{self.path}: holds stage {_list(self.stages)}; stage {stage} is wanted; name its file or the"
                " merged one"
            )
        with_slices = slice_shapes or {}
        found = {}
        for name, stored in self.stages[stage].items():
            with _naming(self.path, name):
                found[name] = stored.of_slice(tuple(with_slices[name])) if name in with_slices else stored.whole()
        return found

    def differences(self, plan: Plan) -> list[Difference]:
        """The tensors whose slices differ from a plan's.

        Raises:
            PlanError: see `check_against`.
        """
        self._check_world(plan)
        found = []
        for stage, tensors in self.stages.items():
            parameters = dict.fromkeys(plan.stage_parameters(stage))
            owners = {name: owning_parameter(name, parameters) for name in tensors}
            self._check_names(stage, owners, parameters)
            for name, owner in owners.items():
                assert owner is not None, "_check_names has refused such tensors"
                wanted, stored = plan.layouts[owner], tensors[name]
                with _naming(self.path, name):
                    layout = stored.whole(wanted.shape)
                if not same_slices(layout, wanted):
                    found.append(Difference(stage, name, layout, wanted))
        return found

    def check_against(self, plan: Plan) -> None:
        """Check that every device holds the same slices in the file as in the plan.

        Raises:
            PlanError: the file is for another number of devices or another model, or a tensor has another layout.
        """
        for first in self.differences(plan):
            raise PlanError(
                f"{self.path}: {first.name}: cut {cut_text(first.found)}; the plan has {cut_text(first.wanted)}; use"
                " the file of this plan"
            )

    def _check_world(self, plan: Plan) -> None:
        mesh = plan.mesh
        if self.stage_size != mesh.stage_size:
            raise PlanError(
                f"{self.path}: is of {self.stage_size} devices a stage; the plan has {mesh.stage_size}; use the file of"
                " this plan, or its degrees"
            )
        outside = [stage for stage in self.stages if stage >= mesh.num_stages]
        if outside or self.is_merged and len(self.stages) != mesh.num_stages:
            raise PlanError(
                f"{self.path}: holds stage {_list(self.stages)}; the plan has stages 0 to {mesh.num_stages - 1}; use"
                " the file of this plan"
            )

    def _check_names(self, stage: int, owners: dict[str, str | None], parameters: Mapping[str, None]) -> None:
        where = f"{self.path}: stage {stage}"
        if unknown := [name for name, owner in owners.items() if owner is None]:
            raise PlanError(
                f"{where}: {unknown[0]}: no parameter of this stage of the plan; use the file of this model and plan"
            )
        if missing := [name for name in parameters if name not in owners]:
            raise PlanError(
                f"{where}: {missing[0]} is missing; the plan has it in this stage; use the file of this model and plan"
            )


def read_parameter_layouts(path: str | Path, mesh: Mesh | None = None) -> StrategyFile:
    """Read a file, merged or not, protobuf or JSON.

    Args:
        mesh: gives the axes their names where sizes agree.

    Raises:
        PlanError: the file is missing, truncated or not a strategy file, or its numbers contradict each other.
    """
    path, content = Path(path), read_content(path)
    if not content.parallel_layout_item:
        raise PlanError(
            f"{path}: holds operators and no parameter layouts; a file saved by strategy_ckpt_save_file or"
            " save_param_strategy_file is wanted"
        )
    # MindSpore, too, takes the stage of the first operator.
    own = next((operator.stage for operator in content.parallel_strategy_item.values()), 0)
    stages: dict[int, dict[str, StoredLayout]] = {}
    names = [_STAGED.fullmatch(name) for name in content.parallel_layout_item]
    is_merged = all(names)
    for match, (name, item) in zip(names, content.parallel_layout_item.items()):
        stage, tensor = (int(match[1]), match[2]) if is_merged and match else (own, name)
        with _naming(path, name):
            stages.setdefault(stage, {})[tensor] = StoredLayout.of(item, mesh)
    _check_sizes(path, stages)
    return StrategyFile(path, dict(sorted(stages.items())), is_merged)


def write_parameter_layouts(plan: Plan, stage: int, path: str | Path) -> None:
    """Write the layouts of a stage's parameters and moments; JSON if the name ends in .json, else protobuf. MindSpore's
    tools read and merge them.

    MindSpore's own files also contain the operators that read each parameter; here a single placeholder operator gives
    the stage.

    Raises:
        PlanError: the plan has no such stage, or a layout that the format cannot express.
    """
    if not 0 <= stage < plan.mesh.num_stages:
        raise PlanError(
            f"stage {stage}: the plan has {plan.mesh.num_stages}; stages are 0 to {plan.mesh.num_stages - 1}"
        )
    with_shape = Path(path).suffix == ".json"
    items = {}
    for name in plan.stage_parameters(stage):
        with _naming(path, name):
            items[name] = layout_item(plan.layouts[name], with_shape)
    items |= {prefix + name: item for prefix in MOMENTS for name, item in items.items()}
    write_content(
        Content(
            parallel_layout_item=items, parallel_strategy_item={f"{PLACEHOLDER}{stage}": StrategyItem([[1]], stage)}
        ),
        path,
    )


# Cached, since a model has hundreds of tensors and only a few different layouts.
@functools.lru_cache
def same_slices(one: Layout, other: Layout) -> bool:
    """Whether every device holds the same slice in both, whatever the axes are called. Shapes and numbers of devices
    must agree."""
    return one == other or all(one.index(rank) == other.index(rank) for rank in range(one.num_devices))


def owning_parameter(name: str, parameters: Collection[str]) -> str | None:
    """The parameter to which a tensor belongs: itself, or the one that it is an optimizer state of; None for others."""
    owners = [name] + [name.removeprefix(prefix) for prefix in STATES if name.startswith(prefix)]
    return next((owner for owner in owners if owner in parameters), None)


def cut_text(layout: Layout) -> str:
    """Text of a layout for messages: the number of slices of each dimension and their axes, as in "8 (dp mp), 1"."""
    return (
        ", ".join(f"{count} ({' '.join(axes)})" if axes else "1" for count, axes in zip(layout.counts, layout.cuts))
        or "not at all"
    )


def _check_sizes(path: Path, stages: dict[int, dict[str, StoredLayout]]) -> None:
    sizes: dict[int, str] = {}
    for stage, tensors in stages.items():
        sizes |= {stored.pattern.num_devices: f"{name} (stage {stage})" for name, stored in tensors.items()}
    if len(sizes) > 1:
        (one, a), (other, b) = list(sizes.items())[:2]
        raise PlanError(
            f"{path}: {a} is on {one} devices, {b} on {other}; must be the same for all; save the strategy again"
        )


@contextlib.contextmanager
def _naming(path: str | Path, name: str) -> Iterator[None]:
    """Put the names of the file and the tensor before the message of a PlanError that is raised inside."""
    try:
        yield
    except PlanError as error:
        raise PlanError(f"{path}: {name}: {error}") from None


def _list(stages: Iterable[int]) -> str:
    return ", ".join(map(str, stages))
