"""`pangu study`: several runs set beside each other."""

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_ms.cli.config import add_config_arguments
from pangu_ms.core import runtime
from pangu_ms.core.console import show, tell
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_ms.core.figure import require_plot
from pangu_ms.core.parser import NewFile, Parser
from pangu_ms.research.study.ablation import REMOVED, run_ablation
from pangu_ms.research.study.plot import plot_ablation
from pangu_ms.research.study.runs import StudyStopped
from pangu_ms.research.study.table import ablation_table

STUDIES = {
    "pi-ablation": (
        "pangu_ms.cli.study:pi_ablation",
        "what series activation and augmented shortcut bring: PanGu-pi's variants trained alike",
    ),
    "pi-pro": (
        "pangu_ms.cli.study_pi_pro:main",
        "pi Pro's recipe step by step: compact vocabulary, shape, inheritance, second round",
    ),
    "latency": ("pangu_ms.research.study.latency:main", "time per token of several checkpoints, taken in turns"),
}
ABLATION_HELP = """Train PanGu-pi without and with its two parts, several seeds each, and compare held-out loss and decoding time: vanilla (neither part),
widenet (vanilla, widened to the parameters of both), siaf (series activation), as (augmented shortcut), both (the config as it is). Can be stopped and
repeated: what is done is kept, and further seeds or variants can be added."""
EQUAL_HELP = (
    "parameters: siaf and as are widened to the parameters of both; width: they are as wide as the config, as in the"
    " paper (widenet is widened always)"
)
DATA_HELP = (
    "directory written by `pangu data prepare` with a held-out split; default: --corpus, else data.records, else the"
    " quickstart's corpus"
)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    studies = "\n".join(f"  {name:<12} {summary}" for name, (_, summary) in STUDIES.items())
    parser = Parser(
        prog="pangu study", description=f"{__doc__}\n\n{studies}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES, metavar="STUDY", help="`pangu study STUDY --help` shows its options")
    module, function = STUDIES[parser.parse_args(argv[:1]).study][0].split(":")
    return getattr(importlib.import_module(module), function)(argv[1:])


def pi_ablation(argv: list[str]) -> int:
    """Entry of the study."""
    parser = Parser(
        prog="pangu study pi-ablation",
        description=ABLATION_HELP,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_config_arguments(parser, "pi/tiny")
    parser.add_argument("--data", metavar="RECORDS", help=DATA_HELP)
    parser.add_argument(
        "--corpus",
        nargs="+",
        default=[],
        metavar="FILE",
        help="text or .jsonl files; a tokenizer and records are made of them in DIR/data",
    )
    parser.add_argument(
        "--variants", default=",".join(REMOVED), metavar="NAME,...", help="vanilla and some of the others"
    )
    parser.add_argument("--equal", choices=["parameters", "width"], default="parameters", help=EQUAL_HELP)
    args = parse_study(parser, argv)
    variants, seeds = args.variants.split(","), parse_seeds(args.seeds)

    def run() -> dict[str, Any]:
        return run_ablation(
            args.output,
            args.config,
            args.overrides,
            args.data,
            args.corpus,
            seeds,
            variants,
            args.equal,
            progress=not args.json,
        )

    return conclude(args, run, ablation_table, plot_ablation)


def parse_study(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Add the options that every study has, and parse; a plot that cannot be drawn is told now."""
    parser.add_argument(
        "--output",
        required=True,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="directory of the study: runs, logs, results.json",
    )
    parser.add_argument(
        "--seeds", default="1,2,3", metavar="N,...", help="a run of everything for each; sets train.seed and data.seed"
    )
    parser.add_argument(
        "--plot",
        action=NewFile,
        metavar="FILE",
        help="also draw the results into this new file, as .png, .pdf or .svg (needs matplotlib)",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_intermixed_args(argv)
    if args.plot:
        require_plot(Path(args.plot))
    runtime.quiet()
    return args


def conclude(
    args: argparse.Namespace,
    run: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    plot: Callable[[dict[str, Any], Path], None],
) -> int:
    """Run a study and show its results as its options say; a signal ends it so that the same command goes on."""
    try:
        results = run()
    except StudyStopped as stopped:
        tell(f"stopped by {stopped}; the same command goes on")
        return EXIT_STOPPED
    if args.plot:
        plot(results, Path(args.plot))
    show(json.dumps(results) if args.json else table(results))
    return 0


def parse_seeds(text: str) -> list[int]:
    """ "1,2,3" as numbers.

    Raises:
        ConfigError: something else.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text}: must be whole numbers separated by commas, such as 1,2,3") from None
