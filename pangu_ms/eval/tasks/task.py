"""A benchmark task as data: the fields of its YAML file. docs/evaluation.md shows how to write one.

An item of a task is a row of a data file. What a model reads of it is a text in two parts, `context` and
`continuation`: the loss is taken over the continuation alone. Both are templates, in which {name} stands for a field of
the item; {{ and }} are braces.
"""

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from pangu_ms.core import yaml_file
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.fields import STRICT, Float, Int, require, require_not_negative
from pangu_ms.eval.tasks.template import Template
from pangu_ms.infer.sampling import SamplingConfig

TYPES = ("choice", "assignment", "perplexity", "generation")
CHOICE = "choice"
"""The field that holds the text of a candidate."""
ANSWER = "answer"
"""The field that holds the right answer, in demonstrations of generation tasks."""
DYNAMIC = "dynamic"
_NAME = re.compile(r"\w[\w.-]*(@\w[\w.-]*)?")


def text_of(value: Any) -> str:
    """A value of YAML or JSON as the text that labels are compared by: true as `true`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_text_keys(value: Any) -> Any:
    """YAML reads 0 and true as no texts, though labels often are these."""
    return {text_of(key): text for key, text in value.items()} if isinstance(value, dict) else value


def _field(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Labels = Annotated[dict[str, str], BeforeValidator(_with_text_keys)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


@dataclass(frozen=True, config=STRICT)
class Split:
    """A part of a data set: a file."""

    files: Texts = ()
    """Names below the directory of --task-data, of which the first that exists is read. The first one is what messages
    ask for. Without any, the reader makes the items itself."""
    items: Int = 0
    """How many items the published file has; 0: not known. Another number is told, since scores of another split are
    not comparable."""
    optional: bool = False
    """Whether the reader makes do without the file."""

    def __post_init__(self) -> None:
        require_not_negative(self, items="means that it is not known")


@dataclass(frozen=True, config=STRICT)
class Data:
    """Where the items come from."""

    reader: str
    """A name in `datasets.READERS`."""
    published: str = ""
    """Where to get the files, for people."""
    splits: dict[str, Split] = field(default_factory=dict)
    """Parts by name, such as dev and train."""
    evaluate: str = "dev"
    """The split whose items are asked."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the reader."""

    def __post_init__(self) -> None:
        require(
            self.evaluate in self.splits,
            "evaluate",
            f"={self.evaluate}: must be one of splits ({', '.join(self.splits) or 'there is none'})",
        )


@dataclass(frozen=True, config=STRICT)
class Field:
    """A field for templates, made from the row of a data file. A text alone is its `source`."""

    source: str
    """Key of the row; a.b is key b of the object a."""
    join: str | None = None
    """Joins the values of a list by this text."""
    map: Labels = field(default_factory=dict)
    """Replaces values; one that is missing here is an error."""
    delete: str = ""
    """Characters that are left out."""
    first_chars: Int = 0
    """Keeps so many characters of the beginning; 0 keeps all."""
    last_chars: Int = 0
    """Keeps so many characters of the end; 0 keeps all."""

    def __post_init__(self) -> None:
        require_not_negative(self, first_chars="keeps all", last_chars="keeps all")


@dataclass(frozen=True, config=STRICT)
class Choices:
    """The candidates of a choice or assignment task: either labels, or a field of the item."""

    labels: Labels = field(default_factory=dict)
    """Label -> text that stands for it in templates as {choice}, itself a template."""
    field: str = ""
    """Field with the list of the candidates' texts."""
    random: Int = 0
    """Only so many wrong candidates beside the right one, drawn for each item; 0: all of them. An item without gold has
    all of them."""
    seed: Int = 0
    """Of this drawing."""

    def __post_init__(self) -> None:
        require(bool(self.labels) != bool(self.field), "labels", ": must be given, or field; one of the two")
        require(
            len(set(self.labels.values())) == len(self.labels),
            "labels",
            ": several labels have the same text, of which a model can only predict the first; give each one its own",
        )
        require_not_negative(self, random="takes all candidates")


