"""`pangu quantize`: write a checkpoint whose matrices are in int8 or bfloat16, and measure what the rounding costs."""

import shlex
from argparse import Namespace
from typing import Any

from pangu_ms.checkpoint.quantized import DTYPES
from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu quantize", description=__doc__)
    options.add_checkpoint(parser)
    parser.add_argument("--weights", choices=DTYPES, required=True, help="dtype of the matrices in the new checkpoint")
    text = "directory for the new checkpoint; it must be empty, and is made if needed"
    options.add_new_checkpoint(parser, "--output", text)
    text = f"compare perplexity and likeliest tokens of both checkpoints on these: {options.RECORDS_HELP}"
    options.add_data(parser, text)
    options.add_split(parser, "with --data: which records to compare on (default: held_out)", default=None)
    options.add_batch_size(parser, "with --data: sequences per batch (default: 4)", default=None)
    text = "with --data: number of batches, but at least one of each domain (default: all)"
    parser.add_argument("--max-batches", type=int, metavar="N", help=text)
    options.add_json(parser)
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    from pangu_ms.checkpoint.quantized import quantize
    from pangu_ms.checkpoint.store import open_checkpoint

    of_data = {"max-batches": args.max_batches, "split": args.split, "batch-size": args.batch_size}
    for name, value in of_data.items():
        if value is not None and not args.data:
            raise ConfigError(f"--{name} {value}: is an option of --data; add --data, or leave it out")
    runtime.quiet(args.verbose)
    checkpoint, progress = open_checkpoint(args.checkpoint), not args.json
    if args.data:
        from pangu_ms.eval.quantized import Comparison

        batch_size = 4 if args.batch_size is None else args.batch_size
        sizes = batch_size, args.max_batches or 0
        comparison = Comparison(checkpoint, args.data, args.split or "held_out", *sizes, progress)
    result = quantize(checkpoint, args.output, args.weights, progress)
    if args.data:
        result |= comparison.measure(open_checkpoint(args.output))
    print_result(result, "\n".join(_text(result, args)), args.json)
    return 0


def _text(result: dict[str, Any], args: Namespace) -> list[str]:
    before, after = (f"{size / 1e6:,.1f} MB" for size in result["bytes"])
    experts = result["experts_bytes"]
    kept = f"; experts and slots stay as they were ({experts / 1e6:,.1f} MB)" if experts else ""
    lines = [f"{result['matrices']} matrices rounded to {result['weights']}, tensors {before} -> {after}{kept}"]
    if "perplexity" in result:
        rows = [
            (name, *(f"{value:,.6g}" for value in result[name]), f"{result[name][1] / result[name][0] - 1:+.3%}")
            for name in ("loss", "perplexity")
        ]
        lines += table_lines((f"{result['tokens']:,} tokens, {result['split']}", "before", "after", ""), rows, "<>>>")
        lines.append(f"the likeliest token is the same for {result['same_likeliest']:.2%} of them")
    return [
        *lines,
        f"wrote {result['output']}; go on with: pangu generate {shlex.quote(str(args.output))} --prompt TEXT",
    ]
