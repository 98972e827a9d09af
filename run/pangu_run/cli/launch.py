"""`pangu launch [options] train ...`: start a run on all devices of a cluster, or on CPU processes, and watch it to its
end.

Run the same command on each host; the launcher of the first host is the leader. Exit codes: 0 if all ranks succeeded;
the exit code of the rank that failed first, or 128 + N if signal N killed it; 2 for a user's mistake; 69 if a host did
not connect in time or was lost; 75 if SIGTERM, SIGINT, SIGUSR1 or SIGHUP stopped the job and its state is saved, so
that a scheduler can start it again; 124 if a rank hung.

PANGU_JOB_SECRET authenticates the launchers of several hosts to each other: set it to the same random value
(`openssl rand -hex 32`) in the environment of each.
"""

import argparse
import difflib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pangu_ms.core import parser as arguments
from pangu_ms.core.console import tell
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import python_command, python_environment
from pangu_ms.core.parser import RawHelp
from pangu_ms.core.table import print_result
from pangu_run.cli.options import MAX_S, MIN_S, PORTS, host_names, require_between
from pangu_run.job.job import DeviceAssignment, Job, Limits
from pangu_run.job.secret import job_secret, require_long
from pangu_run.job_directory import NAME, JobDirectory
from pangu_run.launcher import LOCAL_SERVER, run_job
from pangu_run.program import CPU, Program, describe, placement
from pangu_run.rank_table import Device, RankTable, Server, wait_completed
from pangu_run.rank_table.rules import address

VERBS = ("train",)
DEFAULTS = Limits()
NUMBERS: dict[str, tuple[float, float]] = {"master_port": PORTS, "max_restarts": (0, 1000)}
NUMBERS |= dict.fromkeys(("wait_table", "backoff", "grace"), (0, MAX_S))
NUMBERS |= dict.fromkeys(("hang_timeout", "start_timeout", "stop_timeout", "host_timeout"), (MIN_S, MAX_S))
"""Smallest and largest value of each option that is a number."""


class Parser(arguments.Parser):
    """A parser whose message on an unknown option says where the option may belong."""

    def _nearest(self, message: str) -> str:
        where = (
            "put `train` before its options, and the launcher's own before `train`; "
            if "unrecognized" in message or "required" in message
            else ""
        )
        return super()._nearest(message) + where


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = parse(argv)
    if {"-h", "--help"} & set(args.argv):  # behind `train`: its own help, which only the program itself can show
        return subprocess.call(python_command("pangu_ms", args.verb, "--help"), env=python_environment())
    return launch(args)


def launch(args: argparse.Namespace) -> int:
    """Determine the ranks of this host, and run them."""
    require_long(job_secret())
    options = program_options(args)
    # The program is asked twice: its placement says which host this is, and only the first host prepares records.
    table, here = cluster(args, placement(args.argv, *options))
    leads = here == 0 and not args.dry_run  # the first host prepares records, and checks the directory
    described = describe(
        args.argv, *options, *([] if leads else ["--follower"]), *(["--skip-paths"] if args.skip_paths else [])
    )
    job = job_of(args, described, table, here)
    if args.dry_run:
        if described.unchecked:
            _say(f"not checked here: {', '.join(described.unchecked)}")
        print_result(plan(job), plan_table(job), args.json)
        return 0
    return run_job(job)


def build_parser() -> Parser:
    """The parser of the verb: launch options, then the verb that ranks run and its arguments."""
    parser = Parser(prog="pangu launch", description=__doc__, formatter_class=RawHelp)
    _add_where(parser.add_argument_group("where ranks run (default: this host)"))
    _add_start(parser.add_argument_group("how they start"))
    _add_watch(parser.add_argument_group("how they are watched"))
    parser.add_argument("verb", metavar="train", help="the verb to run")
    # REMAINDER leaves options behind the verb to it, those that the launcher has too (--device, --json) included.
    parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="...", help="its options: see `pangu train --help`")
    return parser