@dataclass(frozen=True, config=STRICT)
class Decoding:
    """How answers are generated; see infer.sampling.SamplingConfig. Greedy by default."""

    max_new_tokens: Int | Literal["answer"] = 32
    """`answer`: as many as the first right answer has; 32 for an item without gold."""
    temperature: Float = 0.0
    top_k: Int = 0
    top_p: Float = 1.0
    stop: Texts = ("\n",)
    """Texts that end an answer."""
    keep_tokens: Int = 0
    """Of a prompt that is longer than the window has room for, the last so many tokens are kept; 0: all for which there
    is room."""

    def __post_init__(self) -> None:
        require_not_negative(self, keep_tokens="keeps all")
        self.sampling(1 if self.max_new_tokens == ANSWER else int(self.max_new_tokens), 0)

    def sampling(self, max_new_tokens: int, seed: int) -> SamplingConfig:
        """The settings of the engine.

        Raises:
            GenerationError: a value is out of its range.
        """
        return SamplingConfig(
            max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            stop=self.stop,
            seed=seed,
        )


@dataclass(frozen=True, config=STRICT)
class Shots:
    """Demonstrations before an item: other items with their right answers."""

    few: Int | Literal["dynamic"] = 0
    """How many of them `--shots few` means; `dynamic`: as many as the window has room for; 0: the task has none."""
    split: str = "train"
    """Where they are drawn from. An item is no demonstration of itself."""
    draw: Literal["once", "item"] = "once"
    """`once`: the same ones for all items, so that what all prompts begin with is computed once; `item`: others for
    each item."""
    seed: Int = 0
    """Of the drawing; --seeds of the command are added to it."""
    separator: str = "\n"
    """Behind each demonstration."""
    template: str = ""
    """Template of a demonstration; by default that of an item with its right candidate, or with {answer}."""
    fixed: Texts = ()
    """Texts of demonstrations, which are used instead of drawn ones."""
    max_chars: Int = 0
    """Only demonstrations of at most so many characters; 0: any."""
    total_chars: Int = 0
    """At most so many characters of demonstrations in all; 0: any."""

    def __post_init__(self) -> None:
        require_not_negative(self, max_chars="takes any", total_chars="takes any")
        require(
            self.few == DYNAMIC or int(self.few) >= 0,
            "few",
            f"={self.few}: must not be negative; 0 is for a task without",
        )


Scores = dict[str, tuple[Float | None, Float | None, Float | None]]


