"""`pangu study latency`: compare the time per token of cached decoding of several checkpoints, in one process."""

from argparse import Namespace
from pathlib import Path

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.research.study.latency import measure

DESCRIPTION = """Measure the time per token of cached decoding, with batch size 1 and a KV cache for the model's whole
context. In every round each checkpoint decodes some tokens. Its time is divided by the time of the first checkpoint in
the same round, so that temporary slowdowns of the machine cancel. The order of the checkpoints rotates from round to
round."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu study latency", description=DESCRIPTION)
    text = "run directories or checkpoints; all are compared with the first"
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=text)
    parser.add_argument("--tokens", type=int, default=16, help="tokens that each checkpoint decodes per round")
    parser.add_argument("--rounds", type=int, default=40, help="number of timed rounds")
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
