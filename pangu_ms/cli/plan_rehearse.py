"""`pangu plan rehearse`: compile a plan's training step for virtual ranks."""

import dataclasses
import json
from argparse import Namespace
from typing import Any

from pangu_ms.cli import options
from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.errors import ConfigError, PlanError
from pangu_ms.core.parser import Parser
from pangu_ms.core.size_text import size_text
from pangu_ms.core.table import print_result
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import DEFAULT_CHIP
from pangu_ms.rehearsal.compiled_graph import totals
from pangu_ms.rehearsal.rehearse import RankReport, rehearse, sample_ranks, thinned

DESCRIPTION = """Compile the real training step for ranks of a cluster that does not exist, with MindSpore's own
parallel compiler, on this CPU. Prints the collectives and the memory of each rank, and where the compiler disagrees
with the plan. Nothing is executed. MindSpore does not support this officially: it works with the versions that it was
tested with."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu plan rehearse", description=DESCRIPTION)
    options.add_config(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--ranks", metavar="N,N,...", help="ranks to compile for (default: the first rank of every stage)"
    )
    text = "number of ranks to compile for, spread over the stages and over the ranks in each; 0: one of every stage"
    which.add_argument("--sample", type=int, default=0, metavar="N", help=text)
    text = "number of layers to keep on each stage, at full width; 0 keeps all"
    parser.add_argument("--layers-per-stage", type=int, default=2, metavar="N", help=text)
    text = "number of micro-batches to keep, at least as many as stages; 0 keeps all"
    parser.add_argument("--micro-batches", type=int, default=0, metavar="N", help=text)
    text = f"chip for whose operators the step is compiled (default: runtime.chip, or {DEFAULT_CHIP})"
    # More chips than the planner knows: a rehearsal needs no published rates.
    parser.add_argument("--chip", choices=("ascend910", "ascend910b", "ascend910_93"), help=text)
    text = "compile for elementary operators instead, which a CPU could execute"
    parser.add_argument("--composed", action="store_true", help=text)
    text = "new directory for report.json and MindSpore's strategy files of the ranks"
    options.add_new_directory(parser, "--output", text)
    parser.add_argument("--parameters", action="store_true", help="also print the slice of every parameter")
    options.add_json(parser, "print the report as JSON")
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    """Run the action; returns 1 if the compiler and the plan disagree."""
    if min(args.sample, args.layers_per_stage, args.micro_batches) < 0:
        raise ConfigError("--sample, --layers-per-stage, --micro-batches: must not be negative; 0 takes all")
    whole = load_config(args.config, args.overrides)
    # A file of operator strategies lists every layer and micro-batch, so none can be left out.
    config = whole if whole.parallel.operator_strategies else thinned(whole, args.layers_per_stage, args.micro_batches)
    chip = "" if args.composed else args.chip or config.runtime.chip or DEFAULT_CHIP
    if chip == "ascend910" and config.model.compute_dtype == "bfloat16":
        raise PlanError(
            "model.compute_dtype=bfloat16: ascend910 has no bfloat16; set model.compute_dtype=float16, or name a chip"
            " that has it: --chip ascend910b (runtime.chip)"
        )
    plan = Plan.of(config)
    ranks = _ranks(args.ranks) if args.ranks else sample_ranks(plan, args.sample)
    if args.output:
        with files.writing(args.output):
            args.output.mkdir(parents=True, exist_ok=True)
    reports = rehearse(config, ranks, chip, args.output, progress=not args.json)
    compiled = kept(whole, config)
    if args.output:
        details = compiled | {"ranks": [dataclasses.asdict(report) for report in reports]}
        files.write_text(args.output / "report.json", json.dumps(details, indent=1) + "\n")
    lines = [_heading(plan, compiled), *(table(report, args.parameters) for report in reports)]
    print_result(compiled | {"ranks": [_summary(report) for report in reports]}, "\n".join(lines), args.json)
    return 1 if any(report.differences for report in reports) else 0


def _heading(plan: Plan, compiled: dict[str, list[int]]) -> str:
    layers, micro_batches = ("{} of {}".format(*compiled[name]) for name in ("layers", "micro_batches"))
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.axes)
    return (
        f"{plan.config.model.family}: {layers} layers, {micro_batches} micro-batches, full width; {plan.mesh.world}"
        f" devices: {axes} x {plan.mesh.num_stages} stages of {list(plan.stage_layers)} layers"
    )


def kept(whole: RunConfig, config: RunConfig) -> dict[str, list[int]]:
    """How much of a configuration was compiled: the pair [compiled, whole] for layers and for micro-batches."""
    micro = [Plan.of(one).num_micro_batches for one in (config, whole)]
    return {"layers": [config.model.num_layers, whole.model.num_layers], "micro_batches": micro}


def table(report: RankReport, with_parameters: bool) -> str:
    """The report of one rank as text."""
    lines = [
        f"rank {report.rank}, stage {report.stage}: compiled in {report.seconds:.1f} s, {size_text(report.peak_bytes)};"
        f" parameters {report.parameter_bytes:,} bytes, moments {report.optimizer_bytes:,} bytes"
    ]
    lines += [
        f"  {kind:<14} group of {size:<5} x {number:<5} {total / 2**20:>12,.2f} MiB"
        for kind, size, number, total in totals(report.collectives)
    ]
    if with_parameters:
        lines += [f"  {name:<60} {list(shape)}" for name, shape in report.slices.items()]
    agree = "the compiler's slices are those of the plan"
    return "\n".join(lines + ([f"  DIFFERS {line}" for line in report.differences] or [f"  {agree}"]))


def _summary(report: RankReport) -> dict[str, Any]:
    keys = ("kind", "group_size", "count", "bytes")
    return {
        "rank": report.rank,
        "stage": report.stage,
        "seconds": report.seconds,
        "peak_bytes": report.peak_bytes,
        "parameter_bytes": report.parameter_bytes,
        "optimizer_bytes": report.optimizer_bytes,
        "collectives": [dict(zip(keys, row)) for row in totals(report.collectives)],
        "slices": report.slices,
        "differences": report.differences,
    }


def _ranks(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PlanError(f"--ranks {text}: must be numbers with commas between them, such as 0,8,16") from None
