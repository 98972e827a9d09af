"""`pangu manifest modelarts`: the boot file of a ModelArts training job."""

from pangu_run.cli.manifest_options import ManifestParser, deliver, run_of
from pangu_run.manifest import modelarts
from pangu_run.manifest.plan import plan_of, require_ascend


def build_parser() -> ManifestParser:
    """Its parser."""
    parser = ManifestParser("modelarts", modelarts.__doc__)
    parser.add_argument(
        "--rank-table",
        default=modelarts.RANK_TABLE,
        metavar="FILE",
        help="the job's rank table; RANK_TABLE_FILE in the job overrides it",
    )
    parser.add_argument(
        "--table-timeout", type=int, default=1800, metavar="SECONDS", help="how long to wait for a complete rank table"
    )
    parser.add_argument(
        "--mount",
        action="append",
        metavar="HOST:PATH",
        default=[],
        help="directory HOST of this machine is PATH in the job; for --config",
    )
    return parser


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    args = build_parser().read(argv)
    run, options = run_of(args), modelarts.ModelArtsOptions(args.rank_table, args.table_timeout, args.mount)
    modelarts.check(run)
    plan = plan_of(run.train_argv())
    require_ascend("modelarts", plan)
    return deliver(
        args, plan, modelarts.boot_file(run, options, plan), "upload it and set the boot command `bash {file}`"
    )
