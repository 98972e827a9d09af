"""Command line options that `pangu generate` and `pangu run-mindir` share, and how both print."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from pangu_ms.core import small_json
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.generate import Generation, Generator
from pangu_ms.infer.sampling import SamplingConfig


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Prompts, sampling and output."""
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a prompt; may be given several times"
    )
    parser.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="one prompt per line, or a .jsonl file of strings or of objects with a prompt key",
    )
    parser.add_argument("--stream", action="store_true", help="print text as it appears (one prompt)")
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt")
    parser.add_argument("--verbose", action="store_true", help="show MindSpore's own messages")
    helps = {
        "max_new_tokens": "longest continuation",
        "temperature": "divides the logits; 0 is greedy",
        "top_k": "keep the k likeliest tokens; 0 keeps all",
        "top_p": "keep the likeliest tokens that reach this probability",
        "repetition_penalty": "for every token seen; 1 is off",
        "frequency_penalty": "for each time a token was generated (the official script: 1.5)",
        "presence_penalty": "once for every generated token (the official script: 0.3)",
        "num_beams": "beams of beam search; 1 samples",
        "length_penalty": "exponent of the length that a beam's score is divided by",
        "seed": "of the sampling",
    }
    for field in dataclasses.fields(SamplingConfig):
        if field.name != "stop":
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                help=helps[field.name],
            )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end at this text; may be given several times"
    )


def sampling_config(args: argparse.Namespace) -> SamplingConfig:
    """The SamplingConfig of parsed arguments."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(SamplingConfig)}
    return SamplingConfig(**values | {"stop": tuple(s for s in args.stop if s)})


def read_prompts(args: argparse.Namespace) -> list[str]:
    """Prompts of --prompt, then those of --prompt-file; standard input when neither is given.

    Raises:
        GenerationError: no prompt, an unreadable file, or a bad line.
    """
    prompts = list(args.prompt)
    if args.prompt_file:
        prompts += _read_prompt_file(Path(args.prompt_file))
    elif not prompts:
        if sys.stdin.isatty():
            raise GenerationError("no prompt; give --prompt TEXT, --prompt-file FILE or text on standard input")
        try:
            prompts = [
                sys.stdin.buffer.read().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
            ]  # as Windows writes text
        except UnicodeDecodeError as error:
            raise GenerationError(
                f"standard input: byte {error.start} is not UTF-8; text must be UTF-8; convert it"
            ) from None
    if not prompts:
        raise GenerationError(f"{args.prompt_file}: holds no prompt; write one per line")
    if args.stream and args.json:
        raise GenerationError("--stream and --json: exclude each other; leave one out")
    if args.stream and len(prompts) != 1:
        raise GenerationError(
            f"--stream: {len(prompts)} prompts; text of several would mix on the terminal; give one, or leave"
            " --stream out"
        )
    return prompts


def _read_prompt_file(path: Path) -> list[str]:
    try:
        lines = [line.rstrip("\r") for line in small_json.read_bytes(path, pipes=True).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise GenerationError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise GenerationError(f"{path}: cannot be read ({error}); name a file of prompts, one a line") from None
    if path.suffix != ".jsonl":
        return [line for line in lines if line]
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            value = small_json.parse(line)
            prompts.append(value if isinstance(value, str) else value["prompt"])
            if not isinstance(prompts[-1], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise GenerationError(f"{path}:{number}: neither a JSON string nor an object with a prompt key") from None
    return prompts


def run_and_print(
    generator: Generator, prompts: list[str], config: SamplingConfig, args: argparse.Namespace
) -> list[Generation]:
    """Generate and print: streamed, as JSON lines, or one text per prompt."""
    if args.stream:
        print(prompts[0], end="", flush=True)
        results = generator.generate(prompts, config, lambda _, text: print(text, end="", flush=True))
        print()
        return results
    results = generator.generate(prompts, config)
    for number, result in enumerate(results):
        if args.json:
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
        else:
            print(
                ("" if number == 0 else "\n")
                + (f"[{number + 1}] " if len(results) > 1 else "")
                + result.prompt
                + result.text
            )
    return results
