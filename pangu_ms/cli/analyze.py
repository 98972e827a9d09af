"""`pangu analyze ANALYSIS`: diagnostics of a checkpoint."""

import importlib

from pangu_ms.core.parser import Parser

ANALYSES = {"collapse": ("pangu_ms.cli.analyze_collapse", "diversity of the features, layer by layer")}


def main(argv: list[str]) -> int:
    """Entry of the verb: each analysis is a module with its own main(argv)."""
    parser = Parser(
        prog="pangu analyze", description=__doc__, epilog="`pangu analyze ANALYSIS --help` lists the options"
    )
    parser.add_argument(
        "analysis",
        choices=ANALYSES,
        metavar="ANALYSIS",
        help="; ".join(f"{name}: {summary}" for name, (_, summary) in ANALYSES.items()),
    )
    module, _ = ANALYSES[parser.parse_args(argv[:1]).analysis]
    return importlib.import_module(module).main(argv[1:])
