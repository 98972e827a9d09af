"""`pangu generate`: continue prompts from a checkpoint."""

import argparse

from pangu_ms.cli.config import add_override_arguments
from pangu_ms.cli.generate_arguments import add_generation_arguments, read_prompts, run_and_print, sampling_config
from pangu_ms.core import runtime
from pangu_ms.core.parser import Parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = Parser(prog="pangu generate", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run directory, its checkpoints directory, or one step of it"
    )
    add_override_arguments(parser)
    add_generation_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once, at most")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens per call of the prefill graph")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer directory or vocab.model; default: the checkpoint's own"
    )
    args = parser.parse_intermixed_args(argv)
    sampling, prompts = sampling_config(args), read_prompts(args)
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.load import load_generator

    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    generator = load_generator(checkpoint, prompts, sampling, args.batch_size, args.chunk, args.tokenizer, config)
    run_and_print(generator, prompts, sampling, args)
    return 0
