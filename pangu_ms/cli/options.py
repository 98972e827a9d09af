"""Options that several verbs have, each defined once. Imports are kept few, since a MindIR package's run.pyz contains
this module."""

import argparse
import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.core import runtime
from pangu_ms.core.errors import ConfigError, GenerationError
from pangu_ms.core.parser import NewCheckpoint, NewDirectory, NewFile, Parser

if TYPE_CHECKING:
    from pangu_ms.data.tokenizer import Tokenizer
    from pangu_ms.infer.prompt_states import PromptStates
    from pangu_ms.infer.sampling import SamplingConfig

Options = argparse.ArgumentParser | argparse._ArgumentGroup
"""Anything that options can be added to."""

RECORDS_HELP = "directory written by `pangu data prepare`, or MindRecord files"
OVERRIDES_HELP = (
    "overrides that run the checkpoint on another device than it was trained on: runtime.device=CPU,"
    " model.compute_dtype=float32"
)
TEXT_FIELD_HELP = (
    "field of a JSON object that holds its text, a.b for b inside a; it is a string or a conversation, which is a list"
    " of messages with role and content (default: text, or else messages)"
)
SAMPLING_HELP = {
    "max_new_tokens": "longest continuation, in tokens",
    "min_new_tokens": "stop tokens are not chosen before there are this many tokens",
    "temperature": "divides the logits; 0 is greedy",
    "top_k": "keep the k likeliest tokens; 0 keeps all",
    "top_p": "keep the fewest likeliest tokens whose probabilities add up to this",
    "repetition_penalty": "penalizes every token that occurred, the prompt included; 1 is off",
    "frequency_penalty": "subtracted from a token's logit for each time it was generated (the official script: 1.5)",
    "presence_penalty": "subtracted once from the logit of every generated token (the official script: 0.3)",
    "num_beams": "number of beams of beam search; with 1, tokens are sampled",
    "length_penalty": "a beam's score is divided by its length to this power",
    "num_samples": "continuations of each prompt",
    "logprobs": "add log-probabilities to the JSON: of each token, and of this many likeliest ones; -1: none",
    "seed": "seed of the sampling",
}


def add_config(parser: Parser, default: str | None = "alpha/tiny") -> None:
    """Add `--config NAME` and dotted overrides; if `default` is None, there is no configuration unless one is named."""
    text = "YAML file or shipped config" + (" (default: %(default)s)" if default else "")
    parser.add_argument("--config", action=_Config, default=default, metavar="NAME", help=text)
    text = "override a field, e.g. train.steps=100"
    action = _Overrides if default is None else _NameOrOverrides
    parser.add_argument("overrides", nargs="*", action=action, metavar="section.field=value", help=text)


def add_overrides(parser: Parser, text: str = OVERRIDES_HELP) -> None:
    """Add dotted overrides to a verb that takes its configuration from a checkpoint."""
    parser.add_argument("overrides", nargs="*", action=_Overrides, metavar="section.field=value", help=text)


class _Config(argparse.Action):
    """The action of `--config NAME`. The last `--config` wins, but it must not contradict a positional name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        _require_one(values, getattr(namespace, "config_word", values))
        # Remembered apart, since a default in `config` is no contradiction to a positional name.
        namespace.config = namespace.config_option = values


class _Overrides(argparse.Action):
    """Refuses arguments that are not overrides, such as a second file from a shell's glob pattern."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.overrides = values
        for word in values:
            if "=" not in word.lstrip("="):
                raise ConfigError(
                    f"{word}: is no override; an override has the form section.field=value, for example"
                    f" runtime.device=CPU{self.hint(word)}"
                )

    def hint(self, word: str) -> str:
        """A suggestion for the error message: what the argument may have been meant to be."""
        return ""


