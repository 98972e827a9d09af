"""Options that all kinds of manifests have, and the output of the finished text."""

import argparse
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
from pangu_ms.core.parser import NewFile
from pangu_ms.core.table import print_json
from pangu_run.cli.options import MAX_S, PORTS, require_between
from pangu_run.manifest.plan import FIRST, Plan
from pangu_run.manifest.run import Run

MIN_GRACE_S = 60
UNCONFIRMED = (
    "MindSpore documents the 910B and its successors from 2.7 on; whether it still runs on the first 910 is"
    " unconfirmed: try one device first"
)


class ManifestParser(arguments.Parser):
    """Parser of one kind of manifest, with the options that all kinds have."""

    def __init__(self, kind: str, description: str | None, output_dir: str | None = None):
        """
        Args:
            kind: slurm, volcano, ...
            description: a description of the manifest.
            output_dir: default of --output-dir; None makes the option required.
        """
        super().__init__(prog=f"pangu manifest {kind}", description=description)
        self._add_run(output_dir)
        self._add_job()
        add_output(self)

    def _add_run(self, output_dir: str | None) -> None:
        """Add the options that say what `pangu train` does."""
        run = self.add_argument_group("the run")
        run.add_argument("--config", required=True, metavar="NAME", help="YAML file or shipped config")
        text = "override a field, e.g. train.steps=100"
        run.add_argument("overrides", nargs="*", metavar="section.field=value", help=text)
        run.add_argument(
            "--output-dir",
            metavar="DIR",
            required=output_dir is None,
            default=output_dir,
            help="the run's directory, as the job sees it",
        )
        text = "records, as the job sees them; default: data.records of the config"
        run.add_argument("--data", metavar="RECORDS", help=text)
        text = "weights that the run starts from, as the job sees them"
        run.add_argument("--init-from", metavar="CHECKPOINT", help=text)

    def _add_job(self) -> None:
        """Add the options of the launchers that the manifest starts."""
        job = self.add_argument_group("the job")
        text = "number of restarts by the launcher, from the last valid checkpoint"
        job.add_argument("--max-restarts", type=int, default=3, metavar="N", help=text)
        text = "port of MindSpore's scheduler; the launchers use the next one"
        job.add_argument("--master-port", type=int, default=8118, metavar="PORT", help=text)
        text = "time for finishing the step and committing a checkpoint after a request to stop"
        job.add_argument("--grace", type=int, default=300, metavar="SECONDS", help=text)
        text = "environment variable of the job; may be given several times"
        job.add_argument("--env", action="append", metavar="NAME=VALUE", default=[], help=text)

    def add_requeues(self) -> None:
        """Add --max-requeues, for kinds whose scheduler can start a stopped job again."""
        self.add_argument(
            "--max-requeues",
            type=int,
            default=100,
            metavar="N",
            help="how often the scheduler starts the job again; 0: never",
        )

    def add_job_name(self) -> None:
        """Add --job-name, for kinds whose jobs have names."""
        self.add_argument(
            "--job-name",
            metavar="NAME",
            help="lower-case letters, digits and hyphens; default: from the config's name",
        )

    def read(self, argv: list[str]) -> argparse.Namespace:
        """Parsed options.

        Raises:
            LaunchError: a value that no scheduler would take.
        """
        args = self.parse_intermixed_args(argv)
        require_plain(args)
        for option, value, least, most in (
            ("--max-restarts", args.max_restarts, 0, 1000),
            ("--grace", args.grace, MIN_GRACE_S, 24 * 3600),
            ("--master-port", args.master_port, *PORTS),
            # Only some kinds have the last two options.
            ("--max-requeues", getattr(args, "max_requeues", 0), 0, 10000),
            ("--table-timeout", getattr(args, "table_timeout", 0), 0, MAX_S),
        ):
            require_between(option, value, least, most)
        return args


def add_output(parser: arguments.Parser) -> None:
    """Add the options of the text that is written."""
    own = parser.add_argument_group("the manifest")
    text = "new file for the manifest; - is the terminal"
    own.add_argument("--output", action=NewFile, default="-", metavar="FILE", help=text)
    own.add_argument("--json", action="store_true", help="print the file and how to submit it as JSON")


def run_of(args: argparse.Namespace) -> Run:
    """The run that the options describe.

    Raises:
        LaunchError: a value of --env.
    """
    return Run(
        config=args.config,
        overrides=args.overrides,
        output_dir=args.output_dir,
        data=args.data,
        init_from=args.init_from,
        max_restarts=args.max_restarts,
        master_port=args.master_port,
        grace=args.grace,
        environment=environment(args.env),
    )


def require_plain(args: argparse.Namespace) -> None:
    """Raise LaunchError if a value contains a line break or another control character, which would break the script
    that contains it."""
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isprintable():
                raise LaunchError(
                    f"--{name.replace('_', '-')} {text!r}: has a control character; scripts hold values on one line;"
                    " remove it"
                )


def environment(pairs: list[str]) -> dict[str, str]:
    """The variables that the values of --env set.

    Raises:
        LaunchError: a value is not NAME=VALUE, is the job's secret, or a variable that the launcher sets itself.
    """
    for pair in pairs:
        if not re.match(r"[A-Za-z_]\w*=", pair, re.ASCII):
            raise LaunchError(f"--env {pair}: must be NAME=VALUE with a NAME of letters, digits and _; write it so")
        name = pair.partition("=")[0]
        if name == JOB_SECRET:
            advice = (
                "leave it out: Slurm's and Volcano's files make a fresh one; to ModelArts or `docker run` give it as a"
                " variable of the job"
            )
            raise LaunchError(
                f"--env {JOB_SECRET}: would stand in a file or image that others read; a secret does not belong there;"
                f" {advice}"
            )
        if name in CLUSTER_VARIABLES:
            raise LaunchError(
                f"--env {pair}: the launcher takes {name} away and sets its own for each rank; leave it out"
            )
    return dict(pair.split("=", 1) for pair in pairs)


def deliver(args: argparse.Namespace, plan: Plan, text: str, submit: str, private: bool = False) -> int:
    """Write the manifest of a run, see `write`; returns the exit code.

    Args:
        args: of `ManifestParser`.
        plan: the devices that the manifest asks for.
        text: the manifest.
        submit: command that hands the file to the scheduler; {file} stands for its name.
        private: the text contains a secret, so only the owner may read the file.
    """
    if plan.on_ascend and plan.chip == FIRST:
        tell(f"pangu manifest: runtime.chip={FIRST}: {UNCONFIRMED}")
    known = {"hosts": plan.hosts, "devices_per_host": plan.devices}
    said = f"{plan.hosts} server(s) with {plan.devices} device(s) each; "
    return write(args, text, submit, known, said, private)


def write(
    args: argparse.Namespace, text: str, submit: str, known: dict[str, Any], said: str = "", private: bool = False
) -> int:
    """Write the text to --output atomically, and say how to use it; returns the exit code.

    Args:
        args: with the options of `add_output`.
        text: the manifest.
        submit: how to use the file; {file} stands for its name.
        known: what --json shows beside file and command.
        said: what stands before the command.
        private: the text contains a secret, so only the owner may read the file.
    """
    to_file = args.output != "-"
    if to_file:
        files.write_new(Path(args.output), text, private)
    command = submit.format(file=shlex.quote(args.output) if to_file else "FILE")
    if args.json:
        shown: dict[str, Any] = {"output": args.output, **known, "submit": command}
        print_json(shown if to_file else shown | {"text": text})
    elif to_file:
        show(f"{args.output}: {said}{command}")
    else:
        sys.stdout.write(text)
    return 0
