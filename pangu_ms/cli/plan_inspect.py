"""`pangu plan inspect`: show a strategy file of MindSpore as a table, and optionally compare it with a plan. The file
holds parameter layouts (protobuf or JSON) or operator strategies (JSON)."""

import re
from argparse import Namespace
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.config.load import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.parallel.operator_file import (
    OperandLayout,
    OperatorStrategy,
    Slices,
    check_operators,
    read_operator_strategies,
)
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.stored_layout import StoredLayout
from pangu_ms.parallel.strategy_file import Difference, StrategyFile, cut_text, owning_parameter, read_parameter_layouts
from pangu_ms.parallel.strategy_wire import read_content

DIFFERENT = 1
"""Exit code when a file differs from the plan, as that of `diff`."""
Row = tuple[str, int, tuple[str, ...]]
"""Name, stage, other cells."""
_LAYER = re.compile(r"\d+(?=[./-])")


NOTES = """Layers with the same layout share a line, in which * stands for their numbers. Exit code with --config: 0 if
the slices are equal, 1 if not, 2 if the model or the world size differs. Of operators, the devices, stages and
parameters are checked."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu plan inspect", description=__doc__, epilog=NOTES)
    text = "strategy file; JSON if its name ends in .json, else protobuf"
    parser.add_argument("file", type=Path, metavar="FILE", help=text)
    options.add_config(parser, default=None)
    text = "print every layer and every optimizer state on its own line"
    parser.add_argument("--all", action="store_true", help=text)
    options.add_json(parser, "machine-readable output, always with every tensor")
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    if args.overrides and args.config is None:
        raise ConfigError(
            f"{args.overrides[0]}: an override without a configuration; must follow --config NAME; give one"
        )
    plan = Plan.of(load_config(args.config, args.overrides)) if args.config else None
    content = read_content(args.file)
    operators = read_operator_strategies(args.file)
    file = read_parameter_layouts(args.file, plan.mesh if plan else None) if content.parallel_layout_item else None
    differences = file.differences(plan) if file and plan else []
    result = _report(args.file, file, plan, operators.values()) | {"differences": None}
    lines = _lines(file, plan, operators.values(), args.all)
    if plan:
        check_operators(args.file, operators, plan)
        result["differences"] = [_difference(difference) for difference in differences]
        lines += ["", *_verdict(args.config, file, differences, args.all)]
    print_result(result, "\n".join(lines), args.json)
    return DIFFERENT if differences else 0


def _report(
    path: Path, file: StrategyFile | None, plan: Plan | None, operators: Collection[OperatorStrategy]
) -> dict[str, Any]:
    tensors = [
        _tensor(stored, _shape(name, stored, plan)) | {"stage": stage, "name": name}
        for stage, group in (file.stages if file else {}).items()
        for name, stored in group.items()
    ]
    rows = [
        {
            "key": strategy.key,
            "stage": strategy.stage,
            "inputs": _operands(strategy.in_strategies, strategy.in_layouts),
            "outputs": _operands(strategy.out_strategies, strategy.out_layouts),
        }
        for strategy in operators
    ]
    kind = "parameter layouts" if file else "operator strategies"
    stages = list(file.stages) if file else sorted({strategy.stage for strategy in operators})
    return {
        "file": str(path),
        "kind": kind,
        "stages": stages,
        "stage_size": file.stage_size if file else None,
        "parameters": tensors,
        "operators": rows,
    }


def _shape(name: str, stored: StoredLayout, plan: Plan | None) -> tuple[int, ...] | None:
    """The shape of the whole tensor: the plan's if there is one, otherwise that of the file."""
    owner = owning_parameter(name, plan.layouts) if plan else None
    return plan.layouts[owner].shape if plan and owner else stored.shape


def _tensor(stored: StoredLayout, shape: tuple[int, ...] | None) -> dict[str, Any]:
    pattern = stored.pattern
    slice_shape = stored.whole(shape).slice_shape if shape else None
    counts = {
        "counts": pattern.counts,
        "dims": pattern.dims,
        "optimizer_axes": pattern.optimizer_axes,
        "axes": pattern.axes,
    }
    return {"shape": shape, "slice_shape": slice_shape} | counts


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "stage": difference.stage,
        "name": difference.name,
        "file": cut_text(difference.found),
        "plan": cut_text(difference.wanted),
    }


def _lines(
    file: StrategyFile | None, plan: Plan | None, operators: Iterable[OperatorStrategy], every: bool
) -> list[str]:
    lines = []
    if file:
        merged = " (merged)" if file.is_merged else ""
        lines += [
            f"parameter layouts: stage {_numbers(list(file.stages))}{merged}, {file.stage_size} devices a stage",
            "",
        ]
        lines += _table(
            ["parameter", "", "stage", "states", "shape", "slice", "pieces (axes)", "devices"],
            _parameter_rows(file, plan, every),
        )
    if rows := _operator_rows(operators, every):
        lines += ([""] if lines else []) + _table(["operator", "", "stage", "inputs", "outputs"], rows)
    return lines


