"""`pangu ops`: which backend each operator takes here and why; build the CPU kernels ahead of time."""

import argparse
import json

from ascend_ops import build
from ascend_ops.table import FLOATS, OPERATORS
from pangu_ms.core.parser import Parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = Parser(prog="pangu ops", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser(
        "list", help="operators, their backends here, and why", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    listing.add_argument("--dtype", choices=FLOATS, default="float32", help="of the inputs")
    listing.add_argument("--device", choices=("CPU", "Ascend"), default="CPU", help="MindSpore's device")
    listing.add_argument("--json", action="store_true", help="machine-readable output")
    listing.set_defaults(run=list_operators)
    building = verbs.add_parser(
        "build", help="compile the CPU kernels now", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    build.add_arguments(building)
    building.set_defaults(run=build.run)
    options = parser.parse_args(argv)
    return options.run(options)


def list_operators(options: argparse.Namespace) -> int:
    """Print the table of choices."""
    from pangu_ms.core import runtime

    runtime.quiet()
    runtime.start(options.device)
    from ascend_ops.backend import explain

    choices = explain(options.dtype)
    if options.json:
        print(
            json.dumps(
                {
                    name: {"backend": choice.backend, "reason": choice.reason, "summary": OPERATORS[name].summary}
                    for name, choice in choices.items()
                }
            )
        )
        return 0
    print(f"{'operator':<22} {'backend':<9} what it computes")
    for name, choice in choices.items():
        print(f"{name:<22} {choice.backend:<9} {OPERATORS[name].summary}")
    for reason in dict.fromkeys(choice.reason for choice in choices.values()):
        names = [name for name, choice in choices.items() if choice.reason == reason]
        print(f"\n{'all' if len(names) == len(choices) else ', '.join(names)}: {reason}")
    return 0
