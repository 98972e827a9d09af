"""`pangu ckpt ACTION`: checkpoints as files."""

import importlib

from pangu_ms.core.parser import Parser

ACTIONS = {"reshard": ("pangu_ms.cli.ckpt_reshard", "from any plan to any plan, to and from one whole checkpoint")}


def main(argv: list[str]) -> int:
    """Entry of the verb: each action is a module with its own main(argv)."""
    parser = Parser(prog="pangu ckpt", description=__doc__, epilog="`pangu ckpt ACTION --help` lists the options")
    parser.add_argument(
        "action",
        choices=ACTIONS,
        metavar="ACTION",
        help="; ".join(f"{name}: {summary}" for name, (_, summary) in ACTIONS.items()),
    )
    module, _ = ACTIONS[parser.parse_args(argv[:1]).action]
    return importlib.import_module(module).main(argv[1:])
