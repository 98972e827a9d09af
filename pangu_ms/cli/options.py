"""Options that several verbs have, each defined once. Light, since a package's run.pyz carries it."""

import argparse
import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import NewDirectory, NewFile, Parser

if TYPE_CHECKING:
    from pangu_ms.infer.sampling import SamplingConfig

Options = argparse.ArgumentParser | argparse._ArgumentGroup
"""What options are added to."""

RECORDS_HELP = "directory written by `pangu data prepare`, or MindRecord files"
OVERRIDES_HELP = (
    "runtime.device=CPU or model.compute_dtype=float32 use a checkpoint elsewhere than where it was trained"
)
TEXT_FIELD_HELP = (
    "where JSON objects have their text, a.b for b inside a; a string, or a conversation: a list of messages with role"
    " and content (default: text, or else messages)"
)
SAMPLING_HELP = {
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


def add_config(parser: Parser, default: str | None = "alpha/tiny") -> None:
    """Add `--config NAME` and dotted overrides; a `default` of None takes no configuration."""
    text = "YAML file or shipped config (default: %(default)s)"
    parser.add_argument("--config", action=_Config, default=default, metavar="NAME", help=text)
    text = "override a field, e.g. train.steps=100"
    action = _Overrides if default is None else _NameOrOverrides
    parser.add_argument("overrides", nargs="*", action=action, metavar="section.field=value", help=text)


def add_overrides(parser: Parser, text: str = OVERRIDES_HELP) -> None:
    """Add dotted overrides to a verb that takes its configuration from a checkpoint."""
    parser.add_argument("overrides", nargs="*", action=_Overrides, metavar="section.field=value", help=text)


class _Config(argparse.Action):
    """Of `--config NAME`; the last one counts, but not against a name without the option."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        _require_one(values, getattr(namespace, "config_word", values))
        namespace.config = namespace.config_option = values


class _Overrides(argparse.Action):
    """Refuses words of another form, such as a second file from a shell's pattern."""

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
        """What the word may have been meant for."""
        return ""


class _NameOrOverrides(_Overrides):
    """Takes the name of a configuration, too: `pangu plan show alpha/13b` means --config."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from pangu_ms.config.load import presets  # not in run.pyz

        known = presets()
        shipped = {word: word.removeprefix("configs/").removesuffix(".yaml") in known for word in values}
        names = [word for word in values if shipped[word] or _is_yaml(word)]
        for name in names:
            _require_one(name, getattr(namespace, "config_option", name), getattr(namespace, "config_word", name))
            namespace.config = namespace.config_word = name
        super().__call__(parser, namespace, [word for word in values if word not in names], option_string)

    def hint(self, word: str) -> str:
        """The configuration of nearly that name."""
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
    """Add `--devices N`, of a plan that is looked at."""
    text = "the degrees must multiply to it; 0: their product"
    parser.add_argument("--devices", type=int, default=0, metavar="N", help=text)


def add_json(parser: Options, text: str = "machine-readable output") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=text)


def add_verbose(parser: Options) -> None:
    """Add `--verbose`."""
    parser.add_argument("--verbose", action="store_true", help="show MindSpore's own messages")


def add_new_directory(parser: Options, option: str, text: str, required: bool = False) -> None:
    """Add an option that names a directory to make; one with content is refused while the words are parsed."""
    parser.add_argument(option, type=Path, action=NewDirectory, required=required, metavar="DIR", help=text)


def add_new_file(parser: Options, option: str, text: str, required: bool = False, metavar: str = "FILE") -> None:
    """Add an option that names a file to write; one that exists is refused while the words are parsed."""
    parser.add_argument(option, type=Path, action=NewFile, required=required, metavar=metavar, help=text)


def add_checkpoint(parser: Options, metavar: str = "CHECKPOINT") -> None:
    """Add the checkpoint that a verb works on."""
    text = "a run directory, its checkpoints directory, or one step of it"
    parser.add_argument("checkpoint", type=Path, metavar=metavar, help=text)


def add_data(parser: Options, text: str = RECORDS_HELP, required: bool = False) -> None:
    """Add `--data RECORDS`."""
    parser.add_argument("--data", required=required, metavar="RECORDS", help=text)


def add_split(parser: Options, text: str) -> None:
    """Add `--split`, of records that a checkpoint is measured on."""
    parser.add_argument("--split", default="held_out", choices=["held_out", "train"], help=text)


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


def add_corpus(
    parser: Options, text: str = "text, JSON lines or arrays; .gz or .zst too", required: bool = False
) -> None:
    """Add `--corpus FILE ...`."""
    parser.add_argument("--corpus", nargs="+", required=required, metavar="FILE", help=text)


def add_corpus_format(parser: Options) -> None:
    """Add the options that `corpus_format` reads."""
    parser.add_argument("--text-field", metavar="NAME", help=TEXT_FIELD_HELP)
    parser.add_argument("--plain-text", action="store_true", help="take every file as plain text, JSON too")


def corpus_format(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Corpus`."""
    return {"text_field": args.text_field, "plain_text": args.plain_text}


def add_num_workers(parser: Options) -> None:
    """Add `--num-workers N`."""
    text = "encoding processes (default: one per core)"
    parser.add_argument("--num-workers", type=int, metavar="N", help=text)


def add_generation(parser: Parser) -> None:
    """Add prompts, sampling, and how the text is printed."""
    from pangu_ms.infer.sampling import SamplingConfig  # with numpy, which other verbs' options do without

    text = "a prompt; may be given several times"
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=text)
    text = "one prompt per line, or a .jsonl file of strings or of objects with a prompt key"
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--stream", action="store_true", help="print text as it appears (one prompt)")
    add_json(parser, "one JSON object per prompt")
    add_verbose(parser)
    add_fields(parser, SamplingConfig, SAMPLING_HELP)
    text = "end at this text; may be given several times"
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help=text)


def add_fields(parser: Options, kind: type, helps: dict[str, str]) -> None:
    """Add an option for each field of a dataclass that `helps` explains."""
    for field in dataclasses.fields(kind):
        if field.name in helps:
            option, value = f"--{field.name.replace('_', '-')}", field.default
            parser.add_argument(option, type=type(value), default=value, help=helps[field.name])


def sampling_config(args: argparse.Namespace) -> "SamplingConfig":
    """The SamplingConfig of options that `add_generation` added."""
    from pangu_ms.infer.sampling import SamplingConfig

    values = {name: getattr(args, name) for name in SAMPLING_HELP}
    return SamplingConfig(**values, stop=tuple(text for text in args.stop if text))