class _NameOrOverrides(_Overrides):
    """Also accepts the name of a configuration without the option: `pangu plan show alpha/13b` means --config
    alpha/13b."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from pangu_ms.config.load import presets  # imported here, since run.pyz does not contain it

        known = presets()
        shipped = {word: word.removeprefix("configs/").removesuffix(".yaml") in known for word in values}
        names = [word for word in values if shipped[word] or _is_yaml(word)]
        for name in names:
            _require_one(name, getattr(namespace, "config_option", name), getattr(namespace, "config_word", name))
            namespace.config = namespace.config_word = name
        super().__call__(parser, namespace, [word for word in values if word not in names], option_string)

    def hint(self, word: str) -> str:
        """A suggestion of the shipped configuration with the most similar name."""
        from pangu_ms.config.load import presets

        near = difflib.get_close_matches(word, presets(), 1)
        return f" (or did you mean --config {near[0]}?)" if near else ""


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and "=" not in Path(word).name and Path(word).is_file()


def _require_one(name: str, *others: str) -> None:
    for other in others:
        if other != name:
            raise ConfigError(f"{name}: {other} is named as the configuration, too; a run has one; leave one out")


def add_devices(parser: Options) -> None:
    """Add `--devices N` to a command that shows a plan."""
    text = "number of devices, which must be the product of the parallel degrees; 0: that product"
    parser.add_argument("--devices", type=int, default=0, metavar="N", help=text)


def add_json(parser: Options, text: str = "machine-readable output") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=text)


def add_verbose(parser: Options) -> None:
    """Add `--verbose`."""
    parser.add_argument("--verbose", action="store_true", help="show MindSpore's own messages")


def add_new_directory(parser: Options, option: str, text: str, required: bool = False) -> None:
    """Add an option that names a directory to make; one with content is refused when the arguments are parsed."""
    parser.add_argument(option, type=Path, action=NewDirectory, required=required, metavar="DIR", help=text)


def add_new_checkpoint(parser: Options, option: str, text: str) -> None:
    """As `add_new_directory`, for a directory that a checkpoint is written to."""
    parser.add_argument(option, type=Path, action=NewCheckpoint, required=True, metavar="DIR", help=text)


def add_new_file(parser: Options, option: str, text: str, required: bool = False, metavar: str = "FILE") -> None:
    """Add an option that names a file to write; an existing one is refused when the arguments are parsed."""
    parser.add_argument(option, type=Path, action=NewFile, required=required, metavar=metavar, help=text)


def add_checkpoint(parser: Options, metavar: str = "CHECKPOINT") -> None:
    """Add the checkpoint that a verb works on."""
    text = "a run directory, its checkpoints directory, or the directory of one step"
    parser.add_argument("checkpoint", type=Path, metavar=metavar, help=text)


def add_data(parser: Options, text: str = RECORDS_HELP, required: bool = False) -> None:
    """Add `--data RECORDS`."""
    parser.add_argument("--data", required=required, metavar="RECORDS", help=text)


def add_split(parser: Options, text: str, default: str | None = "held_out") -> None:
    """Add `--split`, of records that a checkpoint is measured on."""
    parser.add_argument("--split", default=default, choices=["held_out", "train"], help=text)


def add_batch_size(parser: Options, text: str = "sequences per batch", default: int | None = 8) -> None:
    """Add `--batch-size N`."""
    parser.add_argument("--batch-size", type=int, default=default, metavar="N", help=text)


def add_tokenizer(
    parser: Options, text: str = "tokenizer directory or released vocab.model", required: bool = True
) -> None:
    """Add `--tokenizer PATH`."""
    parser.add_argument("--tokenizer", required=required, metavar="PATH", help=text)


def add_own_tokenizer(parser: Options) -> None:
    """Add `--tokenizer PATH` to a verb whose checkpoint has one."""
    add_tokenizer(parser, "tokenizer directory or vocab.model; default: the checkpoint's own", required=False)


def add_domain(parser: Options, text: str) -> None:
    """Add `--domain NAME`, of a model with domains."""
    parser.add_argument("--domain", metavar="NAME", help=text)


def add_corpus(
    parser: Options,
    text: str = "text files, JSON lines or JSON arrays; may be compressed (.gz, .zst)",
    required: bool = False,
) -> None:
    """Add `--corpus FILE ...`."""
    parser.add_argument("--corpus", nargs="+", required=required, metavar="FILE", help=text)


def add_corpus_format(parser: Options) -> None:
    """Add the options that `corpus_format` reads."""
    parser.add_argument("--text-field", metavar="NAME", help=TEXT_FIELD_HELP)
    parser.add_argument("--plain-text", action="store_true", help="read every file as plain text, even JSON")


def corpus_format(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Corpus`."""
    return {"text_field": args.text_field, "plain_text": args.plain_text}


def add_num_workers(parser: Options) -> None:
    """Add `--num-workers N`."""
    text = "number of encoding processes (default: one per core)"
    parser.add_argument("--num-workers", type=int, metavar="N", help=text)


