"""`pangu study pi-ablation`: measure what PanGu-pi's two parts contribute."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from pangu_ms.cli import options
from pangu_ms.cli.study_options import add_study, parse_seeds
from pangu_ms.core.parser import Parser
from pangu_ms.research.study.ablation import REMOVED, run_ablation
from pangu_ms.research.study.plot import plot_ablation
from pangu_ms.research.study.table import ablation_table

DESCRIPTION = """Train PanGu-pi without and with its two parts, several seeds each, and compare held-out loss and
decoding time: vanilla (neither part), widenet (vanilla, widened to the parameters of both), siaf (series activation),
as (augmented shortcut), both (the config as it is). After an interruption, the same
command resumes the study; it can also add further seeds or variants."""
EQUAL_HELP = (
    "parameters: siaf and as are widened until they have as many parameters as both; width: they are as wide as the"
    " config, as in the paper (widenet is always widened)"
)
DATA_HELP = (
    "directory written by `pangu data prepare` with a held-out split; default: --corpus, else data.records, else the"
    " quickstart's corpus"
)


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu study pi-ablation", description=DESCRIPTION)
    options.add_config(parser, "pi/tiny")
    options.add_data(parser, DATA_HELP)
    options.add_corpus(parser, "text or .jsonl files, from which a tokenizer and records are made in DIR/data")
    text = "variants to train; vanilla must be among them"
    parser.add_argument("--variants", default=",".join(REMOVED), metavar="NAME,...", help=text)
    parser.add_argument("--equal", choices=["parameters", "width"], default="parameters", help=EQUAL_HELP)
    add_study(parser, _study, ablation_table, plot_ablation)
    return parser


def _study(args: Namespace) -> Callable[[], dict[str, Any]]:
    variants, seeds = args.variants.split(","), parse_seeds(args.seeds)
    return lambda: run_ablation(
        args.output,
        args.config,
        args.overrides,
        args.data,
        args.corpus or [],
        seeds,
        variants,
        args.equal,
        progress=not args.json,
    )
