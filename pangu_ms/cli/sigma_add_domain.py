"""`pangu sigma add-domain`: append a domain to a PanGu-Sigma. Its experts are copies of those of another domain, of
another PanGu-Sigma with the same shared parameters, or of the feed-forward networks of a PanGu-alpha. In the new model
only experts and embedding slots train, so that the other domains compute what they did, bit for bit."""

import shlex
from argparse import Namespace
from pathlib import Path

from pangu_ms.checkpoint.domains import add_domain
from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli import options
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu sigma add-domain", description=__doc__)
    options.add_checkpoint(parser)
    parser.add_argument("--name", required=True, metavar="NAME", help="name of the new domain, as the records have it")
    text = "domain whose experts are copied (default: the model's model.default_domain, or its first domain)"
    parser.add_argument("--parent", metavar="NAME", help=text)
    text = (
        "checkpoint from which the experts come: a PanGu-Sigma, such as a trained one that `pangu sigma extract` made,"
        " or the PanGu-alpha that the model inherits from"
    )
    parser.add_argument("--from", dest="donor", type=Path, metavar="CHECKPOINT", help=text)
    text = "experts of the new group, a multiple of those that are copied (default: as many)"
    parser.add_argument("--experts", type=int, metavar="N", help=text)
    text = "directory for the new checkpoint; it must be empty, and is made if needed"
    options.add_new_checkpoint(parser, "--output", text)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    if args.experts is not None and args.experts < 1:
        raise ConfigError(f"--experts {args.experts}: must be at least 1; leave it out for as many as are copied")
    checkpoint = open_checkpoint(args.checkpoint)
    donor = open_checkpoint(args.donor) if args.donor else None
    result = add_domain(
        checkpoint, args.name, args.output, args.parent, donor, args.experts or 0, progress=not args.json
    )
    (old_experts, experts), (old, new) = result["num_experts"], result["parameters"]
    file, place = shlex.quote(f"{result['output']}/config.yaml"), shlex.quote(result["output"])
    text = (
        f"{result['output']}: domain {args.name}, {experts - old_experts} new experts a layer, {new:,} parameters"
        f" ({new - old:,} new)\n"
        f"go on with: pangu train --config {file} --init-from {place} --data RECORDS"
    )
    print_result(result, text, args.json)
    return 0
