"""`pangu generate`: continue prompts from a checkpoint."""

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pangu_ms.cli import options
from pangu_ms.core import runtime, small_json
from pangu_ms.core.errors import GenerationError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_json
from pangu_ms.infer.domains import Domains
from pangu_ms.infer.generate import Generation, Generator
from pangu_ms.infer.sampling import SamplingConfig

DOMAIN_HELP = "domain of the prompts that name none (default: the model's model.default_domain, or its first domain)"
PROMPT_KEYS = ("prompt", "domain")
"""Keys of an object in a .jsonl file of prompts."""


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu generate", description=__doc__)
    options.add_checkpoint(parser)
    options.add_overrides(parser)
    options.add_generation(parser)
    options.add_batch_size(parser, "largest number of prompts that are decoded together")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens per call of the prefill graph")
    options.add_own_tokenizer(parser)
    options.add_domain(parser, DOMAIN_HELP)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    sampling = options.sampling_config(args)
    prompts, domains = read_prompts(args.prompt, args.prompt_file, args.stream, args.json)
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.model import checkpoint_config  # imported here: run.pyz has this module, but not these
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.infer.load import domains_of, load_generator

    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    domains = with_default(domains, args.domain, domains_of(config.model))
    generator = load_generator(
        checkpoint, prompts, sampling, args.batch_size, args.chunk, args.tokenizer, config, domains
    )
    generate_and_print(generator, prompts, sampling, args.stream, args.json, domains)
    return 0


def with_default(own: list[str], given: str | None, domains: Domains) -> list[str]:
    """The domain of each prompt: its own, else that of --domain. A model without domains does not read those of a file
    of prompts."""
    return [(name if domains.names else "") or given or "" for name in own]


def read_prompts(
    given: list[str], file: Path | None, stream: bool = False, as_json: bool = False
) -> tuple[list[str], list[str]]:
    """The given prompts, then those of a file; if there are neither, standard input is the prompt.

    Args:
        given: texts of --prompt.
        file: a prompt per line, or a .jsonl file.
        stream: whether --stream is given.
        as_json: whether --json is given.

    Returns:
        The prompts, and the domain of each, "" if it names none.

    Raises:
        GenerationError: there is no prompt, a file or line cannot be read, or the prompts cannot be printed in this
            form.
    """
    of_file, domains = _read_prompt_file(file) if file else ([], [])
    prompts, domains = [*given, *of_file], [""] * len(given) + domains
    if not prompts and file:
        raise GenerationError(f"{file}: holds no prompt; write one per line")
    if not prompts:
        prompts, domains = [_read_standard_input()], [""]
    if stream and as_json:
        raise GenerationError("--stream and --json: exclude each other; leave one out")
    if stream and len(prompts) != 1:
        raise GenerationError(
            f"--stream: {len(prompts)} prompts; text of several would mix on the terminal; give one, or leave"
            " --stream out"
        )
    return prompts, domains


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        raise GenerationError("no prompt; give --prompt TEXT, --prompt-file FILE or text on standard input")
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        raise GenerationError(
            f"standard input: byte {error.start} is not UTF-8; text must be UTF-8; convert it"
        ) from None
    return text.replace("\r\n", "\n").rstrip("\n")  # Windows ends lines with CRLF


def _read_prompt_file(path: Path) -> tuple[list[str], list[str]]:
    try:
        lines = [line.rstrip("\r") for line in small_json.read_bytes(path, pipes=True).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise GenerationError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise GenerationError(f"{path}: cannot be read ({error}); name a file of prompts, one a line") from None
    if path.suffix != ".jsonl":
        prompts = [line for line in lines if line]
        return prompts, [""] * len(prompts)
    prompts, domains = [], []
    for number, line in enumerate(lines, 1):
        if line:
            prompt, domain = _prompt_and_domain(line, f"{path}:{number}")
            prompts.append(prompt)
            domains.append(domain)
    return prompts, domains


def _prompt_and_domain(line: str, place: str) -> tuple[str, str]:
    """What a line of a .jsonl file says; `place` is for messages."""
    try:
        value = small_json.parse(line)
    except ValueError:
        value = None
    if isinstance(value, str):
        return value, ""
    if isinstance(value, dict) and (unknown := [key for key in value if key not in PROMPT_KEYS]):
        raise GenerationError(
            f"{place}: unknown key {unknown[0][:40]!r}; known: {', '.join(PROMPT_KEYS)}; rename or remove it"
        )
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise GenerationError(f"{place}: neither a JSON string nor an object with a prompt key")
    domain = "" if value.get("domain") is None else value["domain"]
    if not isinstance(domain, str):
        raise GenerationError(
            f"{place}: domain={domain!r}: a domain is named by a JSON string; write its name in quotes"
        )
    return value["prompt"], domain


def generate_and_print(
    generator: Generator,
    prompts: list[str],
    sampling: SamplingConfig,
    stream: bool,
    as_json: bool,
    domains: Sequence[str] = (),
) -> list[Generation]:
    """Generate, and print the text as it is generated (`stream`), as one line of JSON per prompt (`as_json`), or as one
    text per prompt. The text is written unchanged, byte for byte, to a pipe too."""
    if stream:
        print(prompts[0], end="", flush=True)
        results = generator.generate(prompts, sampling, lambda _, text: print(text, end="", flush=True), domains)
        print()
        return results
    results = generator.generate(prompts, sampling, domains=domains)
    for number, result in enumerate(results, 1):
        if as_json:
            print_json(dataclasses.asdict(result), ensure_ascii=False)
            continue
        gap, label = "" if number == 1 else "\n", f"[{number}] " if len(results) > 1 else ""
        print(gap + label + result.prompt + result.text)
    return results
