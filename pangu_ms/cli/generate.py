"""`pangu generate`: continue prompts from a checkpoint."""

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.core import files, runtime, small_json
from pangu_ms.core.errors import GenerationError
from pangu_ms.core.parser import Parser
from pangu_ms.core.progress import progress_bar
from pangu_ms.core.table import print_json
from pangu_ms.infer.answers import AnswerFile, answer
from pangu_ms.infer.domains import Domains
from pangu_ms.infer.generate import Generation, Generator, Prompt
from pangu_ms.infer.sampling import SamplingConfig

DOMAIN_HELP = "domain of the prompts that name none (default: the model's model.default_domain, or its first domain)"
OWN_SETTINGS = (*options.SAMPLING_HELP, "stop", "logit_bias")
"""Keys of an object in a .jsonl file of prompts that replace the options of the same names."""
PROMPT_KEYS = ("prompt", "id", "domain", "template", *OWN_SETTINGS)


def build_parser() -> Parser:
    """The verb's options."""
    parser = Parser(prog="pangu generate", description=__doc__)
    options.add_checkpoint(parser)
    options.add_overrides(parser)
    options.add_generation(parser)
    options.add_batch_size(parser, "slots: largest number of prompts that are continued at a time")
    parser.add_argument("--chunk", type=int, default=64, help="prompt tokens per step")
    options.add_scheduling(parser)
    options.add_threads(parser)
    options.add_weights(parser)
    options.add_cache_dtype(parser)
    options.add_own_tokenizer(parser)
    options.add_domain(parser, DOMAIN_HELP)
    parser.set_defaults(run=_run)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return build_parser().run(argv)


def _run(args: Namespace) -> int:
    sampling = options.sampling_config(args)
    prompts = read_prompts(args, sampling)
    runtime.quiet(args.verbose)

    from pangu_ms.checkpoint.model import checkpoint_config  # imported here: run.pyz has this module, but not these
    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.config.load import config_to_dict
    from pangu_ms.infer.load import domains_of, load_generator, load_tokenizer
    from pangu_ms.infer.prompt_states import PromptStates

    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    prompts = with_default(prompts, args.domain, domains_of(config.model))
    tokenizer = load_tokenizer(checkpoint, args.tokenizer)
    scheduling = options.scheduling(args, tokenizer, PromptStates(checkpoint, config))
    model = [checkpoint.manifest, config_to_dict(config)["model"], args.weights, tokenizer.fingerprint]
    model += [args.cache_dtype] if args.cache_dtype else []
    with open_answers(args, prompts, files.sha256_json(model)) as answers:
        options.use_threads(args)
        generator = load_generator(
            checkpoint,
            prompts,
            args.batch_size,
            args.chunk,
            args.tokenizer,
            config,
            args.weights,
            args.cache_dtype,
            **scheduling,
        )
        generate_and_print(generator, prompts, args.stream, args.json, answers)
    return 0


def with_default(prompts: list[Prompt], given: str | None, domains: Domains) -> list[Prompt]:
    """The prompts, of which those that name no domain have that of --domain. A model without domains does not read
    those of a file of prompts."""
    names = [(prompt.domain if domains.names else "") or given or "" for prompt in prompts]
    return [dataclasses.replace(prompt, domain=name) for prompt, name in zip(prompts, names)]


def open_answers(args: Namespace, prompts: list[Prompt], model: str) -> AbstractContextManager[AnswerFile | None]:
    """The file of --output, or None if it is not given, as a context; `model` is that of AnswerFile."""
    return AnswerFile(args.output, prompts, model) if args.output else nullcontext()


def read_prompts(args: Namespace, sampling: SamplingConfig) -> list[Prompt]:
    """The prompts of --prompt, then those of --prompt-file; if there are neither, standard input is the prompt.

    Args:
        args: of the options of `add_generation`.
        sampling: settings of the prompts that have no other ones.

    Raises:
        GenerationError: there is no prompt, a file or line cannot be read, or the prompts cannot be printed in this
            form.
    """
    prompts = [Prompt(text, sampling) for text in args.prompt]
    if args.prompt_file:
        prompts += _read_prompt_file(args.prompt_file, sampling)
    if not prompts and args.prompt_file:
        raise GenerationError(f"{args.prompt_file}: holds no prompt; write one per line")
    if not prompts:
        prompts = [Prompt(_read_standard_input(), sampling)]
    if args.stream and (args.json or args.output):
        other = "--json" if args.json else "--output"
        raise GenerationError(f"--stream and {other}: exclude each other; leave one out")
    if sampling.logprobs >= 0 and not (args.json or args.output):
        raise GenerationError(
            f"--logprobs {sampling.logprobs}: only JSON shows them; add --json or --output FILE, or leave it out"
        )
    number = sum(prompt.sampling.num_samples for prompt in prompts)
    if args.stream and number != 1:
        raise GenerationError(
            f"--stream: {number} continuations; texts of several would mix on the terminal; ask for one, or leave"
            " --stream out"
        )
    return prompts


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


