"""`pangu plan ACTION`: how a run is laid over devices."""

import argparse
import importlib

from pangu_ms.core.parser import Parser

ACTIONS = {
    "show": ("pangu_ms.cli.plan_show", "stages, placement and the layout of every parameter"),
    "estimate": ("pangu_ms.cli.plan_estimate", "memory of a device and time of a step, line by line"),
    "search": ("pangu_ms.cli.plan_search", "the plans that fit a number of devices, fastest first"),
    "rehearse": (
        "pangu_ms.cli.plan_rehearse",
        "compile the training step for virtual ranks with MindSpore's own compiler",
    ),
    "execute": (
        "pangu_ms.cli.plan_execute",
        "run the ranks' graphs as CPU processes, and compare them with one process",
    ),
    "inspect": ("pangu_ms.cli.plan_inspect", "a strategy file of MindSpore as a table"),
}


def main(argv: list[str]) -> int:
    """Entry of the verb: each action is a module with its own main(argv)."""
    actions = "\n".join(f"  {name:<9} {summary}" for name, (_, summary) in ACTIONS.items())
    parser = Parser(
        prog="pangu plan", description=f"{__doc__}\n\n{actions}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "action", choices=ACTIONS, metavar="ACTION", help="`pangu plan ACTION --help` shows its options"
    )
    module, _ = ACTIONS[parser.parse_args(argv[:1]).action]
    return importlib.import_module(module).main(argv[1:])