@dataclass(frozen=True, config=STRICT)
class Task:
    """A task; the fields of its file."""

    name: str
    """What --tasks names. A variant is named `name@variant`."""
    type: Literal["choice", "assignment", "perplexity", "generation"]
    """choice: the candidate with the highest log-probability; assignment: each blank gets another candidate, so that
    the sum is highest; perplexity: that of the continuation; generation: the text that the model writes."""
    data: Data
    context: str
    """Template of what the model reads without loss."""
    metrics: Texts
    """Names in `metrics.METRICS`; the first one is the task's score."""
    version: Int = 1
    """Raised when scores change."""
    title: str = ""
    source: str = "ours"
    """Where the template comes from: `paper, Table 7`, `official repository`, `ours`."""
    notes: str = ""
    """What whoever compares scores should know."""
    continuation: str = ""
    """Template of what the loss is taken over; generation tasks have none."""
    fields: dict[str, Annotated[Field, BeforeValidator(_field)]] = field(default_factory=dict)
    """Fields for the templates beside the keys of the row."""
    choices: Choices | None = None
    blanks: str = ""
    """assignment: field with a list of objects, whose keys are fields for the templates."""
    gold: str = "label"
    """Field with what is right: a label; the index or text of a candidate; a list of indices, one for each blank; an
    answer or a list of them. An item that lacks it, or has null there, is unlabelled."""
    id: str = "id"
    """Field that names the item in submissions; items that lack it are numbered."""
    normalization: Literal["mean", "sum"] = "mean"
    """Whether candidates are compared by the mean log-probability of a token of the continuation, or by the sum."""
    cut: Literal["", "beginning", "end"] = ""
    """Which end of a text is cut that the window has no room for; by default the end if the context has the choice in
    it, else the beginning."""
    decoding: Decoding = field(default_factory=Decoding)
    shots: Shots = field(default_factory=Shots)
    published: dict[str, Scores] = field(default_factory=dict)
    """metric -> size -> scores with no, one and few demonstrations, as published; null where there is none."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> fields that replace those above; mappings are merged, null stands for the field's default."""

    def __post_init__(self) -> None:
        for name in (self.name, *(f"{self.name}@{variant}" for variant in self.variants)):
            require(
                bool(_NAME.fullmatch(name)) and name != "all",
                "name",
                f"={name!r:.60}: files are named by it; it must be letters, digits, dots and hyphens, and not `all`",
            )
        scored = self.type != "generation"
        require(
            bool(self.continuation) == scored,
            "continuation",
            ": is required, since the loss is taken over it" if scored else ": a generation task has none; remove it",
        )
        has_choices = self.type in ("choice", "assignment")
        require(
            bool(self.choices) == has_choices,
            "choices",
            f": is required for type {self.type}" if has_choices else f": type {self.type} has none; remove it",
        )
        require(bool(self.blanks) == (self.type == "assignment"), "blanks", ": is for type assignment; it needs it")
        require(bool(self.metrics), "metrics", ": is empty; name at least one")
        names = [name for template in (self.context, self.continuation) for name in Template(template).names]
        require(
            not has_choices or CHOICE in names,
            "continuation",
            f": neither it nor context has {{{CHOICE}}}, so that all candidates are one text; put it where it belongs",
        )

    @property
    def cut_end(self) -> bool:
        """Whether a text that is too long is cut at its end; see `cut`."""
        return self.cut == "end" if self.cut else CHOICE in Template(self.context).names


def read_task(path: Path, variant: str = "") -> Task:
    """The task of a file, or a variant of it, whose name is then `name@variant`.

    Raises:
        ConfigError: it cannot be read, has an unknown field or a wrong value, or has no such variant.
    """
    tree = yaml_file.read(path, ConfigError)
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: found {type(tree).__name__}; a task is a mapping with the fields name, type, data..."
        )
    task = _validated(tree, str(path))
    for name in task.variants:
        _validated(_merged(tree, task.variants[name]), f"{path}: variant {name}")
    if not variant:
        return task
    if variant not in task.variants:
        near = _nearest(variant, task.variants) or "; it has none"
        raise ConfigError(f"{path}: {task.name} has no variant {variant}{near}")
    changed = _merged(tree, task.variants[variant]) | {"name": f"{task.name}@{variant}", "variants": {}}
    return _validated(changed, f"{path}: variant {variant}")


def task_to_dict(task: Task) -> dict[str, Any]:
    """Every field, resolved, as plain values."""
    return dataclasses.asdict(task)


@functools.cache
def _validator() -> TypeAdapter[Task]:
    return TypeAdapter(Task)


def _validated(tree: dict[str, Any], where: str) -> Task:
    try:
        return _validator().validate_python(tree)
    except ValidationError as error:
        reasons = dict.fromkeys(_explain(item) for item in error.errors())
        raise ConfigError(f"{where}: {'; '.join(reasons)}") from None


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value)
        else:
            merged[key] = value
    return merged


def _explain(item: ErrorDetails) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown field{_nearest(location[-1], _fields_at(item['loc'][:-1]))}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: is required and was not given"
    if item["type"] == "value_error":
        error = item["ctx"]["error"]
        return f"{key + '.' if key else ''}{error}"
    return f"{key}={item['input']!r:.80}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that the file may have there."""
    kind: Any = Task
    for part in location:
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if isinstance(part, str) and part in hints:
            kind = hints[part]
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        if isinstance(kind, UnionType):
            kind = next(one for one in typing.get_args(kind) if one is not type(None))
    return [one.name for one in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}" if known else ""
