"""`pangu eval`: held-out perplexity of a checkpoint, compared with unigram and bigram models counted on the training
records. Scores of benchmark tasks are those of `pangu tasks`."""

import argparse
from argparse import Namespace
from typing import Any

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.console import tell
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

SPLIT_HELP = "which records to score; files without a manifest are `train`, for which unigram and bigram are left out"
JSON_HELP = "machine-readable output; the unigram and bigram perplexities are null where they are left out"
NO_BASELINES = "left out: counted on training records, not to be compared on `--split train`"


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu eval", description=__doc__)
    options.add_checkpoint(parser)
    options.add_overrides(parser)
    options.add_data(parser, required=True)
    options.add_split(parser, SPLIT_HELP)
    parser.add_argument("--domain", metavar="NAME", help="score only the records of this domain")
    options.add_batch_size(parser)
    text = "number of batches to score, but at least one of each domain; 0 scores all"
    parser.add_argument("--max-batches", type=int, default=0, help=text)
    parser.add_argument("--no-baselines", action="store_true", help="do not score the unigram and bigram models")
    parser.add_argument("--tasks", action=_OtherVerb, help=argparse.SUPPRESS)
    options.add_json(parser, JSON_HELP)
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


class _OtherVerb(argparse.Action):
    """Tells whoever asks `pangu eval` for benchmark tasks which verb asks them."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        parser.error(f"{option_string}: benchmark tasks are those of `pangu tasks run CHECKPOINT --tasks {values}`")


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.eval.report import baselines, evaluate

    checkpoint, progress = open_checkpoint(args.checkpoint), not args.json
    config = checkpoint_config(checkpoint, args.overrides)
    options_of_both = args.batch_size, args.max_batches, progress
    result = evaluate(checkpoint, args.data, args.split, *options_of_both, config, args.domain)
    if not args.no_baselines:
        domains = None if args.domain is None else [args.domain]
        result |= baselines(args.data, args.split, config.model.vocab_size, *options_of_both, domains)
    if args.json and None in result.values():
        tell(f"pangu eval: unigram and bigram {NO_BASELINES}")
    rows = [(name.replace("_", " "), _shown(value)) for name, value in result.items() if name != "domains"]
    lines = table_lines(None, rows, "<<")
    print_result(result, "\n".join(lines + _domain_lines(result.get("domains", {}))), args.json)
    return 0


def _domain_lines(domains: dict[str, dict[str, Any]]) -> list[str]:
    """A table with a line for each domain, if there are several."""
    if not domains:
        return []
    names = [name.replace("_", " ") for name in next(iter(domains.values()))]
    rows = [(domain, *map(_shown, measures.values())) for domain, measures in domains.items()]
    return ["", *table_lines(("domain", *names), rows, "<" + ">" * len(names))]


def _shown(value: object) -> str:
    if value is None:
        return NO_BASELINES
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
