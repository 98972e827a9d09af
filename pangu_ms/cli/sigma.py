"""`pangu sigma ACTION`: make a model of other domains from a PanGu-Sigma."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {
    "extract": ("pangu_ms.cli.sigma_extract", "cut out the model of one domain"),
    "add-domain": ("pangu_ms.cli.sigma_add_domain", "append a domain with experts of its own"),
}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu sigma", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("sigma", __doc__, ACTIONS, argv)