def _add_where(group: argparse._ArgumentGroup) -> None:
    """Add the options that say where ranks run."""
    text = "rank table; ranks are assigned to its devices in the plan's order"
    group.add_argument("--rank-table", type=Path, metavar="FILE", help=text)
    text = "seconds to wait for a table that is not completed yet"
    group.add_argument("--wait-table", type=float, default=0, metavar="S", help=text)
    group.add_argument("--hosts", metavar="A,B", help="hosts without a rank table; the first one leads")
    text = "this host's name in the table or in --hosts (default: found by its addresses)"
    group.add_argument("--server-id", metavar="ID", help=text)
    group.add_argument("--device", choices=("cpu", "ascend"), help="default: the configuration's runtime.device")
    group.add_argument("--num-ranks", type=int, metavar="N", help="ranks of a CPU job: parallel.data_parallel=N")
    text = "try a cluster's configuration on this CPU: a smaller model, a few steps, 2 ranks"
    group.add_argument("--smoke", action="store_true", help=text)


def _add_start(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how ranks start."""
    text = "how ranks find each other on Ascend (default: rank-table if one is given, else cluster)"
    group.add_argument("--start", choices=("rank-table", "cluster"), help=text)
    text = "address of the first host (default: its name in the table or in --hosts)"
    group.add_argument("--master-address", metavar="HOST", help=text)
    text = "port of MindSpore's scheduler; the leader uses the next one"
    group.add_argument("--master-port", type=int, default=8118, metavar="P", help=text)
    text = "bind ranks to cores of their NUMA node (default: numa on Ascend, none on CPU)"
    group.add_argument("--bind", choices=("numa", "none"), help=text)
    group.add_argument("--dry-run", action="store_true", help="print what would start, rank by rank")
    text = "with --dry-run: do not check records, checkpoint and output, on a node that does not have them"
    group.add_argument("--skip-paths", action="store_true", help=text)
    group.add_argument("--json", action="store_true", help="with --dry-run: machine-readable output")


def _add_watch(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how ranks are watched and started again."""
    text = "number of restarts from the last valid checkpoint after failures"
    group.add_argument("--max-restarts", type=int, default=0, metavar="N", help=text)
    hang = "end the job if a rank that is not waiting for others sends no heartbeat for so many seconds"
    start = "the same, until the end of a rank's first step, which includes compilation"
    for name, default, text in (
        ("--backoff", DEFAULTS.backoff_s, "seconds before the first restart, doubled before each further one"),
        ("--hang-timeout", DEFAULTS.hang_s, hang),
        ("--start-timeout", DEFAULTS.start_s, start),
        ("--stop-timeout", DEFAULTS.stop_s, "seconds for the running step and the checkpoint after a stop signal"),
        ("--host-timeout", DEFAULTS.host_s, "seconds to wait for the launchers of the other hosts"),
        ("--grace", DEFAULTS.grace_s, "seconds for ranks to end by themselves after another one failed"),
    ):
        group.add_argument(name, type=float, default=default, metavar="S", help=f"{text} (default: %(default)g)")
    text = "the rank whose output the terminal shows, or none"
    group.add_argument("--stream", default="0", metavar="RANK", help=text)
    text = "directory of logs, events and status (default: OUTPUT/job)"
    group.add_argument("--job-dir", type=Path, metavar="DIR", help=text)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parsed options.

    Raises:
        LaunchError: options are wrong, independently of the run.
    """
    args = build_parser().parse_args(argv)
    require_sound(args)
    args.hosts = None if args.hosts is None else host_names("--hosts", args.hosts)
    return args


def require_sound(args: argparse.Namespace) -> None:
    """Raise LaunchError if options contradict each other or are out of range."""
    if args.verb not in VERBS:
        if difflib.get_close_matches(args.verb, VERBS, 1):
            raise LaunchError(
                f"{args.verb}: ranks are launched for {', '.join(VERBS)}; did you mean {VERBS[0]}? see `pangu launch"
                " --help`"
            )
        raise LaunchError(
            f"{args.verb}: runs on one device; ranks are launched for {', '.join(VERBS)}; run `pangu {args.verb}`"
            " itself"
        )
    if args.stream != "none" and not args.stream.isdecimal():
        raise LaunchError(f"--stream {args.stream}: must be the number of a rank, or none; choose one")
    if args.rank_table and args.hosts is not None:
        raise LaunchError("--hosts: the rank table names the hosts; only one of them can; leave one of them out")
    if args.start == "rank-table" and not args.rank_table:
        raise LaunchError("--start rank-table: needs --rank-table FILE; name one, or use --start cluster")
    if args.json and not args.dry_run:
        raise LaunchError(
            "--json: is of --dry-run, while ranks own the terminal of a job; add --dry-run, or see `pangu status"
            " --json`"
        )
    if args.skip_paths and not args.dry_run:
        raise LaunchError(
            "--skip-paths: is of --dry-run, while ranks need what the paths hold; add --dry-run, or leave it out"
        )
    for name, (least, most) in NUMBERS.items():
        require_between(f"--{name.replace('_', '-')}", getattr(args, name), least, most)


def program_options(args: argparse.Namespace) -> list[str]:
    """Launch options that are passed on to the program; see program.describe."""
    options = ["--smoke"] if args.smoke else []
    options += ["--device", args.device] if args.device else []
    return options + (["--num-ranks", str(args.num_ranks)] if args.num_ranks is not None else [])


def cluster(args: argparse.Namespace, program: Program) -> tuple[RankTable, int]:
    """The rank table of the job (the device and host of each rank), and the index of this host.

    Raises:
        RankTableError: the table has faults, other devices than the plan, or not this host.
        LaunchError: the ranks of the plan cannot be placed on the hosts.
    """
    table = _given_table(args, program)
    if program.device == CPU and table.world != program.world:
        raise LaunchError(
            f"{args.rank_table}: has {table.world} devices for {program.world} ranks; must be equal; change"
            " parallel.data_parallel"
        )
    in_order = [(s, d) for s, server in enumerate(table.servers) for d in range(len(server.devices))]
    if args.stream != "none" and int(args.stream) >= table.world:
        raise LaunchError(
            f"--stream {args.stream}: the job has {table.world} ranks; must be one of 0 to {table.world - 1}, or none;"
            " choose such a rank"
        )
    here = table.this_server(args.server_id) if len(table.servers) > 1 or args.rank_table else 0
    if program.device == CPU and len(table.servers) > 1:
        require_one_machine(master_address(args, table))
    # The plan's order puts the heaviest traffic inside servers, which is of no use to CPU ranks of one machine.
    return table.ordered(in_order if program.device == CPU else program.placement), here


def master_address(args: argparse.Namespace, table: RankTable) -> str:
    """Where the other hosts reach the first one."""
    return args.master_address or table.servers[0].server_id


def require_one_machine(master: str) -> None:
    """Raise LaunchError unless the first host has a loopback address, which only launchers on one machine can reach:
    CPU ranks cannot meet across machines."""
    ip = address(master)
    if master != LOCAL_SERVER and not (ip and ip.is_loopback):
        advice = (
            "leave out --hosts, or with several launchers on one machine add --master-address 127.0.0.1 and a"
            " --server-id to each"
        )
        raise LaunchError(
            f"{master}: leads CPU ranks of several hosts; they can meet on one machine alone, by a loopback address;"
            f" {advice}"
        )


def _given_table(args: argparse.Namespace, program: Program) -> RankTable:
    if args.rank_table:
        return (
            wait_completed(args.rank_table, args.wait_table, _say)
            if args.wait_table
            else RankTable.read(args.rank_table)
        )
    hosts = args.hosts or [args.server_id or LOCAL_SERVER]
    each, rest = divmod(program.world, len(hosts))
    if rest or not each:
        raise LaunchError(
            f"--hosts {','.join(hosts)}: {len(hosts)} hosts cannot share {program.world} ranks equally; name as many as"
            " the plan has"
        )
    if program.device != CPU and each > program.devices_per_server:
        advice = "name all hosts by --rank-table or --hosts, or try the configuration on a CPU with --smoke"
        raise LaunchError(
            f"{', '.join(hosts)}: {each} ranks on a host of {program.devices_per_server} devices"
            f" (parallel.devices_per_server); {advice}"
        )
    servers = []
    for host, first in zip(hosts, range(0, program.world, each)):
        servers.append(Server(host, tuple(Device(i, first + i, None) for i in range(each)), (host,)))
    return RankTable(tuple(servers))


def job_of(args: argparse.Namespace, program: Program, table: RankTable, here: int) -> Job:
    """The job as this host sees it."""
    assignments = [
        DeviceAssignment(rank, server.server_id, device.device_id) for rank, (server, device) in table.ranks().items()
    ]
    on_cpu, several = program.device == CPU, len(table.servers) > 1
    # CPU ranks read no rank table: they meet through MindSpore's scheduler.
    start: Literal["cluster", "rank-table"] = "rank-table" if args.rank_table and not on_cpu else "cluster"
    if args.start and not on_cpu:
        start = args.start
    facts = {"verb": args.verb, "words": list(program.argv), "device": program.device, "config": program.config}
    facts |= {"total_steps": program.total_steps, "tokens_per_step": program.tokens_per_step}
    return Job(
        argv=lambda rank: ["-m", "pangu_ms", args.verb, *program.argv],
        assignments=assignments,
        directory=JobDirectory(args.job_dir or Path(program.output) / NAME),
        server=table.servers[here].server_id,
        start=start,
        master=(master_address(args, table), args.master_port) if several else None,
        resume_argv=("--resume",),
        max_restarts=args.max_restarts,
        bind=args.bind == "numa" or args.bind is None and not on_cpu,
        stream_rank=None if args.stream == "none" else int(args.stream),
        limits=Limits(
            args.host_timeout, args.start_timeout, args.hang_timeout, args.stop_timeout, args.grace, args.backoff
        ),
        rank_table=table.as_dict() if start == "rank-table" else None,
        description=facts | ({"rank_table": table.as_dict()} if args.rank_table else {}),
    )


def plan(job: Job) -> list[dict[str, Any]]:
    """The commands and variables of each rank that would start on this host."""
    scheduler = (job.master or (LOCAL_SERVER, "(a free port)")) if job.start == "cluster" else None
    return [
        {
            "rank": assignment.rank,
            "host": assignment.server,
            "device": assignment.device,
            "command": [sys.executable, *job.rank_argv(assignment.rank, resume=False)],
            "environment": job.defaults(assignment) | job.own_variables(assignment, scheduler),
            "log": str(job.directory.rank_log(assignment.rank)),
        }
        for assignment in job.local
    ]


def plan_table(job: Job) -> str:
    """`plan` as readable text: what all ranks of this host have in common, then what differs."""
    rows = plan(job)
    shared = {
        name: value
        for name, value in rows[0]["environment"].items()
        if all(row["environment"].get(name) == value for row in rows)
    }
    lines = [
        f"{job.world} ranks on {len(job.servers)} host(s); {job.servers[0]} leads; this is {job.server}",
        "",
        shlex.join(rows[0]["command"]),
    ]
    lines += ["", "all ranks of this host", *_variables(shared)]
    if any(int(row["environment"]["DEVICE_ID"]) != row["device"] for row in rows):
        lines += ["", "A part of this host's devices is visible: DEVICE_ID counts those."]
    for row in rows:
        own = {name: value for name, value in row["environment"].items() if name not in shared}
        lines += ["", f"rank {row['rank']}: device {row['device']}, {row['log']}", *_variables(own)]
    others = [
        f"  rank {assignment.rank}: host {assignment.server}, device {assignment.device}"
        for assignment in job.assignments
        if assignment.server != job.server
    ]
    return "\n".join([*lines, *(["", "other hosts", *others] if others else [])])


def _variables(variables: Mapping[str, str]) -> list[str]:
    return [f"  {name}={value}" for name, value in variables.items()]


def _say(text: str) -> None:
    tell(f"pangu launch: {text}")
