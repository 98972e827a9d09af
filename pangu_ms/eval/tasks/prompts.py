"""Makes of the rows of a data file what a model reads: texts of candidates, and demonstrations before them. It needs
neither a model nor a tokenizer."""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.eval.tasks.prediction import Gold
from pangu_ms.eval.tasks.task import ANSWER, CHOICE, DYNAMIC, Field, Task, text_of
from pangu_ms.eval.tasks.template import Template

Row = Mapping[str, Any]
Shots = int | str
"""A number of demonstrations, or FEW."""
FEW = "few"
MOST_DYNAMIC = 32
"""Demonstrations that `dynamic` has at most."""


@dataclass(frozen=True)
class Candidate:
    """A text that a model reads, of which the continuation is scored."""

    context: str
    continuation: str
    label: str = ""


@dataclass(frozen=True)
class Prompt:
    """An item as a model reads it.

    Attributes:
        index: number of the item in its file, from 0.
        id: what submissions call it.
        place: how messages call it.
        demonstrations: texts before each candidate.
        candidates: choice: one of each label; assignment: of each blank one of each choice, blank after blank;
            perplexity and generation: one, which has no continuation if it is to be generated.
        gold: what is right; None for an unlabelled item.
        blanks: assignment: how many there are.
    """

    index: int
    id: Any
    place: str
    demonstrations: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    gold: Gold | None
    blanks: int = 0

    def texts(self) -> list[Any]:
        """All that a model reads of it, to compare prompts by."""
        return [list(self.demonstrations), [[one.context, one.continuation] for one in self.candidates]]


