"""The run that a manifest starts, and the command lines that come of it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_ms.core.errors import LaunchError

STOP_MARGIN_S = 30
"""The launcher ends its ranks this long before the scheduler would end the launcher."""
_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?")
"""Name of a Kubernetes Service (RFC 1035); 48 of its 63 characters, since a pod's name adds some, as "-worker-1234"."""


@dataclass(frozen=True)
class Run:
    """What is trained, and how its launchers behave. Paths are those that the job sees."""

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

        The run always resumes: a job that its scheduler starts again goes on, and the first start finds no checkpoint
        and begins at step 0.

        Args:
            config: what the job calls the configuration, where that is another name than `self.config`.
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
        """Arguments of `pangu launch` that follow those that say which servers there are; `config` as in
        `train_argv`."""
        options = {
            "--max-restarts": self.max_restarts,
            "--stop-timeout": self.grace - STOP_MARGIN_S,
            "--master-port": self.master_port,
        }
        argv = [str(part) for option in options.items() for part in option]
        return [*argv, "train", *self.train_argv(config)]


def job_name(given: str | None, config: str) -> str:
    """The job's name: as given, or made of the configuration's.

    Raises:
        LaunchError: the given one is not a name of a Kubernetes service, which Slurm takes as well.
    """
    if given is None:
        stem = Path(config).stem if Path(config).is_file() else config
        slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
        return f"pangu-{slug}"[:48].rstrip("-")
    if not _JOB_NAME.fullmatch(given):
        raise LaunchError(
            f"--job-name {given}: must be at most 48 of a-z, 0-9 and -, from a letter to no hyphen; choose such a name"
        )
    return given
