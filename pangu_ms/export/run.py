"""`pangu run-mindir`: continue prompts from a MindIR package. Needs mindspore and the tokenizer, no model code."""

import argparse
import sys
from pathlib import Path

from pangu_ms import runtime
from pangu_ms.export.package import Package, read_key
from pangu_ms.infer.arguments import (
    add_generation_arguments,
    read_prompts,
    run_and_print,
    sampling_config,
)
from pangu_ms.infer.generate import Generator
from pangu_run.arguments import Parser
from pangu_run.console import guarded


def main(argv: list[str], package: str | None = None) -> int:
    """Entry of the verb; `package` is given where the command is part of one."""
    parser = Parser(prog="pangu run-mindir", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    if package is None:
        parser.add_argument("package", metavar="PACKAGE", help="a directory written by `pangu export`")
    parser.add_argument("--key-file", metavar="FILE", help="file with the AES key of an encrypted package")
    add_generation_arguments(parser)
    args = parser.parse_args(argv)
    config, prompts = sampling_config(args), read_prompts(args)
    opened = Package.open(package or args.package)
    key = read_key(args.key_file)
    runtime.quiet(args.verbose)
    runtime.start(opened.manifest["target"])
    run_and_print(Generator(opened.decoder(key), opened.tokenizer()), prompts, config, args)
    return 0


def entry() -> int:
    """Entry of a package's own run.pyz: the package is the directory that it lies in."""
    return guarded("run.pyz", lambda: main(sys.argv[1:], str(Path(sys.argv[0]).resolve().parent)))
