"""Script for Slurm's sbatch. It starts one launcher on each server, and requeues a job that stopped with its state
saved."""

import re
import shlex
from dataclasses import dataclass

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_run.manifest import secret
from pangu_run.manifest.plan import Plan
from pangu_run.manifest.run import Run, job_name
from pangu_run.manifest.text import exports, fill, shell_words

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}|UNLIMITED", re.ASCII)
_MEMORY = re.compile(r"\d+[KMGT]?", re.ASCII)


@dataclass(frozen=True)
class SlurmOptions:
    """What the script requests from Slurm. Each field corresponds to the option of `pangu manifest slurm` with its
    name."""

    job_name: str | None
    max_requeues: int
    time: str
    partition: str | None
    account: str | None
    gres: str
    memory: str
    log: str
    prepare: str | None


def check(options: SlurmOptions) -> None:
    """Raise LaunchError for values that Slurm would refuse."""
    for option, value, form, example in (
        ("--time", options.time, _TIME, "1-00:00:00"),
        ("--memory", options.memory, _MEMORY, "512G"),
    ):
        if not form.fullmatch(value):
            raise LaunchError(f"{option} {value}: is not of Slurm's form; write it as {example}")


def script(run: Run, options: SlurmOptions, plan: Plan) -> str:
    """Text of the script; the servers share the paths of `run`, which are absolute."""
    optional = ""
    for name, value in (("partition", options.partition), ("account", options.account)):
        optional += f"#SBATCH --{name}={shlex.quote(value)}\n" if value else ""
    return fill(
        "slurm.sh.tmpl",
        config=run.config,
        job_name=job_name(options.job_name, run.config),
        hosts=plan.hosts,
        devices=plan.devices,
        gres=shlex.quote(f"{options.gres}:{plan.devices}"),
        time=options.time,
        memory=options.memory,
        log=shlex.quote(options.log),
        signal=f"B:USR1@{run.grace}",  # only to the batch shell, which passes it on to the launchers
        optional=optional,
        prepare=f"{options.prepare}\n" if options.prepare else "",
        exports=exports(run.environment),
        secret=secret.SHELL if plan.hosts > 1 else "",
        grace=run.grace,
        words=shell_words(run.launch_argv()),
        stopped=EXIT_STOPPED,
        max_requeues=options.max_requeues,
    )
