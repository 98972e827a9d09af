"""`pangu plan ACTION`: how a run is laid over devices."""

from pangu_ms.cli.actions import run_action, whole_parser
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


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu plan", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("plan", __doc__, ACTIONS, argv)
