"""Script for Slurm's sbatch: one launcher on each server; a job that stopped with its state saved is put back into the
queue."""

import argparse
import re
import shlex
from pathlib import Path

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_run.manifest import secret
from pangu_run.manifest.options import NOTHING, Parser, deliver, job_name, launch_words, train_words
from pangu_run.manifest.plan import Plan, plan_of, require_ascend
from pangu_run.manifest.text import exports, fill, shell_words

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}|UNLIMITED", re.ASCII)
_MEMORY = re.compile(r"\d+[KMGT]?", re.ASCII)


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    parser = Parser("slurm", __doc__)
    parser.add_job_name()
    parser.add_requeues()
    parser.add_argument(
        "--time",
        default="1-00:00:00",
        help="time limit as Slurm writes it; the job is asked to stop --grace seconds before",
    )
    parser.add_argument("--partition", default=NOTHING, help="partition; default: the cluster's")
    parser.add_argument("--account", default=NOTHING, help="account to charge")
    parser.add_argument("--gres", default="npu", metavar="NAME", help="the cluster's name for a device")
    parser.add_argument(
        "--memory", default="0", metavar="SIZE", help="memory of each server, such as 512G; 0: all of it"
    )
    parser.add_argument(
        "--log",
        default="%x-%j.log",
        metavar="FILE",
        help="what the script prints; %%x job name, %%j job id; its directory must exist",
    )
    parser.add_argument(
        "--prepare",
        default=NOTHING,
        metavar="COMMAND",
        help="line of bash to run first, such as `source venv/bin/activate`",
    )
    args = parser.read(argv)
    for option, value, form, example in (
        ("--time", args.time, _TIME, "1-00:00:00"),
        ("--memory", args.memory, _MEMORY, "512G"),
    ):
        if not form.fullmatch(value):
            raise LaunchError(f"{option} {value}: is not of Slurm's form; write it as {example}")
    see_from_anywhere(args)
    plan = plan_of(train_words(args))
    require_ascend("slurm", plan)
    return deliver(
        args,
        plan,
        script(args, plan),
        "submit it with `sbatch {file}`, cancel it with `scancel --batch --signal=TERM JOB`",
    )


def see_from_anywhere(args: argparse.Namespace) -> None:
    """Make paths absolute: the servers share them, and the script may be submitted from another directory."""
    for name in ("output_dir", "data", "init_from"):
        if getattr(args, name):
            setattr(args, name, str(Path(getattr(args, name)).absolute()))
    if Path(args.config).is_file():
        args.config = str(Path(args.config).absolute())


def script(args: argparse.Namespace, plan: Plan) -> str:
    """The script."""
    optional = [
        f"#SBATCH --{name}={shlex.quote(value)}\n"
        for name, value in (("partition", args.partition), ("account", args.account))
        if value
    ]
    return fill(
        "slurm.sh.tmpl",
        config=args.config,
        job_name=job_name(args),
        hosts=plan.hosts,
        devices=plan.devices,
        gres=shlex.quote(f"{args.gres}:{plan.devices}"),
        time=args.time,
        memory=args.memory,
        log=shlex.quote(args.log),
        signal=f"B:USR1@{args.grace}",
        optional="".join(optional),
        prepare=f"{args.prepare}\n" if args.prepare else "",
        exports=exports(args.env),
        secret=secret.SHELL if plan.hosts > 1 else "",
        grace=args.grace,
        words=shell_words(launch_words(args)),
        stopped=EXIT_STOPPED,
        max_requeues=args.max_requeues,
    )
