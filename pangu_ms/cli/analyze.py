"""`pangu analyze ACTION`: diagnostics of a checkpoint."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {
    "collapse": ("pangu_ms.cli.analyze_collapse", "diversity of the features, layer by layer"),
    "experts": ("pangu_ms.cli.analyze_experts", "tokens that come to each expert, layer by layer"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu analyze", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("analyze", __doc__, ACTIONS, argv)
