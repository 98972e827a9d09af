"""Boot file of a ModelArts training job. ModelArts starts it once per node (custom image) or once per device (preset
engine); the file works in both cases."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pangu_ms.core.errors import LaunchError
from pangu_run.manifest import secret
from pangu_run.manifest.mounts import seen_config
from pangu_run.manifest.plan import Plan
from pangu_run.manifest.run import Run
from pangu_run.manifest.text import exports, fill, shell_words

RANK_TABLE = "/user/config/jobstart_hccl.json"
"""Path of a job's rank table on ModelArts."""


@dataclass(frozen=True)
class ModelArtsOptions:
    """Each field is the option of `pangu manifest modelarts` of that name."""

    rank_table: str
    table_timeout: int
    """Seconds."""
    mount: Sequence[str]
    """HOST:PATH"""


def check(run: Run) -> None:
    """Raise LaunchError if the output directory would be lost with the job."""
    if not PurePosixPath(run.output_dir).is_absolute():
        raise LaunchError(
            f"--output-dir {run.output_dir}: must be an absolute path in the job, on storage that outlives it; write"
            " such a path"
        )


def boot_file(run: Run, options: ModelArtsOptions, plan: Plan) -> str:
    """Text of the boot file.

    Raises:
        LaunchError: the configuration is a file that is in no mount of the job.
    """
    return fill(
        "modelarts.sh.tmpl",
        config=run.config,
        hosts=plan.hosts,
        devices=plan.devices,
        rank_table=shlex.quote(options.rank_table),
        table_timeout=options.table_timeout,
        exports=exports(run.environment),
        secret=secret.COMMENT if plan.hosts > 1 else "",
        words=shell_words(run.launch_argv(seen_config(run.config, options.mount))),
    )
