"""`pangu plan show`: show degrees, stages, placement, and the layout of every parameter."""

import math
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.config.load import load_config
from pangu_ms.core import files
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.strategy_file import write_parameter_layouts
from pangu_ms.planner.cluster import GIB
from pangu_ms.planner.memory import optimizer_bytes, parameter_bytes

SHOWN_RANKS = 8
"""Ranks of a group that are listed; of a larger group only the last rank follows."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu plan show", description=__doc__)
    options.add_config(parser, "alpha/13b")
    options.add_devices(parser)
    text = "show only what this rank holds, with its slices (default: all ranks)"
    parser.add_argument("--rank", type=int, metavar="R", help=text)
    text = "also write MindSpore's parameter-layout file of each stage into this new directory: strategy_stage_N.ckpt"
    options.add_new_directory(parser, "--strategy-files", text)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    plan = Plan.of(load_config(args.config, args.overrides), args.devices)
    if args.strategy_files:
        write_strategy_files(plan, args.strategy_files)
    shown = as_dict(args.config, plan, args.rank)
    print_result(shown, table(shown), args.json)
    return 0


def write_strategy_files(plan: Plan, directory: Path) -> None:
    """Write one file for each stage, as MindSpore's compiler would write it. MindSpore's tools, such as
    merge_pipeline_strategys and transform_checkpoints, read these files."""
    files.require_free(directory, "--strategy-files")
    with files.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for stage in range(plan.mesh.num_stages):
        write_parameter_layouts(plan, stage, directory / f"strategy_stage_{stage}.ckpt")


def as_dict(name: str, plan: Plan, rank: int | None) -> dict[str, Any]:
    """The plan as JSON values, for all ranks or for one.

    Raises:
        PlanError: there is no such rank.
    """
    stage = None if rank is None else plan.mesh.coordinate(rank).stage
    shown = {
        "config": name,
        "devices": plan.mesh.world,
        "num_parameters": plan.config.model.num_parameters(),
        "degrees": _degrees(plan),
    }
    shown |= {"axes": plan.mesh.axes, "groups": _groups(plan, rank or 0)}
    stages = range(plan.mesh.num_stages) if stage is None else [stage]
    shown |= {"stages": [_stage(plan, s) for s in stages], "parameters": parameter_rows(plan, rank)}
    placement = plan.mesh.placement()
    if rank is None:
        return shown | {"placement": [[at.server, at.device] for at in placement]}
    coordinate = dict(zip(plan.mesh.names, plan.mesh.coordinate(rank).axes))
    return shown | {
        "rank": rank,
        "coordinate": {"stage": stage} | coordinate,
        "server": placement[rank].server,
        "device": placement[rank].device,
    }


def _degrees(plan: Plan) -> dict[str, Any]:
    return {
        name: getattr(plan.config.parallel, name)
        for name in plan.config.parallel.__dataclass_fields__
        if name not in ("num_devices", "stage_layers")
    }


def _groups(plan: Plan, rank: int) -> list[dict[str, Any]]:
    """The communication groups of a rank, along each axis and across the stages."""
    mesh = plan.mesh
    groups = {name: mesh.group(rank, name) for name, size in mesh.axes if size > 1}
    if mesh.num_stages > 1:
        groups["stage"] = list(range(rank % mesh.stage_size, mesh.world, mesh.stage_size))
    return [{"axis": axis, "ranks": ranks, "servers": mesh.servers(ranks)} for axis, ranks in groups.items()]


def _stage(plan: Plan, stage: int) -> dict[str, Any]:
    layers = [name for name, at in zip(plan.config.model.layer_names(), plan.layer_stages) if at == stage]
    ranks = plan.mesh.stage_ranks(stage)
    sizes = {"parameter_bytes": parameter_bytes(plan, stage), "optimizer_bytes": optimizer_bytes(plan, stage)}
    return {
        "stage": stage,
        "layers": layers,
        "ranks": [ranks.start, ranks.stop - 1],
        "servers": plan.mesh.servers(list(ranks)),
    } | sizes


def parameter_rows(plan: Plan, rank: int | None = None) -> list[dict[str, Any]]:
    """One row for all parameters that differ only in a number in their name. If a rank is given, only the parameters of
    its stage are listed, with the begin and end of its slices."""
    stage = None if rank is None else plan.mesh.coordinate(rank).stage
    alike: Counter[tuple[str, Layout]] = Counter()
    for name in plan.layouts if stage is None else plan.stage_parameters(stage):
        alike[re.sub(r"\d+", "*", name), plan.layouts[name]] += 1
    return [
        _row(name, count, layout, None if rank is None else rank % plan.mesh.stage_size)
        for (name, layout), count in alike.items()
    ]


def _row(name: str, count: int, layout: Layout, rank: int | None) -> dict[str, Any]:
    row = {
        "name": name,
        "count": count,
        "shape": layout.shape,
        "cuts": layout.cuts,
        "slice_shape": layout.slice_shape,
        "copies": layout.num_devices // math.prod(layout.counts),
        "bytes": 4 * layout.slice_size,
    }
    return row if rank is None else row | {"slice": [(part.start, part.stop) for part in layout.slices(rank)]}


def table(shown: dict[str, Any]) -> str:
    """The plan as text."""
    lines = [f"{shown['config']}: {shown['num_parameters']:,} parameters on {_plural(shown['devices'], 'device')}"]
    degrees = {
        name: str(value).lower() if isinstance(value, bool) else value for name, value in shown["degrees"].items()
    }
    lines.append("  " + ", ".join(f"{name}={value}" for name, value in degrees.items()))
    if "rank" in shown:
        at = ", ".join(f"{name} {index}" for name, index in shown["coordinate"].items())
        lines.append(f"  rank {shown['rank']}: {at}; placed on server {shown['server']}, device {shown['device']}")
    lines += ["", *_stage_lines(shown["stages"]), "", *_group_lines(shown), "", *_parameter_lines(shown["parameters"])]
    return "\n".join(lines)


def _stage_lines(stages: list[dict[str, Any]]) -> list[str]:
    head = ("stage", "layers", "first to last", "ranks", "servers", "parameters GiB", "moments GiB")
    rows = []
    for stage in stages:
        layers = stage["layers"]
        rows.append(
            (
                stage["stage"],
                len(layers),
                f"{layers[0]} to {layers[-1]}",
                "{}-{}".format(*stage["ranks"]),
                stage["servers"],
                f"{stage['parameter_bytes'] / GIB:.3f}",
                f"{stage['optimizer_bytes'] / GIB:.3f}",
            )
        )
    return table_lines(head, rows, ">><>>>>")


def _group_lines(shown: dict[str, Any]) -> list[str]:
    lines = [f"groups of rank {shown.get('rank', 0)}, as placed: mp innermost, then stages, replicas outermost"]
    for group in shown["groups"]:
        ranks, servers = group["ranks"], group["servers"]
        more = f", ... {ranks[-1]}" if len(ranks) > SHOWN_RANKS else ""
        names = ", ".join(str(r) for r in ranks[:SHOWN_RANKS]) + more
        lines.append(f"  {group['axis']:<6} {len(ranks):>5} ranks in {_plural(servers, 'server')}: {names}")
    return lines if shown["groups"] else ["one device, no groups"]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _parameter_lines(rows: list[dict[str, Any]]) -> list[str]:
    last = "slice of this rank" if rows and "slice" in rows[0] else "a device's slice"
    head = ("parameter (float32)", "count", "shape", "cut over", "copies", "KiB each", last)
    cells = []
    for row in rows:
        if "slice" in row:
            part = ", ".join(f"{start}:{stop}" for start, stop in row["slice"])
        else:
            part = " x ".join(map(str, row["slice_shape"]))
        shape, cuts = " x ".join(map(str, row["shape"])), " x ".join("*".join(axes) or "-" for axes in row["cuts"])
        size = f"{row['bytes'] / 1024:,.1f}"
        cells.append((row["name"], row["count"], shape, cuts, row["copies"], size, part))
    return table_lines(head, cells, "<>><>><")
