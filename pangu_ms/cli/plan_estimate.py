"""`pangu plan estimate`: memory of a device and time of a step, term by term. The exit code is 0 if the plan fits into
the memory, and 1 if not."""

import dataclasses
import shlex
from argparse import Namespace
from typing import Any

from ascend_ops.packing import INPUTS
from pangu_ms.cli import options
from pangu_ms.config.load import load_config
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import PlanError
from pangu_ms.core.parser import Parser
from pangu_ms.core.size_text import size_text
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.parallel.plan import Plan
from pangu_ms.planner.cluster import CHIPS, DEFAULT_CHIP, GIB, Chip, parse_bytes
from pangu_ms.planner.estimate import Change, Estimate, describe, published_rows, ways_to_fit, with_shorter_context
from pangu_ms.planner.memory import stage_memory
from pangu_ms.planner.serving import ServingMemory
from pangu_ms.planner.time import MFU_FORMULA

NOTES = """parameters and moments are exact; all other numbers are predictions that were never checked on hardware
{chip}: {source}
achievable share of the peak {achievable:g}: fitted on {fitted}
links are those of the placement that `pangu plan show` prints"""

DOES_NOT_FIT = 1
"""Exit code of a plan that does not fit into the memory."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu plan estimate", description=__doc__)
    options.add_config(parser, "alpha/13b")
    options.add_devices(parser)
    add_chip(parser)
    text = "show the memory of this stage instead of the stage that needs most"
    parser.add_argument("--stage", type=int, metavar="N", help=text)
    text = "instead compare predictions with the published throughputs of alpha 2.6B and 13B"
    parser.add_argument("--published", action="store_true", help=text)
    text = "instead estimate the memory of one device that generates, and how many sequences fit at a time"
    parser.add_argument("--serve", action="store_true", help=text)
    parser.add_argument("--slots", type=int, metavar="N", help="with --serve: sequences at a time (default: 8)")
    text = "with --serve: tokens of a sequence, prompt and continuation (default: model.seq_length)"
    parser.add_argument("--max-length", type=int, metavar="N", help=text)
    parser.add_argument("--chunk", type=int, metavar="N", help="with --serve: prompt tokens of a step (default: 64)")
    text = "with --serve: dtype of packed or quantized matrices (default: float32 as they are)"
    parser.add_argument("--weights", choices=tuple(INPUTS), help=text)
    text = "with --serve: dtype of cached keys and values (default: model.compute_dtype)"
    parser.add_argument("--cache-dtype", choices=("float32", "float16", "bfloat16"), help=text)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def add_chip(parser: Parser) -> None:
    """Add `--chip NAME` and `--hbm SIZE`."""
    text = f"chip whose published rates are used (default: runtime.chip, or {DEFAULT_CHIP})"
    parser.add_argument("--chip", choices=CHIPS, help=text)
    text = "memory of a card, such as 32GiB or 64GB; a bare number is GiB (default: the chip's)"
    parser.add_argument("--hbm", metavar="SIZE", help=text)


def chip_and_hbm(config: RunConfig, chip: str | None, hbm: str | None) -> tuple[Chip, int]:
    """The chip and its memory in bytes, from `--chip` and `--hbm` or else from the configuration."""
    chosen = CHIPS[chip or config.runtime.chip or DEFAULT_CHIP]
    return chosen, chosen.hbm_bytes if hbm is None else parse_bytes("--hbm", hbm)


def _run(args: Namespace) -> int:
    of_serve = ("slots", "max_length", "chunk", "weights", "cache_dtype")
    given = [name for name in of_serve if getattr(args, name) is not None]
    if given and not args.serve:
        option = f"--{given[0].replace('_', '-')}"
        raise PlanError(f"{option} {getattr(args, given[0])}: is an option of --serve; add --serve, or leave it out")
    if args.published:
        rows = published_rows()
        result = {"published": rows, "chip": dataclasses.asdict(CHIPS["ascend910"])}
        print_result(result, published_table(rows), args.json)
        return 0
    config = load_config(args.config, args.overrides)
    if args.serve:
        return _serve(args, config)
    plan = Plan.of(config, args.devices)
    estimate = Estimate.of(plan, *chip_and_hbm(config, args.chip, args.hbm))
    stage = estimate.worst_stage if args.stage is None else args.stage
    if not 0 <= stage < plan.mesh.num_stages:
        raise PlanError(f"--stage {stage}: the plan has {plan.mesh.num_stages}; use 0 to {plan.mesh.num_stages - 1}")
    ways = ways_to_fit(estimate) if estimate.excess > 0 else []
    text = table(args.config, estimate, stage, ways)
    print_result(as_dict(args.config, estimate, ways), text, args.json)
    return DOES_NOT_FIT if estimate.excess > 0 else 0


def _serve(args: Namespace, config: RunConfig) -> int:
    """The memory of one device that generates."""
    most = config.model.seq_length
    slots, chunk = (default if given is None else given for given, default in ((args.slots, 8), (args.chunk, 64)))
    length = most if args.max_length is None else args.max_length
    for name, value in (("--slots", slots), ("--chunk", chunk)):
        if value < 1:
            raise PlanError(f"{name} {value}: must be at least 1")
    if not 1 <= length <= most:
        raise PlanError(f"--max-length {length}: must be at least 1 and at most model.seq_length={most}")
    sizes = slots, length, min(chunk, length)
    memory = ServingMemory(config.model, *sizes, args.weights or "", cache_dtype=args.cache_dtype or "")
    chip, hbm = chip_and_hbm(config, args.chip, args.hbm)
    room, fits = memory.slots_in(hbm), memory.total_bytes <= hbm
    rows = [(f"  {line.name}", f"{line.bytes / GIB:.3f}", line.formula) for line in memory.lines()]
    rows.append(("  total", f"{memory.total_bytes / GIB:.3f}", ""))
    rows.append(("  one slot", f"{memory.slot_bytes / GIB:.3f}", ""))
    packed = f", {args.weights} weights" if args.weights else ""
    cached = f", {args.cache_dtype} cache" if args.cache_dtype else ""
    heading = f"{args.config}: {slots} sequences of {length} tokens, {config.model.compute_dtype}{packed}{cached}"
    text = "\n".join(
        [
            heading,
            "",
            *table_lines(("memory", "GiB", "formula (bytes)"), rows, "<><"),
            f"{'fits' if fits else 'does not fit'} into {size_text(hbm, 'g')}, which has room for {room} slots",
        ]
    )
    result = {"config": args.config, "slots": slots, "max_length": length, "hbm_gib": hbm / GIB, "fits": fits}
    result |= {"memory": [dataclasses.asdict(line) for line in memory.lines()], "slot_bytes": memory.slot_bytes}
    print_result(result | {"total_bytes": memory.total_bytes, "slots_that_fit": room}, text, args.json)
    return 0 if fits else DOES_NOT_FIT


def table(name: str, estimate: Estimate, stage: int, ways: list[tuple[Change, Estimate]]) -> str:
    """The estimate as text."""
    parallel, chip = estimate.plan.config.parallel, estimate.chip
    degrees = f"dp {parallel.data_parallel}, mp {parallel.model_parallel}, pp {parallel.pipeline_stage}"
    heading = (
        f"{name} on {estimate.plan.mesh.world} x {chip.name}: {degrees}, {estimate.plan.config.global_batch_size}"
        " sequences a step"
    )
    memory = estimate.memory.get(stage) or stage_memory(estimate.plan, stage, chip, estimate.slices)
    rows = [(f"  {line.name}", f"{line.bytes / GIB:.3f}", line.formula) for line in memory]
    rows.append(("  total", f"{sum(line.bytes for line in memory) / GIB:.3f}", ""))
    lines = [heading, "", *table_lines((f"memory of stage {stage}", "GiB", "formula (bytes)"), rows, "<><")]
    lines += [
        verdict(estimate) + ("; cheapest changes:" if ways else ""),
        *(f"  {way_text(change, after)}" for change, after in ways),
    ]
    if ways and ways[0][1].excess > 0:
        lines.append(
            f"  none of these is enough; `pangu plan search --config {shlex.quote(name)} --devices N` tries them"
            " together"
        )
        if shorter := with_shorter_context(estimate):
            context = f"model.seq_length={estimate.plan.config.model.seq_length}"
            lines.append(f"  {context} takes most of the memory; a shorter context: {way_text(*shorter)}")
    rows = [(f"  {term.name}", f"{term.seconds * 1e3:.1f}", term.formula) for term in estimate.terms]
    rows.append(("  total", f"{estimate.seconds * 1e3:.1f}", ""))
    lines += ["", *table_lines(("time of a step", "ms", "formula"), rows, "<><")]
    lines += [speed(estimate), f"MFU: {MFU_FORMULA}", "", notes(chip)]
    return "\n".join(lines)


def verdict(estimate: Estimate) -> str:
    """Whether the plan fits into the memory, and by how much."""
    hbm, stage = size_text(estimate.hbm_bytes, "g"), estimate.worst_stage
    if estimate.excess > 0:
        needed, excess = size_text(estimate.bytes, ".2f"), size_text(estimate.excess, ".2f")
        return f"does not fit: stage {stage} needs {needed}, {excess} more than {hbm}"
    return f"fits: stage {stage}, which holds most, leaves {size_text(-estimate.excess, '.2f')} of {hbm}"


def way_text(change: Change, after: Estimate) -> str:
    """One change of the configuration and its effect, as text."""
    fits = "" if after.excess <= 0 else f", still {size_text(after.excess, '.2f')} too much"
    fits += f", {after.plan.config.global_batch_size} sequences a step" if "parallel.data_parallel" in change else ""
    needed, each = size_text(after.bytes, ".2f"), after.tokens_per_second_per_device
    return f"{describe(change)} ({after.plan.mesh.world} devices): {needed}{fits}, {each:,.0f} tokens/s per card"


def speed(estimate: Estimate) -> str:
    """Throughput in one line."""
    each = estimate.tokens_per_second_per_device
    return f"{estimate.tokens_per_second:,.0f} tokens/s, {each:,.1f} per card, MFU {estimate.mfu:.1%}"


def notes(chip: Chip) -> str:
    """Notes on the sources of the numbers."""
    return NOTES.format(chip=chip.name, source=chip.source, achievable=chip.achievable, fitted=chip.fitted)


def as_dict(name: str, estimate: Estimate, ways: list[tuple[Change, Estimate]]) -> dict[str, Any]:
    """The estimate as JSON values."""
    return {
        "config": name,
        "chip": dataclasses.asdict(estimate.chip),
        "hbm_gib": estimate.hbm_bytes / GIB,
        "worst_stage": estimate.worst_stage,
        "memory": {stage: [dataclasses.asdict(line) for line in lines] for stage, lines in estimate.memory.items()},
        "time": [dataclasses.asdict(term) for term in estimate.terms],
        "mfu_formula": MFU_FORMULA,
        "ways_to_fit": [{"overrides": describe(change)} | after.row() for change, after in ways],
        "exact": ["parameters", "moments"],
    } | estimate.row()


def published_table(rows: list[dict[str, Any]]) -> str:
    """Predictions and published numbers side by side, as a table."""
    head = ("config", "published", "ours", "ratio", "MFU", "GiB", "taken as")
    cells = []
    for row in rows:
        fitted = "fitted on this" if row["fitted"] else "predicted"
        cells.append(
            (
                row["config"],
                f"{row['published']:,.0f}",
                f"{row['tokens_per_second_per_device']:,.0f}",
                f"{row['ratio']:.3f}",
                f"{row['mfu']:.1%}",
                f"{row['gib']:.1f}",
                f"{row['assumption']}; {fitted}",
            )
        )
    told = "tokens/s per Ascend 910 card. GiB: of our float32 parameters; the official code kept float16 ones\nMFU: "
    return "\n".join([*table_lines(head, cells, "<>>>>><"), told + MFU_FORMULA, "", notes(CHIPS["ascend910"])])
