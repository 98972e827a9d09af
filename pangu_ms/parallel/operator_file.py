"""Reads, writes and checks MindSpore's operator strategies: the number of slices of each operand of each operator. No
mindspore import.

MindSpore stores them in a JSON file of their own, keyed by scope (`AutoParallel.save_operator_strategy_file`, sharding
propagation only), and in files of parameter layouts, keyed by the parameter that the operator reads.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.strategy_file import PLACEHOLDER
from pangu_ms.parallel.strategy_wire import Content, OperandItem, StrategyItem, read_content, write_content

_KIND = re.compile(r"_*[^_]*")  # MindSpore's own operators begin with _
Slices = tuple[Any, ...]
"""Number of slices of each dimension of one operand; () for a scalar, nested for an operand that is a tuple of
tensors."""


@dataclass(frozen=True)
class OperandLayout:
    """The layout of one operand to which the model gives a mindspore.parallel.Layout."""

    axes: tuple[tuple[str, int], ...]
    """(name, size) of the device matrix, slowest first."""
    dims: tuple[tuple[str, ...], ...]
    """For each dimension the axes that shard it."""
    interleaved: bool = False
    """MindSpore's interleaved_parallel: the last axis is not an axis of devices; it splits the operand in halves whose
    computation and communication overlap."""


@dataclass(frozen=True)
class OperatorStrategy:
    """How one operator is sharded."""

    key: str
    """"Default/network-Net/blocks/MatMul-op0", or "MatMul_blocks.weight" in a file of parameter layouts."""
    in_strategies: tuple[Slices, ...] = ()
    out_strategies: tuple[Slices, ...] = ()
    in_layouts: tuple[OperandLayout, ...] = ()
    """The layout of each operand, where the operator was given layouts; more exact than the strategies."""
    out_layouts: tuple[OperandLayout, ...] = ()
    stage: int = 0

    @property
    def kind(self) -> str:
        """MindSpore's name of the operator, such as MatMul."""
        if self.has_scope:
            return self.key.rpartition("/")[2].rpartition("-op")[0]
        found = _KIND.match(self.key)
        assert found, "the pattern begins everywhere"
        return found[0]

    @property
    def has_scope(self) -> bool:
        """Whether the key is a scope; otherwise it ends in a parameter's name."""
        return "/" in self.key

    @property
    def parameter(self) -> str | None:
        """Name of the parameter in the key; None if the key is a scope."""
        return None if self.has_scope else _KIND.sub("", self.key, count=1).removeprefix("_")


def read_operator_strategies(path: str | Path) -> dict[str, OperatorStrategy]:
    """The operators of a file of either kind, by key, in the file's order. A file that was written from a plan contains
    none.

    Raises:
        PlanError: the file is missing, truncated or not a strategy file, or the numbers of a layout contradict each
            other.
    """
    content = read_content(path)
    sections = (
        content.parallel_strategy_item,
        content.parallel_out_strategy_item,
        content.parallel_layout_value_item,
        content.parallel_out_layout_value_item,
    )
    keys = dict.fromkeys(key for section in sections for key in section if not key.startswith(PLACEHOLDER))
    return {key: _operator(path, key, content) for key in keys}


def write_operator_strategies(operators: Iterable[OperatorStrategy], path: str | Path) -> None:
    """Write the JSON file that `AutoParallel.load_operator_strategy_file` reads; MindSpore requires every operator of
    the model in it.

    Raises:
        PlanError: the name does not end in .json, which MindSpore demands.
    """
    if Path(path).suffix != ".json":
        raise PlanError(f"{path}: operator strategies are JSON; the name must end in .json; rename it")
    operators = list(operators)
    content = Content(
        current_stage=0,
        parallel_strategy_item={
            o.key: StrategyItem(_lists(o.in_strategies), o.stage) for o in operators if o.in_strategies
        },
        parallel_out_strategy_item={
            o.key: StrategyItem(_lists(o.out_strategies), o.stage) for o in operators if o.out_strategies
        },
        parallel_layout_value_item={o.key: _operand_items(o.in_layouts) for o in operators if o.in_layouts},
        parallel_out_layout_value_item={o.key: _operand_items(o.out_layouts) for o in operators if o.out_layouts},
    )
    write_content(content, path)


