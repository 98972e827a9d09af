"""`pangu study ACTION`: several runs set beside each other."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {
    "pi-ablation": (
        "pangu_ms.cli.study_pi_ablation",
        "what series activation and augmented shortcut bring: PanGu-pi's variants trained alike",
    ),
    "pi-pro": (
        "pangu_ms.cli.study_pi_pro",
        "pi Pro's recipe step by step: compact vocabulary, shape, inheritance, second round",
    ),
    "latency": ("pangu_ms.cli.study_latency", "time per token of several checkpoints, taken in turns"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu study", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("study", __doc__, ACTIONS, argv)
