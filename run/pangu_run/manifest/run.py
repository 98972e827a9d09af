"""The run that a manifest starts, and its command lines."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_ms.core.errors import LaunchError

STOP_MARGIN_S = 30
"""Seconds before the scheduler would kill the launcher at which the launcher ends its ranks."""
_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?")
"""A valid name of a Kubernetes Service (RFC 1035), with 48 instead of 63 characters, since names of pods have a suffix
such as "-worker-1234"."""


@dataclass(frozen=True)
class Run:
    """The training run and the behaviour of its launchers. Paths are those that the job sees."""

    config: str
    """YAML file of this machine or shipped config."""
    overrides: Sequence[str]
    """section.field=value"""
    output_dir: str
    data: str | None
    init_from: str | None
    max_restarts: int
    master_port: int
    grace: int
    """Seconds from the scheduler's request to stop until it kills the job."""
    environment: Mapping[str, str]
    """Variables of the job."""

    def with_absolute_paths(self) -> "Run":
        """The same run with paths that do not depend on the working directory."""
        config = str(Path(self.config).absolute()) if Path(self.config).is_file() else self.config
        data, init_from = (str(Path(path).absolute()) if path else path for path in (self.data, self.init_from))
        output_dir = str(Path(self.output_dir).absolute())
        return dataclasses.replace(self, config=config, output_dir=output_dir, data=data, init_from=init_from)

    def train_argv(self, config: str | None = None) -> list[str]:
        """Arguments of `pangu train`.

        The arguments always contain --resume: a job that its scheduler starts again continues, and the first start
        finds no checkpoint and begins at step 0.

        Args:
            config: name of the configuration in the job, if it differs from `self.config`.
        """
        optional = []
        for option, value in (("--data", self.data), ("--init-from", self.init_from)):
            optional += [option, value] if value else []
        return [
            "--config",
            config or self.config,
            *self.overrides,
            "--output",
            self.output_dir,
            *optional,
            "--resume",
        ]

    def launch_argv(self, config: str | None = None) -> list[str]:
        """Arguments of `pangu launch` after those that name the servers; `config` as in `train_argv`."""
        options = {
            "--max-restarts": self.max_restarts,
            "--stop-timeout": self.grace - STOP_MARGIN_S,
            "--master-port": self.master_port,
        }
        argv = [str(part) for option in options.items() for part in option]
        return [*argv, "train", *self.train_argv(config)]


def job_name(given: str | None, config: str, option: str = "--job-name") -> str:
    """Name of the job: the given name, or one derived from that of the configuration.

    Raises:
        LaunchError: the given name is no valid name of a Kubernetes service; names for Slurm follow the same rule.
    """
    if given is None:
        stem = Path(config).stem if Path(config).is_file() else config
        slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
        return f"pangu-{slug}"[:48].rstrip("-")
    if not _JOB_NAME.fullmatch(given):
        raise LaunchError(
            f"{option} {given}: must be at most 48 of a-z, 0-9 and -, from a letter to no hyphen; choose such a name"
        )
    return given
