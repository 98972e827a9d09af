"""What a launcher asks the program that it is to start: how many ranks it needs, where they go, what its words become."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from run.console import USER_ERROR
from run.errors import LaunchError

MODULE = "pangu_ms.train.describe"


@dataclass(frozen=True)
class Program:
    """The answer."""

    world: int
    device: str
    """CPU or Ascend."""
    placement: Sequence[tuple[int, int]]
    """(server, device), counted from 0, that each rank should have."""
    devices_per_server: int
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
    """Ask it about `train WORDS`.

    Args:
        options: --num-ranks N, --device D, --smoke, --placement (only where ranks go), --follower (write nothing).

    Raises:
        Refused: the words have a mistake, which stands on stderr.
        LaunchError: the program is not installed here, or broke.
    """
    done = subprocess.run([sys.executable, "-m", MODULE, *options, "--", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode == USER_ERROR:
        raise Refused(USER_ERROR)
    if done.returncode:
        raise LaunchError(f"{sys.executable} -m {MODULE}: failed with exit code {done.returncode}; the package pangu_ms must be installed on this host")
    answer: dict[str, Any] = json.loads(done.stdout)
    return Program(**{key: answer[key] for key in Program.__dataclass_fields__ if key in answer})
