"""`pangu eval`: held-out perplexity of a checkpoint, beside that of unigram and bigram models counted on its training records."""

import argparse
import json

from pangu_ms import runtime


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(prog="pangu eval", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run directory, its checkpoints directory, or one step of it")
    parser.add_argument("--data", required=True, metavar="RECORDS", help="directory written by `pangu data prepare`, or MindRecord files")
    parser.add_argument("--split", default="held_out", choices=["held_out", "train"], help="which records")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per batch")
    parser.add_argument("--max-batches", type=int, default=0, help="stop after this many; 0 scores all")
    parser.add_argument("--no-baselines", action="store_true", help="leave unigram and bigram out")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--verbose", action="store_true", help="show MindSpore's own messages")
    args = parser.parse_args(argv)
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.eval.report import baselines, evaluate

    checkpoint = open_checkpoint(args.checkpoint)
    result = evaluate(checkpoint, args.data, args.split, args.batch_size, args.max_batches, progress=not args.json)
    if not args.no_baselines:
        vocab_size = checkpoint.config().model.vocab_size
        result |= baselines(args.data, args.split, vocab_size, args.batch_size, args.max_batches)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' '):<20} {value:,.4g}" if isinstance(value, float) else f"{name.replace('_', ' '):<20} {value}")
    return 0
