"""`pangu run-mindir`: continue prompts from a MindIR package. Needs mindspore and the tokenizer, no model code."""

import argparse

from pangu_ms.cli.generate_arguments import add_generation_arguments, read_prompts, run_and_print, sampling_config
from pangu_ms.core import runtime
from pangu_ms.core.errors import GenerationError
from pangu_ms.core.parser import Parser
from pangu_ms.export.package import Package, read_key
from pangu_ms.infer.decoder import NO_BEAMS
from pangu_ms.infer.generate import Generator


def main(argv: list[str], package: str | None = None) -> int:
    """Entry of the verb; `package` is given where the command is part of one."""
    parser = Parser(
        prog="pangu run-mindir", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if package is None:
        parser.add_argument("package", metavar="PACKAGE", help="a directory written by `pangu export`")
        # Not where the program itself is part of what is to be verified.
        parser.add_argument(
            "--verify-key",
            metavar="FILE",
            help="refuse the package unless it was signed with the key of this Ed25519 public key, a PEM file",
        )
    parser.add_argument("--key-file", metavar="FILE", help="file with the AES key of an encrypted package")
    add_generation_arguments(parser)
    args = parser.parse_args(argv)
    config, prompts = sampling_config(args), read_prompts(args)
    key = read_key(args.key_file)
    opened = Package.open(package or args.package, None if package else args.verify_key)
    opened.require_key(key)
    tokenizer = opened.tokenizer()
    opened.shape.require_room(
        [tokenizer.encode_prompt(p) for p in prompts]
    )  # mistakes are found before MindSpore is started
    if config.num_beams > 1:
        raise GenerationError(f"num_beams={config.num_beams}: {NO_BEAMS}")
    runtime.quiet(args.verbose)
    runtime.start(opened.manifest["target"])
    run_and_print(Generator(opened.decoder(key), tokenizer), prompts, config, args)
    return 0
