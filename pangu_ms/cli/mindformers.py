"""`python -m pangu_ms.mindformers`: train with mindformers.Trainer from a MindFormers YAML that has a `pangu:`
section."""

import os
from argparse import Namespace
from pathlib import Path

import yaml

from pangu_ms.cli import options
from pangu_ms.core import files, runtime
from pangu_ms.core.console import USER_ERROR, tell, user_errors
from pangu_ms.core.parser import Parser
from pangu_ms.mindformers.train import resolved_tree, train

DEFAULT = "alpha_tiny"


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="python -m pangu_ms.mindformers", description=__doc__)
    text = f"MindFormers YAML with a pangu: section, or a shipped one by name (default: {DEFAULT})"
    parser.add_argument("yaml", nargs="?", default=DEFAULT, metavar="YAML", help=text)
    text = "e.g. pangu.train.steps=20 runner_config.batch_size=4"
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help=text)
    text = "directory written by `pangu data prepare`; default: pangu.data.records of the YAML"
    options.add_data(parser, text)
    text = "new directory for config.yaml, checkpoint/, log/ and strategy/"
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=text)
    text = "resume from a directory OUTPUT/checkpoint/iteration_N, in the same --output or a new one"
    parser.add_argument("--resume", metavar="CHECKPOINT", help=text)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the command."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    runtime.quiet()
    output = args.output.resolve()
    try:
        tree = resolved_tree(args.yaml, args.overrides, output, args.data, args.resume)
        if not args.resume:
            files.require_free(output)
        files.write_text(output / "config.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        os.environ["LOCAL_DEFAULT_PATH"] = str(output)  # MindFormers reads it at its import, to place its logs
        train(output / "config.yaml")
    except user_errors() as error:
        tell(f"pangu_ms.mindformers: {error}")
        return USER_ERROR
    print(f"{output}: done; checkpoints in {output / 'checkpoint'}")
    return 0