def _parameter_rows(file: StrategyFile, plan: Plan | None, every: bool) -> list[tuple[str, ...]]:
    rows: list[Row] = []
    for stage, tensors in file.stages.items():
        rows += _with_states(
            stage, {name: _cells(stored, _shape(name, stored, plan)) for name, stored in tensors.items()}, every
        )
    return _collapsed(rows, every)


def _with_states(stage: int, cells: dict[str, tuple[str, ...]], every: bool) -> list[Row]:
    """Rows whose first cell lists optimizer states. A state with the same cells as its parameter is listed in the row
    of the parameter, unless `every` is set."""
    states: dict[str, list[str]] = {name: [] for name in sorted(cells, key=_in_order)}
    for name in sorted(cells):
        # Without the tensor itself, which would be its own owner.
        owner = owning_parameter(name, cells.keys() - {name})
        if not every and owner and cells[owner] == cells[name]:
            states[owner].append(name.removesuffix(f".{owner}"))
            del states[name]
    return [(name, stage, (" ".join(found), *cells[name])) for name, found in states.items()]


def _cells(stored: StoredLayout, shape: tuple[int, ...] | None) -> tuple[str, ...]:
    slice_shape = stored.whole(shape).slice_shape if shape else None
    return (
        _size(shape),
        _size(slice_shape),
        cut_text(stored.pattern),
        " x ".join(f"{name} {size}" for name, size in stored.pattern.axes),
    )


def _operator_rows(operators: Iterable[OperatorStrategy], every: bool) -> list[tuple[str, ...]]:
    rows = [
        (
            o.key,
            o.stage,
            (_operands_text(o.in_strategies, o.in_layouts), _operands_text(o.out_strategies, o.out_layouts)),
        )
        for o in sorted(operators, key=lambda o: _in_order(o.key))
    ]
    return _collapsed(rows, every)


def _collapsed(rows: Sequence[Row], every: bool) -> list[tuple[str, ...]]:
    """Rows of name, count, stages and cells. Rows that differ only in stage and in the numbers in their name are
    merged, unless `every` is set."""
    groups: dict[tuple[Any, ...], list[tuple[str, int]]] = {}
    for name, stage, cells in rows:
        groups.setdefault((name, stage, cells) if every else (_LAYER.sub("*", name), 0, cells), []).append(
            (name, stage)
        )
    lines = []
    for (pattern, _, cells), members in groups.items():
        names, stages = {name for name, _ in members}, sorted({stage for _, stage in members})
        start = (pattern, f"x{len(names)}") if len(names) > 1 else (*names, "")
        lines.append((*start, _numbers(stages), *cells))
    return lines


def _numbers(numbers: Sequence[int]) -> str:
    """Format sorted numbers: "0-15" if there are more than two without gaps, else "0,15"."""
    together = len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if together else ",".join(map(str, numbers))


def _in_order(name: str) -> list[Any]:
    """A sort key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _operands(strategies: tuple[Slices, ...], layouts: tuple[OperandLayout, ...]) -> list[dict[str, Any]]:
    """Slice counts of each operand, and its layout if one was given."""
    count = max(len(strategies), len(layouts))
    padded = zip((*strategies, *[None] * (count - len(strategies))), (*layouts, *[None] * (count - len(layouts))))
    return [
        {"counts": counts} | ({"axes": layout.axes, "dims": layout.dims} if layout else {}) for counts, layout in padded
    ]


def _operands_text(strategies: tuple[Slices, ...], layouts: tuple[OperandLayout, ...]) -> str:
    if layouts:
        return " ".join("(" + ", ".join(" ".join(dim) or "1" for dim in layout.dims) + ")" for layout in layouts)
    return " ".join(str(counts).replace(",)", ")") for counts in strategies)


def _size(shape: tuple[int, ...] | None) -> str:
    return "?" if shape is None else " x ".join(map(str, shape))


def _verdict(config: str, file: StrategyFile | None, differences: list[Difference], every: bool) -> list[str]:
    if not file:
        return [
            f"fits the devices and stages of {config}; operators are compared by `pangu plan rehearse` with"
            " parallel.operator_strategies"
        ]
    if not differences:
        return [f"every slice lies where {config} has it"]
    rows: list[Row] = []
    for stage in file.stages:
        rows += _with_states(
            stage, {d.name: (cut_text(d.found), cut_text(d.wanted)) for d in differences if d.stage == stage}, every
        )
    head = ["parameter", "", "stage", "states", "file", "plan"]
    return [f"{len(differences)} tensors lie otherwise than {config} has them:", *_table(head, _collapsed(rows, every))]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns are left-aligned; empty columns are left out."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table_lines([head[i] for i in kept], [[row[i] for i in kept] for row in rows], "<" * len(kept))
