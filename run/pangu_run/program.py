"""Questions that a launcher asks the program that it is about to start: how many ranks it needs, on which devices, and
with which arguments.

The program answers in a subprocess, so that the launch layer imports nothing of it.
"""

import json
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from pangu_ms.core.console import USER_ERROR
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import python_command, python_environment
from pangu_run import orphans

MODULE = "pangu_ms.cli.train_describe"
CPU = "CPU"


@dataclass(frozen=True)
class Program:
    """The ranks, devices and arguments that a program needs."""

    world: int
    device: str
    """CPU or Ascend."""
    placement: Sequence[tuple[int, int]]
    """For each rank its (server, device), both counted from 0."""
    devices_per_server: int
    chip: str = ""
    """ascend910 or ascend910b; empty if the configuration does not say."""
    unchecked: Sequence[str] = ()
    """Paths that were not checked."""
    argv: Sequence[str] = ()
    """Arguments of the program, after the verb."""
    output: str = ""
    config: str = ""
    """YAML text of the resolved configuration."""
    total_steps: int = 0
    tokens_per_step: int = 0


class Refused(SystemExit):
    """The program has found a user's mistake and reported it on stderr itself."""


def describe(argv: Sequence[str], *options: str) -> Program:
    """Ask about `train ARGV`. The program checks everything that a run needs, and may prepare records; it shows its
    progress on stderr.

    Args:
        argv: arguments of `train`.
        options: --num-ranks N, --device D, --smoke, --follower (write nothing), --skip-paths (check no path).

    Raises:
        Refused: the arguments have a mistake, which the program has reported on stderr.
        LaunchError: the program is not installed on this host, or failed.
    """
    marker = uuid.uuid4().hex
    with orphans.guarded(marker):  # preparing records starts processes
        environment = python_environment() | {orphans.JOB: marker}
        done = subprocess.run(_command(argv, *options), env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode == USER_ERROR:
        raise Refused(USER_ERROR)
    return _answer(done)


def placement(argv: Sequence[str], *options: str) -> Program:
    """Ask only for the placement of the ranks of a configuration, which is quick.

    Args:
        argv: arguments of `train`: --config NAME and overrides at least.
        options: as in `describe`.

    Raises:
        LaunchError: the arguments have a mistake, or the program is not installed on this host, or failed.
    """
    command = _command(argv, *options, "--placement")
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True)
    if done.returncode == USER_ERROR:
        raise LaunchError(done.stderr.strip().rpartition("\n")[2].removeprefix("pangu train: "))
    return _answer(done)


def _command(argv: Sequence[str], *options: str) -> list[str]:
    return python_command(MODULE, *options, "--", *argv)


def _answer(done: subprocess.CompletedProcess[str]) -> Program:
    if done.returncode:
        last = (done.stderr or "").strip().rpartition("\n")[2]
        raise LaunchError(
            f"{sys.executable} -m {MODULE}: failed with exit code {done.returncode}: {last}; the package pangu_ms must"
            " be installed on this host"
        )
    try:
        # The last line: a library may have printed something before.
        answer: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        advice = "see that this host has the same version of the package pangu_ms as the others"
        raise LaunchError(
            f"{sys.executable} -m {MODULE}: no description but {done.stdout.strip()[:80]!r}; {advice}"
        ) from None
    answer["argv"] = answer.pop("words", ())  # the name of this field in the program's answer
    return Program(**{field.name: answer[field.name] for field in fields(Program) if field.name in answer})
