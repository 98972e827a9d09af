"""`pangu ops ACTION`: show which backend each operator uses on this machine and why; build the CPU kernels ahead of
time."""

import logging
from argparse import Namespace

from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.cli.options import add_json
from pangu_ms.core import runtime
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

ACTIONS = {
    "list": ("pangu_ms.cli.ops:list_parser", "list the operators, their backends on this machine, and why"),
    "build": ("pangu_ms.cli.ops:build_kernels_parser", "compile the CPU kernels now"),
}
# Copies of the names in ascend_ops.table, .library and .backend. Importing these would import MindSpore, which takes
# seconds.
DTYPES = ("float32", "float16", "bfloat16")
LEVELS = ("avx512_vnni", "avx512", "avx2", "baseline")
CHIPS = ("ascend910", "ascend910b", "ascend910_93")


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu ops", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("ops", __doc__, ACTIONS, argv)


def list_parser() -> Parser:
    """The options of `pangu ops list`."""
    parser = Parser(prog="pangu ops list", description=ACTIONS["list"][1])
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the inputs")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--device", choices=("CPU", "Ascend"), default="CPU", help="MindSpore's device")
    text = "show what this installation would use on that chip, which need not be here (untested on hardware)"
    which.add_argument("--chip", choices=CHIPS, help=text)
    add_json(parser)
    parser.set_defaults(run=_list)
    return parser


def build_kernels_parser() -> Parser:
    """The options of `pangu ops build`."""
    parser = Parser(prog="pangu ops build", description=ACTIONS["build"][1])
    text = "instruction set to compile for (default: the best of this processor)"
    parser.add_argument("--level", choices=LEVELS, help=text)
    parser.set_defaults(run=_build)
    return parser


def _list(args: Namespace) -> int:
    runtime.quiet()
    runtime.start(args.device)

    from ascend_ops.backend import explain
    from ascend_ops.table import OPERATORS

    choices = explain(args.dtype, args.chip or "")
    result = {}
    for name, choice in choices.items():
        result[name] = {"backend": choice.backend, "reason": choice.reason, "summary": OPERATORS[name].summary}
    rows = [(name, row["backend"], row["summary"]) for name, row in result.items()]
    lines = table_lines(("operator", "backend", "what it computes"), rows, "<<<")
    for reason in dict.fromkeys(choice.reason for choice in choices.values()):
        names = [name for name, choice in choices.items() if choice.reason == reason]
        lines.append(f"\n{'all' if len(names) == len(choices) else ', '.join(names)}: {reason}")
    print_result(result, "\n".join(lines), args.json)
    return 0


def _build(args: Namespace) -> int:
    from ascend_ops import library

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(library.build(args.level or library.cpu_level()))
    return 0
