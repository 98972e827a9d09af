"""`pangu plan ACTION`: how a run is distributed over devices."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {
    "show": ("pangu_ms.cli.plan_show", "show stages, placement and the layout of every parameter"),
    "estimate": ("pangu_ms.cli.plan_estimate", "estimate the memory per device and the time per step"),
    "search": ("pangu_ms.cli.plan_search", "find the plans that fit a number of devices, fastest first"),
    "rehearse": (
        "pangu_ms.cli.plan_rehearse",
        "compile the training step for virtual ranks with MindSpore's own compiler",
    ),
    "execute": (
        "pangu_ms.cli.plan_execute",
        "run the ranks' graphs as CPU processes, and compare them with one process",
    ),
    "inspect": ("pangu_ms.cli.plan_inspect", "show a strategy file of MindSpore as a table"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu plan", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("plan", __doc__, ACTIONS, argv)
