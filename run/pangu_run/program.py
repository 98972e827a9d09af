"""What a launcher asks the program that it is to start: how many ranks it needs, where they go, what its words
become."""

import json
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pangu_ms.core.console import USER_ERROR
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import python_command, python_environment
from pangu_run import orphans

MODULE = "pangu_ms.cli.train_describe"
CPU = "CPU"


@dataclass(frozen=True)
class Program:
    """The answer."""

    world: int
    device: str
    """CPU or Ascend."""
    placement: Sequence[tuple[int, int]]
    """(server, device), counted from 0, that each rank should have."""
    devices_per_server: int
    chip: str = ""
    """ascend910, ascend910b, or nothing where the configuration does not say."""
    unchecked: Sequence[str] = ()
    """Paths that were not looked at."""
    words: Sequence[str] = ()
    """After the verb."""
    output: str = ""
    config: str = ""
    """YAML text of the resolved configuration."""
    total_steps: int = 0
    tokens_per_step: int = 0


class Refused(SystemExit):
    """The program has told the user's mistake in a line of its own."""


def describe(words: Sequence[str], *options: str) -> Program:
    """Ask it about `train WORDS`; it checks them, and tells of long work on stderr.

    Args:
        options: --num-ranks N, --device D, --smoke, --follower (write nothing), --skip-paths (look at no path).

    Raises:
        Refused: the words have a mistake, which stands on stderr.
        LaunchError: the program is not installed here, or broke.
    """
    marker = uuid.uuid4().hex
    with orphans.guarded(marker):  # it may prepare records, with processes of its own
        environment = python_environment() | {orphans.JOB: marker}
        done = subprocess.run(_command(words, *options), env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode == USER_ERROR:
        raise Refused(USER_ERROR)
    return _answer(done)


def placement(words: Sequence[str], *options: str) -> Program:
    """Ask it where the ranks of a configuration go, and nothing else: quick; `words` are --config NAME and overrides at
    least.

    Raises:
        LaunchError: the words have a mistake, or the program is not installed here, or broke.
    """
    done = subprocess.run(
        _command(words, *options, "--placement"), env=python_environment(), capture_output=True, text=True
    )
    if done.returncode == USER_ERROR:
        raise LaunchError(done.stderr.strip().rpartition("\n")[2].removeprefix("pangu train: "))
    return _answer(done)


def _command(words: Sequence[str], *options: str) -> list[str]:
    return python_command(MODULE, *options, "--", *words)


def _answer(done: subprocess.CompletedProcess) -> Program:
    if done.returncode:
        last = (done.stderr or "").strip().rpartition("\n")[2]
        raise LaunchError(
            f"{sys.executable} -m {MODULE}: failed with exit code {done.returncode}: {last}; the package pangu_ms must"
            " be installed on this host"
        )
    try:
        answer: dict[str, Any] = json.loads(
            done.stdout.strip().rpartition("\n")[2]
        )  # a library may have said something before
    except ValueError:
        advice = "see that this host has the same version of the package pangu_ms as the others"
        raise LaunchError(
            f"{sys.executable} -m {MODULE}: no description but {done.stdout.strip()[:80]!r}; {advice}"
        ) from None
    return Program(**{key: answer[key] for key in Program.__dataclass_fields__ if key in answer})
