"""Gives tasks to a model. Everything that can be checked is checked before the model is loaded, and each answer is on
the disk before the next one: the same command goes on where it was interrupted.

DIRECTORY/run.json                which model and which tasks
DIRECTORY/records/SECTION.jsonl   a line for each item (.part while some are missing)
DIRECTORY/submissions/            predictions for items without gold, in the form in which benchmarks take them
DIRECTORY/results.json            the scores
"""

import fcntl
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.core import files, format_version
from pangu_ms.core.errors import ConfigError, DataError, GenerationError, OutputError
from pangu_ms.core.progress import progress_bar
from pangu_ms.eval.tasks.catalog import Rows, read_rows, require_metrics
from pangu_ms.eval.tasks.encoding import Encoder, require_spelling
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.model import EvaluatedModel
from pangu_ms.eval.tasks.prompts import FEW, Prompt, Row, Shots, make_prompts, number_of_shots
from pangu_ms.eval.tasks.results import FORMAT, RUN, read_run, record_path, summarize, write_submission
from pangu_ms.eval.tasks.scorers import Asked, ask
from pangu_ms.eval.tasks.task import DYNAMIC, Task, task_to_dict
from pangu_ms.infer.answers import ResultFile

log = logging.getLogger(__name__)
_LOCK = ".lock"
_FOR_PEOPLE = ("title", "source", "notes", "published")