@dataclass(frozen=True)
class _Item:
    """A row with the fields that are made of it."""

    task: Task
    row: Row
    index: int
    place: str

    def fields(self) -> dict[str, Any]:
        """The fields for templates."""
        found = dict(self.row)
        for name, field in self.task.fields.items():
            value = _at(self.row, field.source)
            if value is not None:
                found[name] = _made(value, field)
        return found

    def prompt(self, demonstrations: tuple[str, ...] = ()) -> Prompt:
        fields = self.fields()
        own_id = fields.get(self.task.id)
        gold, candidates, blanks = self._content(fields)
        return Prompt(
            self.index,
            self.index if own_id is None else own_id,
            self.place,
            demonstrations,
            tuple(candidates),
            gold,
            blanks,
        )

    def demonstration(self) -> str | None:
        """It with its right answer; None for an unlabelled item."""
        task, fields = self.task, self.fields()
        gold, candidates, _ = self._content(fields)
        if gold is None:
            return None
        right = candidates[0]
        if task.type == "choice":
            right = next(one for one in candidates if one.label == gold.label)
            fields[CHOICE] = self._choices(fields)[gold.label]
        elif task.type == "assignment":
            right = candidates[gold.assignment[0]]
        elif task.type == "generation":
            fields[ANSWER] = gold.answers[0]
        if task.shots.template:
            return Template(task.shots.template).filled(fields)
        return right.context + (gold.answers[0] if task.type == "generation" else right.continuation)

    def _content(self, fields: dict[str, Any]) -> tuple[Gold | None, list[Candidate], int]:
        """(what is right, candidates, number of blanks)."""
        task = self.task
        if task.type == "generation":
            return self._answers(fields), [Candidate(Template(task.context).filled(fields), "")], 0
        if task.type == "perplexity":
            return Gold(), [self._candidate(fields)], 0
        choices = self._choices(fields)
        if task.type == "assignment":
            blanks = self._list(fields, task.blanks)
            candidates = []
            for blank in blanks:
                if not isinstance(blank, dict):
                    raise DataError(f"{task.blanks} holds {blank!r:.40}; its values must be objects")
                for label, text in choices.items():
                    candidates.append(self._candidate(fields | blank | {CHOICE: text}, label))
            if not 0 < len(blanks) <= len(choices):
                raise DataError(
                    f"{len(blanks)} blanks and {len(choices)} candidates; there must be a blank, and a candidate for"
                    " each"
                )
            return self._assignment(fields, len(blanks), len(choices)), candidates, len(blanks)
        gold = self._label(fields, choices)
        labels = list(choices) if gold is None else self._drawn(list(choices), gold)
        found = [self._candidate(fields | {CHOICE: choices[label]}, label) for label in labels]
        return None if gold is None else Gold(labels.index(gold), gold), found, 0

    def _candidate(self, fields: Mapping[str, Any], label: str = "") -> Candidate:
        context, continuation = (Template(text).filled(fields) for text in (self.task.context, self.task.continuation))
        if not continuation:
            raise DataError("the continuation is empty; a score needs a text; mend the file, or the template")
        return Candidate(context, continuation, label)

    def _choices(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Label -> text. The labels of a field's choices are their numbers."""
        choices = self.task.choices
        assert choices
        if choices.labels:
            return {label: Template(text).filled(fields) for label, text in choices.labels.items()}
        texts = self._list(fields, choices.field)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{choices.field} is {texts!r:.40}; it must be a list of at least one text")
        return {str(i): text for i, text in enumerate(texts)}

    def _list(self, fields: Mapping[str, Any], name: str) -> list[Any]:
        value = fields.get(name)
        if not isinstance(value, list):
            raise DataError(f"{name} is {value!r:.40}; it must be a list")
        return value

    def _label(self, fields: Mapping[str, Any], choices: Mapping[str, str]) -> str | None:
        value = fields.get(self.task.gold)
        if value is None:
            return None
        label = text_of(value)
        if (
            self.task.choices and self.task.choices.field
        ):  # a text such as "2" may be a candidate and look like an index
            label = next((one for one, text in choices.items() if text == value), label)
        if label not in choices:
            known = ", ".join(list(choices)[:20])
            raise DataError(f"{self.task.gold} is {value!r:.40}; it must be one of {known}")
        return label

    def _drawn(self, labels: list[str], gold: str) -> list[str]:
        """The right label and some wrong ones, in the order that they have."""
        choices = self.task.choices
        assert choices
        wrong = [label for label in labels if label != gold]
        if not choices.random or choices.random >= len(wrong):
            return labels
        lot = itertools.islice(_by_lot(len(wrong), "choices", choices.seed, self.index), choices.random)
        kept = {gold, *(wrong[i] for i in lot)}
        return [label for label in labels if label in kept]

    def _answers(self, fields: Mapping[str, Any]) -> Gold | None:
        value = fields.get(self.task.gold)
        answers = [value] if isinstance(value, str) else value
        if answers is None or answers == []:
            return None
        if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
            raise DataError(f"{self.task.gold} is {value!r:.40}; it must be a text or a list of texts")
        return Gold(answers=tuple(answers))

    def _assignment(self, fields: Mapping[str, Any], blanks: int, choices: int) -> Gold | None:
        value = fields.get(self.task.gold)
        if value is None:
            return None
        valid = isinstance(value, list) and all(type(one) is int and 0 <= one < choices for one in value)
        if not valid or len(value) != blanks:
            raise DataError(
                f"{self.task.gold} is {value!r:.40}; it must be a list of {blanks} numbers from 0 to {choices - 1}, one"
                " for each blank"
            )
        return Gold(assignment=tuple(value))


def number_of_shots(task: Task, shots: Shots) -> int:
    """How many demonstrations a prompt has at most.

    Raises:
        ConfigError: the task has none.
    """
    if shots == 0:
        return 0
    if not task.shots.few:
        raise ConfigError(f"{task.name}: has no demonstrations; ask for --shots 0")
    if shots != FEW:
        return int(shots)
    return MOST_DYNAMIC if task.shots.few == DYNAMIC else int(task.shots.few)


def make_prompts(
    task: Task,
    rows: Sequence[Row],
    shots: Shots = 0,
    seed: int = 0,
    shown: Sequence[Row] = (),
    indices: Iterable[int] | None = None,
) -> list[Prompt]:
    """The prompts of a task's items.

    Args:
        task: what to ask.
        rows: all items of the evaluated split.
        shots: demonstrations before each; a prompt has fewer if there are not enough.
        seed: of drawing them; added to that of the task.
        shown: rows of `task.shots.split`, from which they are drawn.
        indices: which items to make prompts of; None: all.

    Raises:
        ConfigError: the task has no demonstrations.
        DataError: an item lacks a field, has a wrong value or makes no text; the message names it.
    """
    demonstrations = _Demonstrations(task, number_of_shots(task, shots), task.shots.seed + seed, shown)
    prompts = []
    for index in range(len(rows)) if indices is None else indices:
        item = _Item(task, rows[index], index, f"{task.name}: item {index + 1}")
        shown_before = demonstrations.before(index)
        try:
            prompts.append(item.prompt(shown_before))
        except DataError as error:
            raise DataError(f"{item.place}: {error}") from None
    return prompts


class _Demonstrations:
    """Draws the demonstrations of each prompt."""

    def __init__(self, task: Task, number: int, seed: int, rows: Sequence[Row]):
        self.task, self.number, self.seed, self.rows = task, number, seed, rows
        self._texts: dict[int, str | None] = {}
        self._same: list[tuple[int, str]] | None = None
        """Those of all items, and one more, if an item may be among them."""
        if number and task.shots.draw == "once":
            self._same = list(itertools.islice(self._suitable(), number + 1))

    def before(self, index: int) -> tuple[str, ...]:
        """Those of one item."""
        shots, texts = self.task.shots, list[str]()
        if not self.number:
            return ()
        if shots.fixed:
            return tuple(text + shots.separator for text in shots.fixed[: self.number])
        length, own = 0, index if shots.split == self.task.data.evaluate else -1
        for i, text in self._suitable(index) if self._same is None else self._same:
            length += len(text) + len(shots.separator)
            if len(texts) == self.number or shots.total_chars and length > shots.total_chars:
                break
            if i != own:
                texts.append(text + shots.separator)
        return tuple(texts)

    def _suitable(self, *of_item: int) -> Iterator[tuple[int, str]]:
        """(row, text) of those that may be shown, in the order in which they are drawn."""
        for i in self._drawn(*of_item):
            text = self._text(i)
            if text is not None and not (self.task.shots.max_chars and len(text) > self.task.shots.max_chars):
                yield i, text

    def _drawn(self, *of_item: int) -> Iterator[int]:
        return _by_lot(len(self.rows), "shots", self.seed, *of_item)

    def _text(self, index: int) -> str | None:
        if index not in self._texts:
            item = _Item(self.task, self.rows[index], index, "")
            try:
                self._texts[index] = item.demonstration()
            except DataError as error:
                place = f"{self.task.name}: demonstration from item {index + 1} of {self.task.shots.split}"
                raise DataError(f"{place}: {error}") from None
        return self._texts[index]


def _by_lot(number: int, *seed: object) -> Iterator[int]:
    """The numbers below `number` in an order that depends on the seed alone. The first k are a draw of k; no more is
    computed than is asked for."""
    # Python promises the values of random() for a seed, in all versions; it does not promise those of sample().
    draws, moved = random.Random("/".join(map(str, seed))), dict[int, int]()
    for place in range(number):
        other = place + int(draws.random() * (number - place))
        yield moved.get(other, other)
        moved[other] = moved.get(place, place)


def _at(row: Row, path: str) -> Any:
    """The value at a.b; None if there is none."""
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _made(value: Any, field: Field) -> Any:
    """A field's value."""
    if field.map:
        if text_of(value) not in field.map:
            raise DataError(f"{field.source} is {value!r:.40}; it must be one of {', '.join(list(field.map)[:20])}")
        value = field.map[text_of(value)]
    if field.join is not None and isinstance(value, list):
        value = field.join.join(map(text_of, value))
    if isinstance(value, str):
        value = "".join(one for one in value if one not in field.delete) if field.delete else value
        value = value[: field.first_chars] if field.first_chars else value
        value = value[-field.last_chars :] if field.last_chars else value
    return value
