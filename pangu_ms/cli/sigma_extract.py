"""`pangu sigma extract`: write the checkpoint of a model that computes for one domain what a PanGu-Sigma does, and
holds nothing of other domains."""

import shlex
from argparse import Namespace
from pathlib import Path

from pangu_ms.checkpoint.domains import extract
from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli import options
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu sigma extract", description=__doc__)
    options.add_checkpoint(parser)
    parser.add_argument("--domain", required=True, metavar="NAME", help="the domain to cut out")
    text = "directory for the new checkpoint; it must be empty, and is made if needed"
    options.add_new_checkpoint(parser, "--output", text)
    text = (
        "also leave out experts to which no token of the vocabulary goes; every layer keeps as many as the one that"
        " uses most"
    )
    parser.add_argument("--drop-unused", action="store_true", help=text)
    text = (
        "compact tokenizer that `pangu tokenizer compress` made from the checkpoint's; other tokens are left out, too"
    )
    options.add_tokenizer(parser, text, required=False)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    checkpoint = open_checkpoint(args.checkpoint)
    tokenizer = Path(args.tokenizer) if args.tokenizer else None
    result = extract(checkpoint, args.domain, args.output, args.drop_unused, tokenizer, progress=not args.json)
    (_, experts), (old, new) = result["num_experts"], result["parameters"]
    text = (
        f"{result['output']}: domain {args.domain}, {experts} experts a layer, {new:,} of {old:,} parameters\n"
        f"go on with: pangu generate {shlex.quote(str(args.output))} --prompt TEXT"
    )
    print_result(result, text, args.json)
    return 0
