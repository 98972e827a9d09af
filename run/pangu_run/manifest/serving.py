"""A server as a service: what `pangu serve` is started with, and how much memory it needs."""

import json
import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import python_command, python_environment

PROGRAM_BYTES = 3 << 29
"""Memory of the process without a model: Python, MindSpore and the compiled graph. Measured: 0.9 GiB on x86-64."""
MARGIN = 1.2
"""Of the estimate: requests, answers, fragmentation."""
STOP_MARGIN_S = 10
OWN_OPTIONS = ("--name", "--host", "--port", "--slots", "--max-length", "--api-key-file", "--drain-timeout")
"""Options of `pangu serve` that a manifest sets itself."""
_QUANTITY = re.compile(r"[1-9]\d*(Mi|Gi|Ti)", re.ASCII)


@dataclass(frozen=True)
class Serving:
    """The server. Paths are those that it sees."""

    model: str
    """Of a run, a checkpoint or a package."""
    name: str
    """Of the service, and of the model in requests."""
    host: str
    port: int
    slots: int
    max_length: int
    """Tokens; 0 is the model's context."""
    drain_timeout: int
    """Seconds that running requests get at the end."""
    load_timeout: int
    """Seconds until requests are taken."""
    api_key_file: str | None
    extra: Sequence[str]
    """Further options of `pangu serve`."""
    memory: str | None
    """512Mi, 8Gi or the like."""

    @property
    def stop_seconds(self) -> int:
        """From SIGTERM until the process may be killed: running requests end, then slow readers get theirs."""
        return self.drain_timeout + _seconds(self.extra, "--send-timeout", 30) + STOP_MARGIN_S

    def argv(self) -> list[str]:
        """Arguments of `pangu serve`."""
        options = {
            "--name": self.name,
            "--host": self.host,
            "--port": str(self.port),
            "--slots": str(self.slots),
            "--max-length": str(self.max_length),
            "--drain-timeout": str(self.drain_timeout),
        }
        words = [word for option in options.items() for word in option]
        keys = ["--api-key-file", self.api_key_file] if self.api_key_file else []
        return [self.model, *words, *keys, *self.extra]


def check(serving: Serving) -> None:
    """Raise LaunchError for values with which no server would start."""
    path = PurePosixPath(serving.model)
    if not path.is_absolute() or ".." in path.parts:
        raise LaunchError(f"{serving.model}: must be an absolute path, as the server sees it; write it from / on")
    for word in serving.extra:
        option = word.partition("=")[0]
        if option in OWN_OPTIONS:
            raise LaunchError(f"{option}: is set by the manifest; give the option of `pangu manifest serve` instead")
    if serving.memory is not None and not _QUANTITY.fullmatch(serving.memory):
        raise LaunchError(f"--memory {serving.memory}: must be a whole number of Mi, Gi or Ti; write it as 8Gi")


def memory_of(config: str, slots: int, max_length: int) -> str:
    """What a server of a configuration needs by `pangu plan estimate --serve`, and the process itself; in MiB.

    Raises:
        LaunchError: the configuration is wrong.
    """
    words = ["plan", "estimate", "--serve", "--json", "--hbm", "1000000GiB", "--config", config]
    words += ["--slots", str(slots), *(["--max-length", str(max_length)] if max_length else [])]
    # On a CPU a server computes in float32.
    command = python_command("pangu_ms", *words, "model.compute_dtype=float32")
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True)
    if done.returncode:
        raise LaunchError(done.stderr.strip().rpartition("\n")[2].removeprefix("pangu plan estimate: "))
    total = json.loads(done.stdout)["total_bytes"]
    return f"{math.ceil((MARGIN * total + PROGRAM_BYTES) / (256 << 20)) * 256}Mi"


def _seconds(words: Sequence[str], option: str, default: int) -> int:
    """The value of an option among words, rounded up."""
    value = str(default)
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, given = word.partition("=")
        value = value if name != option else given if equals else following
    try:
        return math.ceil(float(value))
    except (ValueError, OverflowError):
        raise LaunchError(f"{option} {value}: must be seconds; write it as {option} {default}") from None
