"""`pangu generate`: continue prompts from a checkpoint."""

import argparse

from pangu_ms import runtime
from pangu_ms.infer.arguments import add_generation_arguments, read_prompts, run_and_print, sampling_config


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(prog="pangu generate", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run directory, its checkpoints directory, or one step of it")
    add_generation_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once, at most")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens per call of the prefill graph")
    args = parser.parse_args(argv)
    config, prompts = sampling_config(args), read_prompts(args)
    runtime.quiet(args.verbose)
    run_and_print(make_generator(args.checkpoint, prompts, config, args.batch_size, args.chunk), prompts, config, args)
    return 0


def make_generator(path, prompts, config, batch_size=8, chunk=64):
    """A Generator from a checkpoint whose cache has just the room that these prompts need."""
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.data.tokenizer import Tokenizer
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.generate import Generator
    from pangu_ms.infer.load import load_decoder

    checkpoint = open_checkpoint(path)
    tokenizer = Tokenizer.load(checkpoint.tokenizer_path())
    seq_length = checkpoint.config().model.seq_length
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    rows = config.num_beams if config.num_beams > 1 else min(batch_size, len(prompts))
    shape = GraphShape.fitting(seq_length, rows, longest + config.max_new_tokens, chunk)
    return Generator(load_decoder(checkpoint, shape), tokenizer)
