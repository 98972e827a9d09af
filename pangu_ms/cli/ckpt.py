"""`pangu ckpt ACTION`: work on checkpoint files."""

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core.parser import Parser

ACTIONS = {"reshard": ("pangu_ms.cli.ckpt_reshard", "change the parallel plan of a checkpoint, or join or shard it")}


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu ckpt", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("ckpt", __doc__, ACTIONS, argv)
