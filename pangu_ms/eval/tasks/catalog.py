"""Finds tasks by name, and the rows of their data files."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.task import Data, Task, read_task

_WITHOUT_FILE = ("needle",)
"""Readers that make items if there is no file."""
DEFINITIONS = Path(__file__).with_name("definitions")


def task_files(own: Iterable[Path] = ()) -> dict[str, Path]:
    """Task files by the names of their tasks: those that are shipped, and the user's own, which come first.

    Raises:
        ConfigError: a file of the user cannot be read, or two of them have the same name.
    """
    found = {path.stem: path for path in sorted(DEFINITIONS.glob("*.yaml"))}
    mine: dict[str, Path] = {}
    for path in own:
        name = read_task(path).name
        if name in mine:
            raise ConfigError(f"{path}: is named {name}, as {mine[name]} is; rename one of the two")
        mine[name] = path
    return found | mine


def find_tasks(names: Sequence[str], own: Iterable[Path] = ()) -> list[Task]:
    """Tasks by their names, such as `c3` or `cmnli@figure10`; `all` stands for all that are shipped.

    Raises:
        ConfigError: there is no such task, or it cannot be read.
    """
    own = list(own)
    known = task_files(own)
    shipped = [name for name in known if known[name].parent == DEFINITIONS]
    tasks: dict[str, Task] = {}
    for wanted in names:
        for name in shipped if wanted == "all" else [wanted]:
            stem, _, variant = name.partition("@")
            if stem not in known:
                near = difflib.get_close_matches(stem, known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)};"
                raise ConfigError(
                    f"{name}: no such task; {hint} for a task of your own give its file (--task-file; train.eval_tasks"
                    " takes it in place of a name)"
                )
            tasks[name] = read_task(known[stem], variant)
    return list(tasks.values())


def require_metrics(task: Task) -> None:
    """Raise ConfigError if a metric of a task does not exist, or reads predictions of another type of tasks: where both
    the prediction and what is right are missing, they would count as equal."""
    of_type = [name for name, metric in METRICS.items() if metric.task_type == task.type]
    for name in (*task.metrics, *task.published):
        if name not in METRICS:
            raise ConfigError(f"{task.name}: metric {name}: unknown; known: {', '.join(METRICS)}; mend the task file")
        if name not in of_type:
            raise ConfigError(
                f"{task.name}: metric {name}: is for type {METRICS[name].task_type}, the task is of type {task.type};"
                f" known for it: {', '.join(of_type)}; mend the task file"
            )


@dataclass(frozen=True)
class Rows:
    """The rows of a split.

    Attributes:
        rows: one dict each.
        notes: what people should know about them: another number than was published.
    """

    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def read_rows(task: Task, directory: Path | None, split: str = "") -> Rows:
    """The rows of a task's split; by default of that which is evaluated.

    Args:
        task: whose.
        directory: where the files of all tasks are; None if there are none.
        split: name of the split.

    Raises:
        ConfigError: the task has no such split or reader.
        DataError: the file is missing, cannot be read or holds nothing.
    """
    from pangu_ms.eval.tasks.datasets import READERS

    data, split = task.data, split or task.data.evaluate
    if split not in data.splits:
        raise ConfigError(f"{task.name}: has no split {split}; it has {', '.join(data.splits)}; mend the task file")
    if data.reader not in READERS:
        near = difflib.get_close_matches(data.reader, READERS, 1, 0.5) or sorted(READERS)
        raise ConfigError(f"{task.name}: data.reader={data.reader}: no such reader; did you mean {near[0]}?")
    path = _file_of(task, directory, split)
    if path is None and data.reader not in _WITHOUT_FILE:
        raise ConfigError(f"{task.name}: data.splits.{split}.files: reader {data.reader} reads a file; name one there")
    try:
        rows = READERS[data.reader](path, **data.options)
    except TypeError as error:
        if not data.options:
            raise
        raise ConfigError(f"{task.name}: data.options: {error}; mend the task file") from None
    where = f"{task.name}: {path}" if path else task.name
    if not rows:
        raise DataError(f"{where}: holds no item; get the file anew{_published(data)}")
    expected, notes = data.splits[split].items, []
    if expected and len(rows) != expected:
        notes.append(
            f"{where}: has {len(rows):,} items, the published {split} set has {expected:,}; scores of another set"
            " do not compare with published ones"
        )
    return Rows(rows, notes)


def _file_of(task: Task, directory: Path | None, split: str) -> Path | None:
    """The file of a split; None if its reader makes do without."""
    wanted = task.data.splits[split]
    if not wanted.files:
        return None
    for name in wanted.files if directory else ():
        assert directory
        if (path := directory / name).is_file():
            return path
    if wanted.optional:
        return None
    if directory is None:
        raise DataError(f"{task.name}: needs {wanted.files[0]}; name the directory with --task-data")
    if not directory.is_dir():
        raise DataError(f"--task-data {directory}: no such directory; name the one that holds {wanted.files[0]}")
    others = f" (or {', '.join(wanted.files[1:])})" if wanted.files[1:] else ""
    raise DataError(
        f"{directory / wanted.files[0]}: missing; {task.name} reads its {split} set there{others};"
        f" get it{_published(task.data) or ' from its makers'}, and give it this name"
    )


def _published(data: Data) -> str:
    return f" from {data.published}" if data.published else ""
