"""Options that all kinds of manifest have, what is checked of them, and what becomes of the text."""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from pangu_ms.core import files
from pangu_ms.core import parser as arguments
from pangu_ms.core.cluster_variables import CLUSTER_VARIABLES
from pangu_ms.core.console import show, tell
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import JOB_SECRET
from pangu_ms.core.parser import MOST_S, PORTS, NewFile, require_between
from pangu_run.manifest.plan import FIRST, Plan

MARGIN_S = 30
"""The launcher ends its ranks this long before the scheduler would end the launcher."""
MIN_GRACE_S = 60
UNCONFIRMED = (
    "MindSpore documents the 910B and its successors from 2.7 on; whether it still runs on the first 910 is"
    " unconfirmed: try one device first"
)
_NAME = re.compile(
    r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?"
)  # a Service's name (RFC 1035), with room for "-worker-1234" in a pod's
NOTHING = argparse.SUPPRESS  # no "(default: None)"


class Parser(arguments.Parser):
    """Parser of one kind, with the options that all have."""

    def __init__(self, kind: str, about: str | None, output_dir: str | None = None):
        super().__init__(
            prog=f"pangu manifest {kind}", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        job, own = self.add_argument_group("the run"), self.add_argument_group("the manifest")
        job.add_argument("--config", required=True, metavar="NAME", default=NOTHING, help="YAML file or shipped config")
        job.add_argument(
            "overrides",
            nargs="*",
            metavar="section.field=value",
            default=NOTHING,
            help="override a field, e.g. train.steps=100",
        )
        where = {"default": output_dir} if output_dir else {"required": True, "default": NOTHING}
        job.add_argument("--output-dir", metavar="DIR", help="the run's directory, as the job sees it", **where)
        job.add_argument(
            "--data",
            metavar="RECORDS",
            default=NOTHING,
            help="records, as the job sees them; default: data.records of the config",
        )
        job.add_argument(
            "--init-from",
            metavar="CHECKPOINT",
            default=NOTHING,
            help="weights that the run starts from, as the job sees them",
        )
        job.add_argument(
            "--max-restarts",
            type=int,
            default=3,
            metavar="N",
            help="restarts by the launcher, from the last valid checkpoint",
        )
        job.add_argument(
            "--master-port",
            type=int,
            default=8118,
            metavar="PORT",
            help="port of MindSpore's scheduler; the next one is the launchers'",
        )
        job.add_argument(
            "--grace",
            type=int,
            default=300,
            metavar="SECONDS",
            help="time to end a step and commit a checkpoint when asked to stop",
        )
        job.add_argument(
            "--env",
            action="append",
            metavar="NAME=VALUE",
            default=NOTHING,
            help="variable of the job; may be given several times",
        )
        own.add_argument(
            "--output", action=NewFile, default="-", metavar="FILE", help="new file to write it to; - is the terminal"
        )
        own.add_argument("--json", action="store_true", help="print what was written, and how to submit it, as JSON")

    def read(self, argv: list[str]) -> argparse.Namespace:
        """Parsed options; `env` is a dict, what was not given is None, or empty where several may be.

        Raises:
            LaunchError: a value that no scheduler would take.
        """
        args = self.parse_intermixed_args(argv)
        for action in self._actions:
            several = action.nargs == "*" or isinstance(action, argparse._AppendAction)
            if not hasattr(args, action.dest):
                setattr(args, action.dest, [] if several else None)
        require_plain(args)
        args.env = environment(args.env)
        for option, value, least, most in (
            ("--max-restarts", args.max_restarts, 0, 1000),
            ("--grace", args.grace, MIN_GRACE_S, 24 * 3600),
            ("--master-port", args.master_port, *PORTS),
            ("--max-requeues", getattr(args, "max_requeues", 0), 0, 10000),
            ("--table-timeout", getattr(args, "table_timeout", 0), 0, MOST_S),
        ):
            require_between(option, value, least, most)
        return args

    def add_requeues(self) -> None:
        """Option of kinds whose scheduler starts a stopped job again."""
        self.add_argument(
            "--max-requeues",
            type=int,
            default=100,
            metavar="N",
            help="how often the scheduler starts the job again; 0: never",
        )

    def add_job_name(self) -> None:
        """Option of kinds whose jobs have names."""
        self.add_argument(
            "--job-name",
            metavar="NAME",
            default=NOTHING,
            help="lower-case letters, digits and hyphens; default: from the config's name",
        )


def require_plain(args: argparse.Namespace) -> None:
    """Raise LaunchError for a line break or another control character: it would end the line of a script that the value
    stands in."""
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isprintable():
                raise LaunchError(
                    f"--{name.replace('_', '-')} {text!r}: has a control character; scripts hold values on one line;"
                    " remove it"
                )


def environment(pairs: list[str]) -> dict[str, str]:
    """Variables of NAME=VALUE words.

    Raises:
        LaunchError: a word is none.
    """
    for pair in pairs:
        if not re.match(r"[A-Za-z_]\w*=", pair, re.ASCII):
            raise LaunchError(f"--env {pair}: must be NAME=VALUE with a NAME of letters, digits and _; write it so")
        if pair.startswith(f"{JOB_SECRET}="):
            advice = (
                "leave it out: Slurm's and Volcano's files make a fresh one; to ModelArts or `docker run` give it as a"
                " variable of the job"
            )
            raise LaunchError(
                f"--env {JOB_SECRET}: would stand in a file or image that others read; a secret does not belong there;"
                f" {advice}"
            )
        if (name := pair.partition("=")[0]) in CLUSTER_VARIABLES:
            raise LaunchError(
                f"--env {pair}: the launcher takes {name} away and sets its own for each rank; leave it out"
            )
    return dict(pair.split("=", 1) for pair in pairs)


def job_name(args: argparse.Namespace) -> str:
    """The job's name: as given, or made of the configuration's.

    Raises:
        LaunchError: the given one is not a name of a Kubernetes service, which Slurm takes as well.
    """
    if args.job_name is None:
        config = Path(args.config).stem if Path(args.config).is_file() else args.config
        slug = re.sub(r"[^a-z0-9]+", "-", config.lower()).strip("-")
        return f"pangu-{slug}"[:48].rstrip("-")
    if not _NAME.fullmatch(args.job_name):
        raise LaunchError(
            f"--job-name {args.job_name}: must be at most 48 of a-z, 0-9 and -, from a letter to no hyphen; choose such"
            " a name"
        )
    return args.job_name


def train_words(args: argparse.Namespace, config: str | None = None) -> list[str]:
    """Words of `pangu train`. It always resumes: a job that its scheduler starts again goes on, and the first start
    finds nothing and starts anew."""
    named = [("--data", args.data), ("--init-from", args.init_from)]
    return [
        "--config",
        config or args.config,
        *args.overrides,
        "--output",
        args.output_dir,
        *[w for n, v in named if v for w in (n, v)],
        "--resume",
    ]


def launch_words(args: argparse.Namespace, config: str | None = None) -> list[str]:
    """Words of `pangu launch` behind those that say which servers there are."""
    stop_s = args.grace - MARGIN_S
    own = [
        "--max-restarts",
        str(args.max_restarts),
        "--stop-timeout",
        str(stop_s),
        "--master-port",
        str(args.master_port),
    ]
    return [*own, "train", *train_words(args, config)]


def deliver(args: argparse.Namespace, plan: Plan, text: str, submit: str, private: bool = False) -> int:
    """Write the text where it should go, whole or not at all, and say how it is used; returns the exit code.

    Args:
        submit: command that hands FILE to the scheduler; {file} stands for it.
        private: the text has a secret; the file is its owner's alone.
    """
    to_file = args.output != "-"
    if plan.on_ascend and plan.chip == FIRST:
        tell(f"pangu manifest: runtime.chip={FIRST}: {UNCONFIRMED}")
    if to_file:
        files.write_new(Path(args.output), text, private)
    command = submit.format(file=shlex.quote(args.output) if to_file else "FILE")
    if args.json:
        known: dict[str, Any] = {
            "output": args.output,
            "hosts": plan.hosts,
            "devices_per_host": plan.devices,
            "submit": command,
        }
        print(json.dumps(known if to_file else known | {"text": text}))
    elif to_file:
        show(f"{args.output}: {plan.hosts} server(s) with {plan.devices} device(s) each; {command}")
    else:
        sys.stdout.write(text)
    return 0
