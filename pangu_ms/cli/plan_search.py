"""`pangu plan search`: the plans that fit a number of devices, fastest first."""

import argparse
import json
from typing import Any

from pangu_ms.cli.config import add_config_arguments
from pangu_ms.cli.plan_estimate import add_chip_arguments, chip_and_hbm, notes
from pangu_ms.config.load import load_config
from pangu_ms.core.errors import PlanError
from pangu_ms.core.parser import Parser
from pangu_ms.planner.cluster import GIB
from pangu_ms.planner.estimate import Estimate, describe, overrides
from pangu_ms.planner.search import Found, Near, difference, search


def main(argv: list[str]) -> int:
    """Entry of the action."""
    args = _parser().parse_intermixed_args(argv)
    if args.top < 1 or not 0 <= args.margin < 1:
        raise PlanError(
            f"--top {args.top} --margin {args.margin:g}: top must be at least 1, margin a share from 0 to below 1;"
            " change them"
        )
    config = load_config(args.config, args.overrides)
    chip, hbm = chip_and_hbm(args, config)
    found = search(config, args.devices, chip, hbm, args.global_batch, args.margin, progress=not args.json)
    print(json.dumps(as_dict(args, found)) if args.json else report(args, found, hbm))
    return 0


def _parser() -> argparse.ArgumentParser:
    about = (
        f"{__doc__} Degrees, micro-batches, optimizer_shard, recompute, sequence_parallel and vocab_embedding are"
        " searched; the batch of a step stays."
    )
    parser = Parser(prog="pangu plan search", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_config_arguments(parser, "alpha/13b")
    parser.add_argument(
        "--devices", type=int, required=True, default=argparse.SUPPRESS, metavar="N", help="cards of the job"
    )
    add_chip_arguments(parser)
    parser.add_argument(
        "--global-batch",
        type=int,
        default=0,
        metavar="SEQUENCES",
        help="in one step, over all replicas; 0: the config's",
    )
    parser.add_argument("--margin", type=float, default=0.05, metavar="SHARE", help="of the memory that must stay free")
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="plans to show, the fastest of each dp, mp and pp"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


def report(args: argparse.Namespace, found: Found, hbm_bytes: int) -> str:
    """The search for the eye."""
    best, batch = found.ranked[0], found.ranked[0].plan.config.global_batch_size
    room = f"{hbm_bytes / GIB:g} GiB with {args.margin:.0%} free"
    lines = [
        (
            f"{args.config} on {args.devices} x {best.chip.name}, {batch} sequences a step: {found.tried} plans tried,"
            f" {found.fitting} fit in {room}"
        ),
        "",
    ]
    lines += [_HEADING, *(_row(estimate) for estimate in found.ranked[: args.top])]
    if len(found.ranked) > 1:
        lines += ["", *_why(best, found.ranked[1])]
    lines += ["", *_nearly(found.near)]
    return "\n".join([*lines, "", notes(best.chip), "", "the best, to paste:", " ".join(overrides(best.plan.config))])


_COLUMNS = {
    "dp": 4,
    "mp": 3,
    "pp": 3,
    "batch": 5,
    "micro": 5,
    "shard": 5,
    "recompute": 9,
    "seq": 3,
    "vocab": 10,
    "GiB": 7,
}
_COLUMNS |= {"tokens/s": 12, "per card": 9, "MFU": 6}
_HEADING = " ".join(f"{name:>{width}}" for name, width in _COLUMNS.items())


def _row(estimate: Estimate) -> str:
    parallel, train = estimate.plan.config.parallel, estimate.plan.config.train
    cells = [
        parallel.data_parallel,
        parallel.model_parallel,
        parallel.pipeline_stage,
        train.batch_size,
        estimate.plan.num_micro_batches,
    ]
    cells += [
        _yes(parallel.optimizer_shard),
        parallel.recompute,
        _yes(parallel.sequence_parallel),
        parallel.vocab_embedding,
    ]
    cells += [
        f"{estimate.bytes / GIB:.2f}",
        f"{estimate.tokens_per_second:,.0f}",
        f"{estimate.tokens_per_second_per_device:,.1f}",
        f"{estimate.mfu:.1%}",
    ]
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=True))


def _yes(switch: bool) -> str:
    return "yes" if switch else "no"


def _why(best: Estimate, other: Estimate) -> list[str]:
    lines = [
        "why the first is faster than the second, ms of a step:",
        f"  {'term':<20} {'first':>10} {'second':>10} {'difference':>11}",
    ]
    lines += [
        f"  {name:<20} {a * 1e3:>10.1f} {b * 1e3:>10.1f} {(a - b) * 1e3:>+11.1f}"
        for name, a, b in difference(best, other)
    ]
    total = f"{best.seconds * 1e3:>10.1f} {other.seconds * 1e3:>10.1f} {(best.seconds - other.seconds) * 1e3:>+11.1f}"
    return [*lines, f"  {'total':<20} {total}"]


def _nearly(near: list[Near]) -> list[str]:
    if not near:
        return ["nothing that does not fit would be faster"]
    lines = ["faster, but too large (the nearest):", f"{_HEADING}  over"]
    for miss in near:
        fix = "no single change makes it fit"
        if miss.change and miss.after:
            fix = (
                f"fits with {describe(miss.change)}: {miss.after.bytes / GIB:.2f} GiB,"
                f" {miss.after.tokens_per_second_per_device:,.1f} per card"
            )
        lines.append(f"{_row(miss.estimate)}  {miss.estimate.excess / GIB:.2f} GiB; {fix}")
    return lines


def as_dict(args: argparse.Namespace, found: Found) -> dict[str, Any]:
    """The search for programs."""
    plans = [{"overrides": overrides(e.plan.config)} | e.row() for e in found.ranked[: args.top]]
    near = [
        {"overrides": overrides(m.estimate.plan.config), "over_gib": m.estimate.excess / GIB} | m.estimate.row()
        for m in found.near
    ]
    near = [row | {"change": describe(m.change) if m.change else None} for row, m in zip(near, found.near)]
    return {"config": args.config, "tried": found.tried, "fitting": found.fitting, "plans": plans, "near": near}