def add_generation(parser: Parser) -> None:
    """Add prompts, sampling, and how the text is printed."""
    from pangu_ms.infer.sampling import SamplingConfig  # imported here: it imports numpy, which other verbs do not need

    text = "a prompt; may be given several times"
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=text)
    text = (
        "one prompt per line, or a .jsonl file of strings or of objects with a prompt key, perhaps a domain key if the"
        " model has domains, and keys like max_new_tokens or stop that replace these options"
    )
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--stream", action="store_true", help="print text while it is generated (one prompt only)")
    add_json(parser, "one JSON object per continuation")
    text = "write one JSON object per continuation to this file; the same command goes on where it was interrupted"
    parser.add_argument("--output", type=Path, action=NewFile, metavar="FILE", help=text)
    add_verbose(parser)
    add_fields(parser, SamplingConfig, SAMPLING_HELP)
    text = "end the continuation at this text; may be given several times"
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=text)


def add_allow_kernels(parser: argparse.ArgumentParser) -> None:
    """--allow-kernels, of a package."""
    text = "compile the kernels that the package carries, and run them: code of whoever made the package"
    parser.add_argument("--allow-kernels", action="store_true", help=text)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """--weights: how a model that generates has its matrices."""
    text = (
        "dtype of the matrices, packed for the CPU kernels, or `stored`, not packed (default: float32 on a CPU; that of"
        " a quantized checkpoint)"
    )
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8", "stored"), default="", help=text)


def add_cache_dtype(parser: argparse.ArgumentParser) -> None:
    """--cache-dtype: of cached keys and values."""
    text = "dtype of cached keys and values; float16 and bfloat16 halve a cache of float32 (default: as computed)"
    parser.add_argument("--cache-dtype", choices=("float32", "float16", "bfloat16"), default="", help=text)


def add_threads(parser: Parser) -> None:
    """Add --threads."""
    text = "most threads that compute on a CPU, in MindSpore's operators and our kernels (default: all processors)"
    parser.add_argument("--threads", type=int, default=0, metavar="N", help=text)


def require_threads(args: argparse.Namespace) -> None:
    """Raise GenerationError if --threads is below 0."""
    if args.threads < 0:
        raise GenerationError(f"--threads {args.threads}: must be at least 1, or 0 for the default")


def use_threads(args: argparse.Namespace) -> None:
    """Do what --threads says; see `require_threads`."""
    require_threads(args)
    runtime.use_threads(args.threads)


def add_scheduling(parser: Parser) -> None:
    """Add how the engine shares its slots."""
    from pangu_ms.infer.scheduling.policies import POLICIES

    text = "order in which prompts get a slot; see docs/scheduling.md"
    names = [name for name, policy in POLICIES.items() if policy.rows == "slots"]
    parser.add_argument("--scheduler", choices=names, default="fcfs", help=text)
    text = "a file of `pangu schedule train-predictor`: how long continuations will be, for the scheduler"
    parser.add_argument("--length-predictor", type=Path, metavar="FILE", help=text)
    text = "compute each prompt as a whole, also where a slot holds its beginning"
    parser.add_argument("--no-prefix-cache", action="store_true", help=text)


def scheduling(
    args: argparse.Namespace, tokenizer: "Tokenizer", states: "PromptStates | None" = None
) -> dict[str, Any]:
    """What `add_scheduling` asked for, as arguments of Generator; `states` is for a predictor that reads them."""
    from pangu_ms.infer.scheduling.length_predictors import load_predictor
    from pangu_ms.infer.scheduling.policies import POLICIES, Settings

    if args.length_predictor and not POLICIES[args.scheduler].uses_predictions:
        raise GenerationError(
            f"--length-predictor {args.length_predictor}: --scheduler {args.scheduler} does not use lengths; add one"
            " that does, such as --scheduler ljf, or leave it out"
        )
    predictor = load_predictor(args.length_predictor, tokenizer, states) if args.length_predictor else None
    scheduler = POLICIES[args.scheduler].make(Settings())
    return {"scheduler": scheduler, "predictor": predictor, "prefix_cache": not args.no_prefix_cache}


def add_fields(parser: Options, kind: type, helps: dict[str, str]) -> None:
    """Add an option for each field of a dataclass that `helps` explains."""
    for field in dataclasses.fields(kind):
        if field.name in helps:
            option, value = f"--{field.name.replace('_', '-')}", field.default
            parser.add_argument(option, type=type(value), default=value, help=helps[field.name])


def sampling_config(args: argparse.Namespace) -> "SamplingConfig":
    """Make the SamplingConfig from the options that `add_generation` added."""
    from pangu_ms.infer.sampling import SamplingConfig

    values = {name: getattr(args, name) for name in SAMPLING_HELP}
    return SamplingConfig(**values, stop=tuple(text for text in args.stop if text))
