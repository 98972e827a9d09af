"""`pangu plan execute`: run the graphs of a plan's ranks as CPU processes, and compare them with one process."""

import dataclasses
from argparse import Namespace

from pangu_ms.cli import options
from pangu_ms.config.load import load_config
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result
from pangu_ms.rehearsal.execute import TOLERANCE, Execution, execute
from pangu_run.launcher import run_ranks

DESCRIPTION = """Compile the training step of each rank with MindSpore's own parallel compiler, run the ranks' graphs as
CPU processes with real collectives, and compare with a single process without a plan: loss and gradient norm of each
step, every gradient of the first step, every parameter after the last. The optimizer is momentum SGD, because AdamW
hides errors of scale. The exit code is 1 if they differ. MindSpore on a CPU has no all-gather within a group, no
reduce-scatter, no all-to-all and no maximum over ranks; all-reduce emulates them, and the output names those that were
emulated. Pipeline stages cannot be executed, only rehearsed (`pangu plan rehearse`)."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu plan execute", description=DESCRIPTION)
    options.add_config(parser)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="number of steps, on random batches")
    options.add_json(parser, "print the comparison as JSON")
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    """Run the action; returns 1 if the ranks and the single process differ."""
    config = load_config(args.config, args.overrides)
    found = execute(config, run_ranks, args.steps, progress=not args.json)
    result = dataclasses.asdict(found) | {"worst": [dataclasses.asdict(one) for one in found.worst]}
    result |= {"agrees": found.agrees, "tolerance": TOLERANCE}
    model = f"{config.model.family}, {config.model.num_layers} layers, {config.parallel.world} ranks"
    print_result(result, f"{model}, {args.steps} steps of momentum SGD\n{table(found)}", args.json)
    return 0 if found.agrees else 1


def table(found: Execution) -> str:
    """The comparison as text."""
    calls = ", ".join(f"{number} {kind}" for kind, number in found.collectives.items())
    lines = [f"  collectives of a step: {calls}"]
    lines += [f"  emulated, as a CPU lacks them: {', '.join(found.emulated)}"] if found.emulated else []
    lines += [f"  mean loss {found.losses[0]:.6f} at the first step, {found.losses[-1]:.6f} at the last"]
    lines += [
        f"  {one.kind:<10} largest relative difference {one.error:.1e} ({one.name}, rank {one.rank})"
        for one in found.worst
    ]
    wrong = [one for one in found.differences if one.error > TOLERANCE]
    lines += [f"  DIFFERS {one.kind} {one.name}: {one.error:.1e} on rank {one.rank}" for one in wrong]
    return "\n".join(lines + ([] if wrong else [f"  the ranks compute what one process computes, to {TOLERANCE:g}"]))
