"""`pangu eval`: held-out perplexity of a checkpoint, compared with unigram and bigram models counted on the training
records."""

from argparse import Namespace

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
    options.add_batch_size(parser)
    parser.add_argument("--max-batches", type=int, default=0, help="number of batches to score; 0 scores all")
    parser.add_argument("--no-baselines", action="store_true", help="do not score the unigram and bigram models")
    options.add_json(parser, JSON_HELP)
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


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
    result = evaluate(checkpoint, args.data, args.split, args.batch_size, args.max_batches, progress, config)
    if not args.no_baselines:
        result |= baselines(args.data, args.split, config.model.vocab_size, args.batch_size, args.max_batches, progress)
    if args.json and None in result.values():
        tell(f"pangu eval: unigram and bigram {NO_BASELINES}")
    rows = [(name.replace("_", " "), _shown(value)) for name, value in result.items()]
    print_result(result, "\n".join(table_lines(None, rows, "<<")), args.json)
    return 0


def _shown(value: object) -> str:
    if value is None:
        return NO_BASELINES
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
