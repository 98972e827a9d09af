"""The options that the actions of `pangu tasks` share."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_ms.core.errors import ConfigError

if TYPE_CHECKING:
    from pangu_ms.eval.tasks.run import Section, Settings
    from pangu_ms.eval.tasks.task import Task

MOST_SHOTS = 1000


def add_task_files(parser: ArgumentParser) -> None:
    """Add `--task-file FILE`."""
    text = "a task of your own, as docs/evaluation.md describes; may be given several times"
    parser.add_argument("--task-file", type=Path, action="append", default=[], metavar="FILE", help=text)


def add_prompts(parser: ArgumentParser, shots: str = "0") -> None:
    """Add where the data files are, and how prompts are made of them."""
    add_task_files(parser)
    text = "directory with the data files of the tasks; `pangu tasks list` says what they must be called"
    parser.add_argument("--task-data", type=Path, metavar="DIR", help=text)
    text = "numbers of demonstrations before each item; few: as many as the task's paper has"
    parser.add_argument("--shots", default=shots, metavar="N,...", help=text)
    text = "seeds of the demonstrations and of sampled answers; with several, their spread is shown"
    parser.add_argument("--seeds", default="0", metavar="N,...", help=text)
    text = "ask only the first N items of each task; 0: all"
    parser.add_argument("--limit", type=int, default=0, metavar="N", help=text)


def settings(args: Namespace) -> "Settings":
    """What `add_prompts` asked for.

    Raises:
        ConfigError: a number cannot be one.
    """
    from pangu_ms.eval.tasks.prompts import FEW
    from pangu_ms.eval.tasks.run import Settings

    words = _words(args.shots)
    if not all(word == FEW or word.isdecimal() and int(word) <= MOST_SHOTS for word in words):
        raise ConfigError(f"--shots {args.shots}: must be numbers up to {MOST_SHOTS:,} or {FEW}, such as 0,1,{FEW}")
    shots = tuple(dict.fromkeys(word if word == FEW else int(word) for word in words))
    if not all(word.isdecimal() for word in _words(args.seeds)):
        raise ConfigError(f"--seeds {args.seeds}: must be whole numbers separated by commas, such as 0,1,2")
    if args.limit < 0:
        raise ConfigError(f"--limit {args.limit}: must not be negative; 0 asks all items")
    return Settings(shots, tuple(dict.fromkeys(map(int, _words(args.seeds)))), args.limit)


def tasks(args: Namespace, names: str) -> "list[Task]":
    """The tasks of a list such as "c3,tnews"."""
    from pangu_ms.eval.tasks.catalog import find_tasks

    return find_tasks(_words(names), args.task_file)


def sections(args: Namespace, names: str, tolerant: bool = False) -> "tuple[list[Section], list[str]]":
    """What to ask, and notes for people; see `eval.tasks.run.prepare`."""
    from pangu_ms.eval.tasks.run import prepare

    return prepare(tasks(args, names), settings(args), args.task_data, tolerant)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]
