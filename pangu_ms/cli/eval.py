"""`pangu eval`: held-out perplexity of a checkpoint, beside that of unigram and bigram models counted on its training
records."""

import argparse
import json

from pangu_ms.cli.config import add_override_arguments
from pangu_ms.core import runtime
from pangu_ms.core.console import tell
from pangu_ms.core.parser import Parser

SPLIT_HELP = "which records; MindRecord files without manifest are `train`, and then unigram and bigram are left out"
NO_BASELINES = "left out: counted on training records, not to be compared on `--split train`"


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = Parser(prog="pangu eval", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run directory, its checkpoints directory, or one step of it"
    )
    add_override_arguments(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="RECORDS",
        help="directory written by `pangu data prepare`, or MindRecord files",
    )
    parser.add_argument("--split", default="held_out", choices=["held_out", "train"], help=SPLIT_HELP)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per batch")
    parser.add_argument("--max-batches", type=int, default=0, help="stop after this many; 0 scores all")
    parser.add_argument("--no-baselines", action="store_true", help="leave unigram and bigram out")
    parser.add_argument(
        "--json",
        action="store_true",
        help="machine-readable output; null for a unigram and bigram that cannot be compared",
    )
    parser.add_argument("--verbose", action="store_true", help="show MindSpore's own messages")
    args = parser.parse_intermixed_args(argv)
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.eval.report import baselines, evaluate

    checkpoint, progress = open_checkpoint(args.checkpoint), not args.json
    config = checkpoint_config(checkpoint, args.overrides)
    result = evaluate(checkpoint, args.data, args.split, args.batch_size, args.max_batches, progress, config)
    if not args.no_baselines:
        result |= baselines(args.data, args.split, config.model.vocab_size, args.batch_size, args.max_batches, progress)
    if not args.json:
        for name, value in result.items():
            print(f"{name.replace('_', ' '):<20} {_shown(value)}")
        return 0
    if None in result.values():
        tell(f"pangu eval: unigram and bigram {NO_BASELINES}")
    print(json.dumps(result))
    return 0


def _shown(value: object) -> str:
    if value is None:
        return NO_BASELINES
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
