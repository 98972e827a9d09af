"""`pangu generate`: continue prompts from a checkpoint."""

import argparse
from pathlib import Path

from pangu_ms import runtime
from pangu_ms.infer.arguments import add_generation_arguments, read_prompts, run_and_print, sampling_config
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.generate import Generator
from pangu_ms.infer.sampling import SamplingConfig


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(prog="pangu generate", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run directory, its checkpoints directory, or one step of it")
    add_generation_arguments(parser)
    parser.add_argument("--batch-size", type=int, default=8, help="prompts at once, at most")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens per call of the prefill graph")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer directory or vocab.model; default: the checkpoint's own")
    args = parser.parse_args(argv)
    config, prompts = sampling_config(args), read_prompts(args)
    runtime.quiet(args.verbose)
    run_and_print(make_generator(args.checkpoint, prompts, config, args.batch_size, args.chunk, args.tokenizer), prompts, config, args)
    return 0


def make_generator(
    path: Path | str, prompts: list[str], config: SamplingConfig, batch_size: int = 8, chunk: int = 64, tokenizer: Path | str | None = None
) -> Generator:
    """A Generator from a checkpoint whose cache has just the room that these prompts need."""
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.load import load_decoder, load_tokenizer

    checkpoint = open_checkpoint(path)
    loaded = load_tokenizer(checkpoint, tokenizer)
    longest = max(len(loaded.encode(prompt)) for prompt in prompts)
    rows = config.num_beams if config.num_beams > 1 else min(batch_size, len(prompts))
    shape = GraphShape.fitting(checkpoint.config().model.seq_length, rows, longest + config.max_new_tokens, chunk)
    return Generator(load_decoder(checkpoint, shape), loaded)
