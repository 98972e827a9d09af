"""`pangu plan search`: find the plans that fit a number of devices, fastest first."""

from argparse import Namespace
from typing import Any

from pangu_ms.cli import options
from pangu_ms.cli.plan_estimate import add_chip, chip_and_hbm, notes
from pangu_ms.config.load import load_config
from pangu_ms.core.errors import PlanError
from pangu_ms.core.parser import Parser
from pangu_ms.core.size_text import size_text
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.planner.cluster import GIB
from pangu_ms.planner.estimate import Estimate, describe, overrides
from pangu_ms.planner.search import Found, Near, difference, search

ABOUT = """The search varies the parallel degrees, micro-batches, optimizer_shard, recompute, sequence_parallel and
vocab_embedding, but not the global batch size."""
COLUMNS = (
    *("dp", "ep", "mp", "pp", "batch", "micro", "shard", "recompute", "seq", "vocab"),
    *("GiB", "tokens/s", "per card", "MFU"),
)


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu plan search", description=f"{__doc__} {ABOUT}")
    options.add_config(parser, "alpha/13b")
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="cards of the job")
    add_chip(parser)
    text = "global batch size, over all replicas; 0: the config's"
    parser.add_argument("--global-batch", type=int, default=0, metavar="SEQUENCES", help=text)
    text = "share of the memory that must stay free"
    parser.add_argument("--margin", type=float, default=0.05, metavar="SHARE", help=text)
    text = "number of plans to show; of plans with equal dp, ep, mp and pp only the fastest is shown"
    parser.add_argument("--top", type=int, default=10, metavar="N", help=text)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    if args.top < 1 or not 0 <= args.margin < 1:
        raise PlanError(
            f"--top {args.top} --margin {args.margin:g}: top must be at least 1, margin a share from 0 to below 1;"
            " change them"
        )
    config = load_config(args.config, args.overrides)
    chip, hbm = chip_and_hbm(config, args.chip, args.hbm)
    found = search(config, args.devices, chip, hbm, args.global_batch, args.margin, progress=not args.json)
    print_result(as_dict(args, found), report(args, found, hbm), args.json)
    return 0


def report(args: Namespace, found: Found, hbm_bytes: int) -> str:
    """The result of the search as text."""
    best, batch = found.ranked[0], found.ranked[0].plan.config.global_batch_size
    room = f"{size_text(hbm_bytes, 'g')} with {args.margin:.0%} free"
    lines = [
        (
            f"{args.config} on {args.devices} x {best.chip.name}, {batch} sequences a step: {found.tried} plans tried,"
            f" {found.fitting} fit in {room}"
        ),
        "",
    ]
    rows = [_row(estimate) for estimate in found.ranked[: args.top]]
    lines += table_lines(_columns(best), rows, ">" * len(rows[0]))
    if len(found.ranked) > 1:
        lines += ["", *_comparison_lines(best, found.ranked[1])]
    lines += ["", *_near_miss_lines(found.near)]
    return "\n".join([*lines, "", notes(best.chip), "", "the best, to paste:", " ".join(overrides(best.plan.config))])


def _columns(estimate: Estimate) -> tuple[str, ...]:
    """Only models with experts have a column ep."""
    return COLUMNS if estimate.plan.config.model.num_experts else tuple(name for name in COLUMNS if name != "ep")


def _row(estimate: Estimate) -> tuple[object, ...]:
    parallel = estimate.plan.config.parallel
    return (
        parallel.data_parallel,
        *([parallel.expert_parallel] if estimate.plan.config.model.num_experts else []),
        parallel.model_parallel,
        parallel.pipeline_stage,
        estimate.plan.config.train.batch_size,
        estimate.plan.num_micro_batches,
        _yes(parallel.optimizer_shard),
        parallel.recompute,
        _yes(parallel.sequence_parallel),
        parallel.vocab_embedding,
        f"{estimate.bytes / GIB:.2f}",
        f"{estimate.tokens_per_second:,.0f}",
        f"{estimate.tokens_per_second_per_device:,.1f}",
        f"{estimate.mfu:.1%}",
    )


def _yes(switch: bool) -> str:
    return "yes" if switch else "no"


def _comparison_lines(best: Estimate, other: Estimate) -> list[str]:
    terms = [*difference(best, other), ("total", best.seconds, other.seconds)]
    rows = [(name, f"{a * 1e3:.1f}", f"{b * 1e3:.1f}", f"{(a - b) * 1e3:+.1f}") for name, a, b in terms]
    lines = table_lines(("term", "first", "second", "difference"), rows, "<>>>", indent="  ")
    return ["why the first is faster than the second, ms of a step:", *lines]


def _near_miss_lines(near: list[Near]) -> list[str]:
    if not near:
        return ["nothing that does not fit would be faster"]
    rows = []
    for miss in near:
        fix = "no single change makes it fit"
        if miss.change and miss.after:
            fix = (
                f"fits with {describe(miss.change)}: {size_text(miss.after.bytes, '.2f')},"
                f" {miss.after.tokens_per_second_per_device:,.1f} per card"
            )
        rows.append((*_row(miss.estimate), f"{size_text(miss.estimate.excess, '.2f')}; {fix}"))
    columns = _columns(near[0].estimate)
    lines = table_lines((*columns, "over"), rows, ">" * len(columns) + "<")
    return ["faster, but too large (the nearest):", *lines]


def as_dict(args: Namespace, found: Found) -> dict[str, Any]:
    """The result of the search as JSON values."""
    plans = [{"overrides": overrides(e.plan.config)} | e.row() for e in found.ranked[: args.top]]
    near = []
    for miss in found.near:
        row = {"overrides": overrides(miss.estimate.plan.config), "over_gib": miss.estimate.excess / GIB}
        row |= miss.estimate.row() | {"change": describe(miss.change) if miss.change else None}
        near.append(row)
    return {"config": args.config, "tried": found.tried, "fitting": found.fitting, "plans": plans, "near": near}
