"""`pangu doctor`: check this host before a job, and report each fault with its fix."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_ms.core.console import printable, raw
from pangu_ms.core.errors import LaunchError, RankTableError
from pangu_ms.core.parser import Parser, RawHelp
from pangu_ms.core.table import print_json
from pangu_run.cli.options import PORTS, host_names, require_between
from pangu_run.doctor import clock, devices, environment, fabric, hccl, hosts, machine, network, plan, storage, versions
from pangu_run.doctor.check import FAIL, OK, WARN, Line, run_check
from pangu_run.doctor.site import Site

KINDS = {
    "versions": versions.CHECKS,
    "devices": (*devices.CHECKS, *fabric.CHECKS),
    "network": network.CHECKS,
    "disk": storage.CHECKS,
    "clock": clock.CHECKS,
    "hosts": hosts.CHECKS,
    "machine": machine.CHECKS,
    "environment": (*environment.CHECKS, *hccl.CHECKS),
    "configuration": plan.CHECKS,
}
COLOURS = {OK: "\033[32m", WARN: "\033[33m", FAIL: "\033[31m"}
EXIT_FAILED = 1
_WIDTH = 26
_EPILOG = """exit code: 0, or 1 with any FAIL.
If --output DIR is on a shared disk, run the doctor on every server: each run writes DIR/job/doctor/HOST.json, and \
compares its host with the files that exist."""


def build_parser() -> Parser:
    """The parser of the verb."""
    parser = Parser("pangu doctor", description=__doc__, epilog=_EPILOG, formatter_class=RawHelp)
    parser.add_argument("overrides", nargs="*", help="overrides of --config, such as parallel.data_parallel=8")
    parser.add_argument("--rank-table", help="compare this host and its devices with a rank table (default: none)")
    parser.add_argument(
        "--hosts",
        metavar="A,B",
        help="hosts of a job without a rank table; the first one leads (default: this host alone)",
    )
    parser.add_argument(
        "--server-id", help="which server of the table or of --hosts this host is (default: found by its addresses)"
    )
    parser.add_argument(
        "--master-address",
        metavar="HOST",
        help="address of the first host (default: its name in the table or in --hosts)",
    )
    parser.add_argument("--config", help="configuration of the run, compared with the rank table (default: none)")
    output = (
        "directory of the run, whose free space, speed, clock and sharing between hosts are checked; created if it does"
        " not exist (default: not checked)"
    )
    parser.add_argument("--output", type=Path, help=output)
    parser.add_argument(
        "--device",
        choices=("cpu", "ascend"),
        help="device that the job needs (default: ascend if this host has devices)",
    )
    parser.add_argument(
        "--master-port", type=int, default=8118, help="port of MindSpore's scheduler; the leader uses the next one"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.overrides and not options.config:
        parser.error(f"{options.overrides[0]}: overrides need a --config")
    require_between("--master-port", options.master_port, *PORTS)
    if options.rank_table and options.hosts is not None:
        raise LaunchError("--hosts: the rank table names the hosts; only one of them can; leave one of them out")
    lines = {}
    for kind, found in examine(site_of(options)):
        lines[kind] = found
        # Printed kind by kind, since a check may take up to a minute.
        if not options.json and found:
            colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
            print(pretty(kind, found, colour), file=raw(sys.stdout), flush=True)
    levels = [line.level for found in lines.values() for line in found]
    counts = {level: levels.count(level) for level in (OK, WARN, FAIL)}
    if options.json:
        print_json(as_json(lines, counts), ensure_ascii=False)
    else:
        print(", ".join(f"{count} {level}" for level, count in counts.items()))
    return EXIT_FAILED if counts[FAIL] else 0


def site_of(options: argparse.Namespace) -> Site:
    """The job as the options describe it, and this host."""
    table, fault = None, None
    if options.rank_table:
        from pangu_run.rank_table import RankTable

        try:
            table = RankTable.read(options.rank_table)
        except (RankTableError, OSError) as error:
            fault = str(error)
    output = options.output.absolute() if options.output else None
    config = ("--config", options.config, *options.overrides) if options.config else ()
    return Site(
        wanted_device=options.device,
        table=table,
        table_path=options.rank_table,
        table_fault=fault,
        hosts=() if options.hosts is None else tuple(host_names("--hosts", options.hosts)),
        master_address=options.master_address,
        server_id=options.server_id,
        output=output,
        config=config,
        master_port=options.master_port,
    )


def examine(site: Site) -> Iterator[tuple[str, list[Line]]]:
    """Run all checks, one kind after the other."""
    for kind, checks in KINDS.items():
        yield kind, [line for check in checks for line in run_check(check, site)]


def pretty(kind: str, lines: list[Line], colour: bool) -> str:
    """Lines of one kind for a terminal."""
    shown = [kind]
    for line in lines:
        level = f"{COLOURS[line.level]}{line.level:<4}\033[0m" if colour else f"{line.level:<4}"
        shown.append(f"  {level}  {line.what:<{_WIDTH}}  {printable(line.found)}")
        if line.fix:
            shown.append(f"  {'':<4}  {'':<{_WIDTH}}  -> {printable(line.fix)}")
    return "\n".join(shown)


def as_json(lines: dict[str, list[Line]], counts: dict[str, int]) -> dict[str, Any]:
    """All lines, and how many of each level."""
    rows = [{"kind": kind, **vars(line)} for kind, found in lines.items() for line in found]
    return {"host": socket.gethostname(), "time": time.time(), "counts": counts, "lines": rows}