@dataclass(frozen=True)
class Settings:
    """How tasks are asked.

    Attributes:
        shots: numbers of demonstrations, each of which is a section of its own.
        seeds: of demonstrations and sampled answers; what depends on neither is asked once.
        limit: only so many first items; 0: all.
    """

    shots: tuple[Shots, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    limit: int = 0


@dataclass(frozen=True)
class Section:
    """A task with a number of demonstrations and a seed: what one file of records is of."""

    task: Task
    shots: Shots
    seed: int | None
    """None if nothing depends on it."""
    prompts: list[Prompt]
    available: int
    """Items of the data file, of which a limit may have left some out."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.task.name}_{self.shots}-shot" + ("" if self.seed is None else f"_seed{self.seed}")

    def describe(self) -> dict[str, Any]:
        """What run.json says of it: all that its scores depend on besides the model."""
        return {
            "task": task_to_dict(self.task) | {"variants": {}},
            "shots": self.shots,
            "seed": self.seed,
            "items": len(self.prompts),
            "available": self.available,
            "prompts": files.sha256_json([prompt.texts() for prompt in self.prompts]),
            "gold": files.sha256_json([prompt.gold.to_json() if prompt.gold else None for prompt in self.prompts]),
        }


def prepare(
    tasks: Sequence[Task], settings: Settings, directory: Path | None, tolerant: bool = False
) -> tuple[list[Section], list[str]]:
    """The sections of some tasks, and notes for people. Neither a model nor a tokenizer is needed.

    Args:
        tasks: what to ask.
        settings: how.
        directory: where their data files are.
        tolerant: leave out tasks whose file is missing or wrong, with a note; and where only that of demonstrations
            is, what needs them.

    Raises:
        ConfigError: a task names an unknown reader or split, or a metric that is not for its type, or no task has such
            demonstrations.
        DataError: a file is missing or wrong, or an item makes no prompt.
    """
    sections, notes = [], list[str]()
    for task in tasks:
        require_metrics(task)
        shots = [one for one in settings.shots if one == 0 or task.shots.few] or [0]
        if shots != list(settings.shots):
            notes.append(f"{task.name}: has no demonstrations; it is asked without")
        try:
            rows = read_rows(task, directory)
        except DataError as error:
            if not tolerant:
                raise
            notes.append(f"left out: {error}")
            continue
        shown = Rows([])
        if _draws(task, shots):
            try:
                shown = read_rows(task, directory, task.shots.split)
            except DataError as error:
                if not tolerant:
                    raise
                notes.append(f"{task.name}: left out with demonstrations: {error}")
                shots = [one for one in shots if one == 0]
        notes += [*rows.notes, *shown.notes]
        for section in _sections(task, shots, settings, rows.rows, shown.rows):
            sections.append(section)
            notes += _few_demonstrations(section)
    if not sections:
        raise ConfigError("--tasks: nothing is left to ask")
    return sections, list(dict.fromkeys(notes))


def _sections(
    task: Task, shots: Sequence[Shots], settings: Settings, rows: Sequence[Row], shown: Sequence[Row]
) -> Iterator[Section]:
    """Those of one task."""
    indices = range(min(settings.limit, len(rows)) if settings.limit else len(rows))
    for number in shots:
        for seed in _seeds(task, number, settings.seeds):
            prompts = make_prompts(task, rows, number, seed or 0, shown, indices)
            yield Section(task, number, seed, prompts, len(rows))


def _draws(task: Task, shots: Sequence[Shots]) -> bool:
    """Whether demonstrations are drawn from the split for them."""
    return any(shots) and not task.shots.fixed


def _seeds(task: Task, shots: Shots, seeds: Sequence[int]) -> Sequence[int | None]:
    sampled = task.type == "generation" and task.decoding.temperature > 0 and task.decoding.top_k != 1
    return seeds if sampled or _draws(task, [shots]) else (None,)


def _few_demonstrations(section: Section) -> list[str]:
    wanted = number_of_shots(section.task, section.shots)
    if section.shots == FEW and section.task.shots.few == DYNAMIC:
        wanted = min(wanted, 1)
    least = min((len(prompt.demonstrations) for prompt in section.prompts), default=wanted)
    if least >= wanted:
        return []
    return [
        f"{section.name}: {least} demonstrations instead of {wanted}: no more in the data are as the task wants them"
    ]


class Run:
    """A directory of records, which one process at a time writes; a context manager.

    Attributes:
        asked: items that this process has asked.
    """

    def __init__(self, directory: Path, model: EvaluatedModel, sections: Sequence[Section], step: int | None = None):
        """Begin it, or go on with it.

        Args:
            directory: made if needed; it must be empty, or hold such a run of the same model.
            model: whose answers they are.
            sections: what is asked; other sections may be there already.
            step: of the model's checkpoint, for pictures.

        Raises:
            OutputError: the directory holds something else, or cannot be written.
            GenerationError: it has answers of another model, to other items, or of other settings; or another process
                writes it.
        """
        self.directory, self.model, self.sections = Path(directory), model, list(sections)
        self.asked = 0
        described = {
            format_version.KEY: FORMAT,
            "model": {"name": model.name, "digest": model.digest, "window": model.window, "step": step},
            "sections": {section.name: section.describe() for section in sections},
        }
        self.described: dict[str, Any] = json.loads(json.dumps(described))  # as it will be read again

    def __enter__(self) -> "Run":
        self._require_no_other_content()
        with files.writing(self.directory / RUN):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.directory / _LOCK, "ab")
        try:
            self._hold()
            self._join()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def _require_no_other_content(self) -> None:
        if not self.directory.is_dir():
            files.require_free(self.directory)
        elif not (self.directory / RUN).exists():
            others = [one.name for one in self.directory.iterdir() if not one.name.startswith(".")]
            if others and not (self.directory / RUN).exists():  # which another process may have begun meanwhile
                raise OutputError(
                    f"{self.directory}: exists with other content ({others[0]}); nothing is overwritten; name a new"
                    " --output or remove it"
                )

    def _hold(self) -> None:
        """Lock the directory; the kernel unlocks it when the process dies."""
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise GenerationError(
                f"{self.directory}: another process writes it; wait for it or end it, or name another --output"
            ) from None
        except OSError as error:
            log.warning("%s: this file system has no locks (%s)", self.directory, error.strerror)

    def _join(self) -> None:
        """Add the sections to those that are there."""
        path = self.directory / RUN
        if not path.exists():
            files.write_json(path, self.described)
            return
        found = read_run(self.directory)
        if found["model"]["digest"] != self.model.digest:
            raise GenerationError(
                f"{path}: has answers of another model ({found['model']['name']}); name a new --output"
            )
        known = dict(found["sections"])
        for name, own in self.described["sections"].items():
            other = known.setdefault(name, own)
            if wrong := [key for key, value in _asked(own).items() if value != _asked(other).get(key)]:
                raise GenerationError(
                    f"{path}: {name} is there with other {', '.join(wrong)}; give the same data, task file and options"
                    " to go on, or name a new --output"
                )
            _require_same_items(path, name, own, known)
        if len(known) > len(found["sections"]):
            files.write_json(path, found | {"sections": known})

    def ask(self, progress: bool = True) -> None:
        """Ask what is missing, one section after the other: first those that are scored, since the graph that scores
        is not the one that generates.

        Raises:
            DataError: the tokenizer cannot spell a template, or makes no token of an item; nothing was asked then.
            GenerationError: an answer failed; the others are there.
        """
        for section in self.sections:
            require_spelling(section.task, self.model.tokenizer)
        for section in sorted(self.sections, key=lambda one: one.task.type == "generation"):
            self._ask(section, progress)

    def _ask(self, section: Section, progress: bool) -> None:
        path = record_path(self.directory, section.name)
        if not path.exists():
            self._ask_missing(path, section, progress)
        if any(prompt.gold is None for prompt in section.prompts):
            write_submission(self.directory, section.name, section.task)

    def _ask_missing(self, path: Path, section: Section, progress: bool) -> None:
        described = _asked(self.described["sections"][section.name])
        header = {"model": self.model.digest, "section": files.sha256_json(described)}
        keys = [(prompt.index,) for prompt in section.prompts]
        with ResultFile(path, keys, header, ("index",), ("answers", "items")) as results:
            missing = [prompt for prompt in section.prompts if (prompt.index,) in results.missing]
            encoder = Encoder(section.task, self.model.tokenizer, self.model.window, section.seed or 0)
            begun, error = len(keys) - len(missing), ""
            bar = progress_bar(progress, total=len(keys), initial=begun, desc=section.name, unit="item", leave=False)
            with bar:
                for asked in ask(self.model, encoder, missing, bar.update):
                    if asked.error:
                        error = error or f"{asked.prompt.place}: {asked.error}"
                        continue
                    results.add_line(record(section.task, asked))
                    self.asked += 1
        if error:
            raise GenerationError(error)

    def results(self) -> dict[str, Any]:
        """The scores of all sections that are complete; results.json has them too."""
        found = summarize(self.directory)
        files.write_json(self.directory / "results.json", found)
        return found


def _require_same_items(path: Path, name: str, section: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise GenerationError unless the seeds of a task have the same items: their scores are averaged item by item."""
    for other, described in known.items():
        same = described["task"]["name"] == section["task"]["name"] and described["shots"] == section["shots"]
        if same and any(described[key] != section[key] for key in ("items", "gold")):
            raise GenerationError(
                f"{path}: {other} has other items than {name}, and all seeds of a task must have the same ones; give"
                " the same data and --limit, or name a new --output"
            )


def _asked(described: dict[str, Any]) -> dict[str, Any]:
    """What the answers of a section depend on: its description without what people read."""
    task = {key: value for key, value in described["task"].items() if key not in _FOR_PEOPLE}
    return described | {"task": task}


def record(task: Task, asked: Asked) -> dict[str, Any]:
    """The line of an item."""
    prompt, encoded, prediction = asked.prompt, asked.encoded, asked.prediction
    assert prediction
    predicted: Any = {
        "choice": prediction.label,
        "assignment": list(prediction.assignment),
        "generation": prediction.text,
        "perplexity": prediction.nats,
    }[task.type]
    line: dict[str, Any] = {"index": prompt.index, "id": prompt.id, "prediction": predicted}
    if prompt.gold is not None:
        if task.type != "perplexity":
            line["gold"] = prompt.gold.to_json()
        line["values"] = {name: list(METRICS[name].item(prediction, prompt.gold)) for name in task.metrics}
    if task.type == "choice":
        line["labels"] = [one.label for one in prompt.candidates]
    line |= asked.said
    line["shots"] = encoded.shots
    for name in ("dropped_shots", "cut_tokens", "joined"):
        if value := getattr(encoded, name):
            line[name] = value
    return line
