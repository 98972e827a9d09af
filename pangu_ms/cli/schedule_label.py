"""`pangu schedule label`: the lengths that a predictor learns."""

import json
from argparse import Namespace
from pathlib import Path

from pangu_ms.cli import options
from pangu_ms.core import files
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result

DESCRIPTION = """Make the lengths that a predictor is trained on. Answer the same prompts several times, with `pangu
generate --json --temperature T`, into a file for each temperature. The label of a prompt is the length of its longest
answer, rounded up to a multiple of --bin."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu schedule label", description=DESCRIPTION)
    text = "answers as `pangu generate --json` writes them; a file for each temperature"
    parser.add_argument("answers", type=Path, nargs="+", metavar="ANSWERS", help=text)
    parser.add_argument("--bin", type=int, default=50, metavar="TOKENS", help="round up to a multiple of this")
    options.add_new_file(parser, "--output", "new file of JSON lines with prompt and tokens", required=True)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    from pangu_ms.infer.scheduling import lengths

    if args.bin < 1:
        raise DataError(f"--bin {args.bin}: must be at least 1, which rounds nothing")
    rows = lengths.labels(args.answers, args.bin)
    files.write_new(args.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    share = sum(row["at_cap"] for row in rows) / len(rows)
    warning = lengths.cap_warning(share)
    mean = sum(row["tokens"] for row in rows) / len(rows)
    result = {"output": str(args.output), "prompts": len(rows), "mean": mean, "share_at_cap": share, "warning": warning}
    text = f"{args.output}: {len(rows):,} prompts, mean length {mean:.1f}, {share:.1%} at the maximum"
    print_result(result, "\n".join(filter(None, (text, warning))), args.json)
    return 0
