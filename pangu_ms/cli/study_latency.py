"""`pangu study latency`: time per token of cached decoding of several checkpoints, taken in turns in one process."""

from argparse import Namespace
from pathlib import Path

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.research.study.latency import measure

DESCRIPTION = """Time per token of cached decoding: batch 1, a cache of the model's whole context. Every round lets each
checkpoint decode some tokens; its time divided by the first checkpoint's in the same round is free of what slows the
machine down for a while. The order within a round moves on from round to round."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu study latency", description=DESCRIPTION)
    text = "run directories or checkpoints; the first is what the others are compared with"
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=text)
    parser.add_argument("--tokens", type=int, default=16, help="tokens that each decodes per round")
    parser.add_argument("--rounds", type=int, default=40, help="rounds timed")
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    runtime.quiet()
    measured = measure(args.checkpoints, args.tokens, args.rounds, progress=not args.json)
    rows = []
    for row in measured:
        low, high = row["ratio_quartiles"]
        numbers = f"{row['ms_per_token']:.3f}", f"{row['ratio']:.3f}", f"{low:.3f} - {high:.3f}"
        rows.append((*numbers, row["checkpoint"]))
    lines = table_lines(("ms/token", "ratio", "quartiles", "checkpoint"), rows, ">><<")
    result = {"tokens": args.tokens, "rounds": args.rounds, "checkpoints": measured}
    print_result(result, "\n".join(lines), args.json)
    return 0