def _read_prompt_file(path: Path, sampling: SamplingConfig) -> list[Prompt]:
    try:
        lines = [line.rstrip("\r") for line in small_json.read_bytes(path, pipes=True).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise GenerationError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except ValueError as error:
        raise GenerationError(f"{path}: cannot be read ({error}); name a file of prompts, one a line") from None
    if path.suffix != ".jsonl":
        return [Prompt(line, sampling) for line in lines if line]
    return [_prompt_of_line(line, f"{path}:{number}", sampling) for number, line in enumerate(lines, 1) if line]


def _prompt_of_line(line: str, place: str, sampling: SamplingConfig) -> Prompt:
    """What a line of a .jsonl file says; `place` is for messages."""
    try:
        value = small_json.parse(line)
    except ValueError:
        value = None
    if isinstance(value, str):
        return Prompt(value, sampling)
    if isinstance(value, dict) and (unknown := [key for key in value if key not in PROMPT_KEYS]):
        raise GenerationError(
            f"{place}: unknown key {unknown[0][:40]!r}; known: {', '.join(PROMPT_KEYS)}; rename or remove it"
        )
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise GenerationError(f"{place}: neither a JSON string nor an object with a prompt key")
    domain, template = ("" if value.get(key) is None else value[key] for key in ("domain", "template"))
    for key, name in (("domain", domain), ("template", template)):
        if not isinstance(name, str):
            raise GenerationError(
                f"{place}: {key}={name!r}: a {key} is named by a JSON string; write its name in quotes"
            )
    own_id = value.get("id")
    if own_id is not None and type(own_id) not in (str, int):
        raise GenerationError(f"{place}: id={own_id!r}: must be a text or a whole number; correct it")
    return Prompt(value["prompt"], _own_sampling(value, place, sampling), domain, template, own_id)


def _own_sampling(value: dict[str, Any], place: str, sampling: SamplingConfig) -> SamplingConfig:
    """The settings of one prompt."""
    own = {name: value[name] for name in OWN_SETTINGS if name in value}
    for name, found in own.items():
        default = getattr(SamplingConfig, name)
        if name == "stop":
            texts = [found] if isinstance(found, str) else found
            if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
                raise GenerationError(f"{place}: stop={found!r}: must be a text, or a list of texts; correct it")
            own[name] = tuple(texts)
        elif name == "logit_bias":
            own[name] = _logit_bias(found, place)
        elif type(found) is not type(default) and not (isinstance(default, float) and type(found) is int):
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise GenerationError(f"{place}: {name}={found!r}: must be {kind}; correct it")
    try:
        return dataclasses.replace(sampling, **own)
    except GenerationError as error:
        raise GenerationError(f"{place}: {error}") from None


def _logit_bias(found: Any, place: str) -> tuple[tuple[int, float], ...]:
    """The pairs of an object like {"17": -100}, as OpenAI's API takes it."""
    items = found.items() if isinstance(found, dict) else [("", "")]
    if not all(key.isdecimal() and type(value) in (int, float) for key, value in items):
        raise GenerationError(
            f'{place}: logit_bias={found!r}: must be an object of ids and numbers, such as {{"17": -100}}; correct it'
        )
    return tuple((int(key), float(value)) for key, value in items)


def generate_and_print(
    generator: Generator, prompts: Sequence[Prompt], stream: bool, as_json: bool, answers: AnswerFile | None = None
) -> None:
    """Generate, and print the text as it is generated (`stream`), as one line of JSON per continuation (`as_json`), or
    as one text per continuation; or write it to a file. The text is written unchanged, byte for byte, to a pipe too."""
    if stream:
        print(prompts[0].text, end="", flush=True)
        for _ in generator.each(prompts, lambda _, text: print(text, end="", flush=True)):
            pass
        print()
        return
    number = sum(prompt.sampling.num_samples for prompt in prompts)
    begun = len(answers.lines) if answers else 0
    found: list[tuple[int, int, Generation]] = []
    try:
        with progress_bar(number > 1, total=number, initial=begun, desc="generate", unit="text", leave=False) as bar:
            for index, sample, generation in generator.each(prompts, only=answers.missing if answers else None):
                bar.update()
                if answers:
                    answers.add(index, sample, generation)
                else:
                    found.append((index, sample, generation))
    except (GenerationError, KeyboardInterrupt):  # one failed, or the user waits no longer; the others are there
        _print_found(found, prompts, as_json)
        raise
    if answers:
        answers.close()
        print(f"{answers.path}: {number} continuations" + (f", {begun} of them were there" if begun else ""))
        return
    _print_found(found, prompts, as_json)


def _print_found(found: list[tuple[int, int, Generation]], prompts: Sequence[Prompt], as_json: bool) -> None:
    found.sort(key=lambda one: one[:2])
    for position, (index, sample, generation) in enumerate(found):
        if as_json:
            print_json(answer(index, sample, generation, prompts[index]), ensure_ascii=False)
            continue
        gap, label = "\n" if position else "", f"[{index + 1}] " if len(found) > 1 else ""
        print(gap + label + generation.prompt + generation.text)
