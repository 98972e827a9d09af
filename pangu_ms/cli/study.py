"""`pangu study ACTION`: train, measure and compare several runs."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {
    "pi-ablation": (
        "pangu_ms.cli.study_pi_ablation",
        "measure what series activation and augmented shortcut contribute: train PanGu-pi's variants alike",
    ),
    "pi-pro": (
        "pangu_ms.cli.study_pi_pro",
        "run pi Pro's recipe step by step: compact vocabulary, shape, inheritance, second round",
    ),
    "latency": ("pangu_ms.cli.study_latency", "compare the time per token of several checkpoints"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu study", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("study", __doc__, ACTIONS, argv)
