"""`pangu manifest slurm`: a script for sbatch."""

from pangu_run.cli.manifest_options import ManifestParser, deliver, run_of
from pangu_run.manifest import slurm
from pangu_run.manifest.plan import plan_of, require_ascend


def build_parser() -> ManifestParser:
    """Its parser."""
    parser = ManifestParser("slurm", slurm.__doc__)
    parser.add_job_name()
    parser.add_requeues()
    parser.add_argument(
        "--time",
        default="1-00:00:00",
        help="time limit as Slurm writes it; the job is asked to stop --grace seconds before",
    )
    parser.add_argument("--partition", help="partition; default: the cluster's")
    parser.add_argument("--account", help="account to charge")
    parser.add_argument("--gres", default="npu", metavar="NAME", help="the cluster's name for a device")
    parser.add_argument(
        "--memory", default="0", metavar="SIZE", help="memory of each server, such as 512G; 0: all of it"
    )
    parser.add_argument(
        "--log",
        default="%x-%j.log",
        metavar="FILE",
        help="file for the output of the script; %%x is the job name, %%j the job id; its directory must exist",
    )
    parser.add_argument(
        "--prepare",
        metavar="COMMAND",
        help="line of bash to run first, such as `source venv/bin/activate`",
    )
    return parser


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    args = build_parser().read(argv)
    run = run_of(args).with_absolute_paths()  # the script may be submitted from another directory
    options = slurm.SlurmOptions(
        job_name=args.job_name,
        max_requeues=args.max_requeues,
        time=args.time,
        partition=args.partition,
        account=args.account,
        gres=args.gres,
        memory=args.memory,
        log=args.log,
        prepare=args.prepare,
    )
    slurm.check(options)
    plan = plan_of(run.train_argv())
    require_ascend("slurm", plan)
    submit = "submit it with `sbatch {file}`, cancel it with `scancel --batch --signal=TERM JOB`"
    return deliver(args, plan, slurm.script(run, options, plan), submit)
