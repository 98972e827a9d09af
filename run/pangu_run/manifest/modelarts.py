"""Boot file of a ModelArts training job. It is started once on each node (custom image) or once for each device (preset
engine), and serves both."""

import shlex
from pathlib import PurePosixPath

from pangu_ms.core.errors import LaunchError
from pangu_run.manifest import secret
from pangu_run.manifest.mounts import seen_config
from pangu_run.manifest.options import NOTHING, Parser, deliver, launch_words, train_words
from pangu_run.manifest.plan import plan_of, require_ascend
from pangu_run.manifest.text import exports, fill, shell_words

RANK_TABLE = "/user/config/jobstart_hccl.json"
"""Where ModelArts puts a job's rank table."""


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    parser = Parser("modelarts", __doc__)
    parser.add_argument(
        "--rank-table",
        default=RANK_TABLE,
        metavar="FILE",
        help="the job's rank table; RANK_TABLE_FILE overrides it there",
    )
    parser.add_argument(
        "--table-timeout", type=int, default=1800, metavar="SECONDS", help="how long to wait for a complete rank table"
    )
    parser.add_argument(
        "--mount", action="append", metavar="HOST:PATH", default=NOTHING, help="HOST here is PATH there; for --config"
    )
    args = parser.read(argv)
    if not PurePosixPath(args.output_dir).is_absolute():
        raise LaunchError(
            f"--output-dir {args.output_dir}: must be an absolute path in the job, on storage that outlives it; write"
            " such a path"
        )
    plan = plan_of(train_words(args))
    require_ascend("modelarts", plan)
    text = fill(
        "modelarts.sh.tmpl",
        config=args.config,
        hosts=plan.hosts,
        devices=plan.devices,
        rank_table=shlex.quote(args.rank_table),
        table_timeout=args.table_timeout,
        exports=exports(args.env),
        secret=secret.COMMENT if plan.hosts > 1 else "",
        words=shell_words(launch_words(args, seen_config(args.config, args.mount))),
    )
    return deliver(args, plan, text, "upload it and set the boot command `bash {file}`")