def check_operators(
    path: str | Path, operators: dict[str, OperatorStrategy], plan: Plan, known: Collection[str] | None = None
) -> None:
    """Check that the operators fit a plan's devices and stages, and are those of its model.

    Args:
        path: the file they come from, for messages.
        known: keys of all operators of the model, if the caller has them. Without it parameter names in the keys are
            looked up in the plan, and scopes are not checked.

    Raises:
        PlanError: an operator is unknown, missing, on another number of devices or in a stage that the plan lacks; the
            message names the first one.
    """
    for key, operator in operators.items():
        where = f"{path}: {key}"
        if known is None and operator.parameter is not None and operator.parameter not in plan.parameter_stages:
            raise PlanError(
                f"{where}: {operator.parameter} is no parameter of the plan's"
                f" model{_nearest(operator.parameter, plan.parameter_stages)}"
            )
        if known is not None and key not in known:
            raise PlanError(
                f"{where}: the model has no such operator; every key must be one of its{_nearest(key, known)}"
            )
        if operator.stage >= plan.mesh.num_stages:
            raise PlanError(
                f"{where}: stage {operator.stage}; the plan has stages 0 to {plan.mesh.num_stages - 1}; use the file of"
                " this plan"
            )
        _check_devices(where, operator, plan.mesh.stage_size)
    if missing := [key for key in known or () if key not in operators]:
        raise PlanError(
            f"{path}: {missing[0]} is missing; MindSpore wants every operator of the model; save the file again with"
            " this model"
        )


def _check_devices(where: str, operator: OperatorStrategy, devices: int) -> None:
    for slices in operator.in_strategies + operator.out_strategies:
        for counts in _tensors(slices):
            if devices % math.prod(counts):
                raise PlanError(
                    f"{where}: an operand in {list(counts)} slices; {math.prod(counts)} must divide the {devices}"
                    " devices of a stage; change them"
                )
    for layout in operator.in_layouts + operator.out_layouts:
        size = math.prod(n for _, n in layout.axes) // (2 if layout.interleaved else 1)
        if size != devices:
            raise PlanError(
                f"{where}: a layout on {size} devices; a stage of the plan has {devices}, which it must be; use the"
                " file of this plan"
            )


def _tensors(slices: Slices) -> Iterator[Slices]:
    """The tensors of an operand."""
    if slices and isinstance(slices[0], tuple):
        for inner in slices:
            yield from _tensors(inner)
    else:
        yield slices


def _operator(path: str | Path, key: str, content: Content) -> OperatorStrategy:
    given, out = content.parallel_strategy_item.get(key), content.parallel_out_strategy_item.get(key)
    return OperatorStrategy(
        key,
        _tuples(path, key, given.parallel_strategy) if given else (),
        _tuples(path, key, out.parallel_strategy) if out else (),
        _operands(path, key, content.parallel_layout_value_item.get(key, {})),
        _operands(path, key, content.parallel_out_layout_value_item.get(key, {})),
        (given or out or StrategyItem([])).stage,
    )


def _operands(path: str | Path, key: str, items: dict[str, OperandItem]) -> tuple[OperandLayout, ...]:
    return tuple(
        _operand(f"{path}: {key}: operand {number}", items[number])
        for number in sorted(items, key=lambda n: (len(n), n))  # as numbers: "10" comes after "9"
    )


def _operand(where: str, item: OperandItem) -> OperandLayout:
    names, sizes = item.alias_name, item.dev_matrix
    dims = [dim if isinstance(dim, list) else [dim] for dim in item.tensor_map]
    if len(names) != len(sizes) or any(not -1 <= number < len(names) for dim in dims for number in dim):
        raise PlanError(
            f"{where}: alias_name {names}, dev_matrix {sizes}, tensor_map {item.tensor_map}: must name an axis each;"
            " save the file again"
        )
    cuts = tuple(tuple(names[-1 - number] for number in dim if number != -1) for dim in dims)
    return OperandLayout(tuple(zip(names, sizes)), cuts, item.interleaved_parallel)


def _operand_items(layouts: tuple[OperandLayout, ...]) -> dict[str, OperandItem]:
    return {str(i): _operand_item(layout) for i, layout in enumerate(layouts)}


def _operand_item(layout: OperandLayout) -> OperandItem:
    names = [name for name, _ in layout.axes]
    numbers: list[int | list[int]] = [
        [len(names) - 1 - names.index(name) for name in dim] or [-1] for dim in layout.dims
    ]
    return OperandItem(names, [size for _, size in layout.axes], numbers, layout.interleaved)


def _tuples(path: str | Path, key: str, lists: list[Any]) -> tuple[Any, ...]:
    return tuple(
        _tuples(path, key, item) if isinstance(item, list) else _slice_count(path, key, item) for item in lists
    )


def _slice_count(path: str | Path, key: str, number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise PlanError(f"{path}: {key}: {number!r} slices; must be a whole number from 1 up; save the file again")
    return number


def _lists(slices: tuple[Any, ...]) -> list[Any]:
    return [_lists(item) if isinstance(item, tuple) else item for item in slices]


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else "; use the file of this model"
