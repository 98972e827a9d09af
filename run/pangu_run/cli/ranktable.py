"""`pangu ranktable ACTION`: rank tables."""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from pangu_ms.core import files
from pangu_ms.core.console import USER_ERROR, show, tell
from pangu_ms.core.errors import RankTableError
from pangu_ms.core.parser import NewFile, Parser
from pangu_ms.core.table import print_json, table_lines
from pangu_run import program
from pangu_run.cli.options import MAX_S, require_between
from pangu_run.rank_table.forms import FORMS, as_form, made_table, merged
from pangu_run.rank_table.hccn import HCCN_CONF, HCCN_TOOL, device_addresses, read_lines
from pangu_run.rank_table.table import RankTable, check, misplaced, wait_completed

SHOWN_FAULTS = 100
MAX_DEVICES = 16
"""Devices of the largest server."""
TIMEOUT_S = 1800.0
"""The time for which HCCL waits for a table that is not completed yet."""
HOSTS_HELP = (
    "names or addresses, separated by commas; or a file with a host on each line, optionally followed by the addresses"
    " of its devices, separated by commas"
)
IPS_HELP = (
    "addresses, host by host, in order of --devices, separated by commas; `none` for a single server without addresses;"
    " without this option the addresses of this host are looked up"
)


def main(argv: list[str] | None = None) -> int:
    """Entry of the verb; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else USER_ERROR
    if argv[0] not in ACTIONS:
        near = difflib.get_close_matches(argv[0], ACTIONS, 1) or [", ".join(ACTIONS)]
        raise RankTableError(f"no action {argv[0]!r}; known ones are in `pangu ranktable --help`; use {near[0]}")
    _, run, _ = ACTIONS[argv[0]]
    return run(action_parser(argv[0]).parse_intermixed_args(argv[1:]))


def build_parser() -> Parser:
    """The parser of the verb, with the parsers of all actions as subparsers. `main` uses only the parser of the action
    that it runs."""
    parser = Parser(prog="pangu ranktable", description=__doc__)
    parser_class: Any = _build  # argparse calls it for each action with the arguments of add_parser
    actions = parser.add_subparsers(metavar="ACTION", parser_class=parser_class)
    for action, (_, _, summary) in ACTIONS.items():
        actions.add_parser(action, help=summary, action=action)
    return parser


def _build(action: str, **_: Any) -> Parser:
    return action_parser(action)


def action_parser(action: str) -> Parser:
    """The parser of one action."""
    add_arguments, _, summary = ACTIONS[action]
    description = f"{summary[0].upper()}{summary[1:]}."
    parser = Parser(prog=f"pangu ranktable {action}", description=description)
    add_arguments(parser)
    return parser


def usage() -> str:
    """What `--help` shows."""
    lines = [__doc__ or "", "", "usage: pangu ranktable ACTION [options]", ""]
    lines += [f"  {name:<8} {summary}" for name, (_, _, summary) in ACTIONS.items()]
    return "\n".join([*lines, "", "`pangu ranktable ACTION --help` shows its options"])


def add_make(parser: argparse.ArgumentParser) -> None:
    """Options of `make`."""
    parser.add_argument("--hosts", required=True, metavar="LIST|FILE", help=HOSTS_HELP)
    parser.add_argument(
        "--devices", default="8", metavar="N|IDS", help="devices of each host: their number, or a list (4-7 or 0,2)"
    )
    parser.add_argument("--device-ips", metavar="LIST", help=IPS_HELP)
    parser.add_argument(
        "--hccn-conf", default=HCCN_CONF, metavar="FILE", help="file with the addresses of this host's devices"
    )
    parser.add_argument(
        "--hccn-tool",
        default=HCCN_TOOL,
        metavar="PROGRAM",
        help="program that is asked for addresses that --hccn-conf does not have",
    )
    _add_output(parser)


def run_make(args: argparse.Namespace) -> int:
    """Make a table from hosts and addresses, and write it."""
    hosts, device_ids = read_hosts(args.hosts), read_device_ids(args.devices)
    return _write(
        made_table([host for host, _ in hosts], device_ids, _device_ips(args, hosts, device_ids)).as_dict(), args.output
    )


def _device_ips(
    args: argparse.Namespace, hosts: list[tuple[str, list[str]]], device_ids: list[int]
) -> list[list[str]] | None:
    size = len(device_ids)
    if args.device_ips == "none":
        return None
    if args.device_ips is not None:
        ips = args.device_ips.split(",")
        if len(ips) != len(hosts) * size:
            raise RankTableError(
                f"--device-ips: {len(ips)} addresses; {len(hosts)} hosts with {size} devices each need"
                f" {len(hosts) * size}; give all"
            )
        return [ips[h * size : (h + 1) * size] for h in range(len(hosts))]
    if any(ips for _, ips in hosts):
        for host, ips in hosts:
            if len(ips) != size:
                raise RankTableError(
                    f"{args.hosts}: {host} has {len(ips)} addresses; each host has {size} devices; give an address of"
                    " each, or --devices"
                )
        return [ips for _, ips in hosts]
    if len(hosts) > 1:
        rule = (
            "addresses of other hosts' devices are not known here; give them in the file of --hosts, or make a table on"
            " each host and `merge` them"
        )
        raise RankTableError(f"--hosts: {len(hosts)} hosts; {rule}")
    return [device_addresses(device_ids, args.hccn_conf, args.hccn_tool)]


def read_hosts(text: str) -> list[tuple[str, list[str]]]:
    """The hosts that an option names, each with the addresses of its devices if a file gives them.

    Raises:
        RankTableError: there is no host.
    """
    if Path(text).is_file():
        rows = [line.split("#")[0].split() for line in read_lines(Path(text))]
        hosts = [(row[0], [ip for word in row[1:] for ip in word.split(",") if ip]) for row in rows if row]
    else:
        hosts = [(host.strip(), []) for host in text.split(",") if host.strip()]
    if not hosts:
        raise RankTableError(f"--hosts {text}: no host; a table has at least one; name it")
    return hosts


def read_device_ids(text: str) -> list[int]:
    """The devices that an option names: "8" means 0 to 7; "4-7" and "0,2" list the devices.

    Raises:
        RankTableError: the text is of another form.
    """
    try:
        if text.strip().isdigit():
            spans = [[0, int(text) - 1]]
        else:
            spans = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
    except ValueError:
        spans = []
    # One more than allowed suffices to refuse the rest: 0-999999999 would fill the memory.
    ids = [device for span in spans for device in range(span[0], span[-1] + 1)[: MAX_DEVICES + 1]]
    if not 0 < len(ids) <= MAX_DEVICES or len(set(ids)) != len(ids):
        raise RankTableError(
            f"--devices {text}: must be 1 to {MAX_DEVICES} devices, each once; write a number such as 8, or ids such as"
            " 4-7 or 0,2"
        )
    return sorted(ids)


def add_merge(parser: argparse.ArgumentParser) -> None:
    """Options of `merge`."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="tables, in the order in which their ranks are numbered"
    )
    _add_output(parser)


def run_merge(args: argparse.Namespace) -> int:
    """Merge several tables, and write the result."""
    return _write(merged([RankTable.read(file) for file in args.files], args.files).as_dict(), args.output)


def add_show(parser: argparse.ArgumentParser) -> None:
    """Options of `show`."""
    _add_file(parser)
    _add_json(parser)


def run_show(args: argparse.Namespace) -> int:
    """Print a table."""
    table = RankTable.read(args.file)
    rows = [
        {
            "rank": rank,
            "server": server.server_id,
            "device": device.device_id,
            "device_ip": device.device_ip,
            "super_pod": server.super_pod_id,
        }
        for rank, (server, device) in table.ranks().items()
    ]
    if args.json:
        print_json({"version": table.version, "servers": len(table.servers), "world": table.world, "ranks": rows})
        return 0
    names = [name for name in rows[0] if name != "super_pod" or any(row[name] is not None for row in rows)]
    cells = [["-" if row[name] is None else row[name] for name in names] for row in rows]
    show(_summary(args.file, table))
    show("\n".join(table_lines(names, cells, "<" * len(names))))
    return 0


def add_check(parser: argparse.ArgumentParser) -> None:
    """Options of `check`."""
    _add_file(parser)
    parser.add_argument("--world", type=int, metavar="N", help="number of ranks that the table must have")
    _add_config(parser, required=False)
    _add_json(parser)


def run_check(args: argparse.Namespace) -> int:
    """Print every fault; the exit code is 2 if there are any."""
    if args.config is None and args.overrides:
        raise RankTableError(f"{args.overrides[0]}: overrides change a plan; name the plan by --config")
    plan = program.placement(["--config", args.config, *args.overrides]) if args.config is not None else None
    if args.world is not None and plan is not None and args.world != plan.world:
        raise RankTableError(
            f"--world {args.world}: the plan of {args.config} has {plan.world} ranks; must be equal; leave out --world"
        )
    placement = plan.placement if plan is not None and plan.device != program.CPU else None  # CPU ranks go anywhere
    faults = check(args.file, plan.world if plan else args.world, placement)
    if args.json:
        print_json([fault.as_dict() for fault in faults])
    elif faults:
        show(
            "\n".join(
                [
                    f"{args.file}: {len(faults)} fault{'s' * (len(faults) > 1)}",
                    *(f"  {fault}" for fault in faults[:SHOWN_FAULTS]),
                ]
            )
        )
        if len(faults) > SHOWN_FAULTS:
            print(f"  and {len(faults) - SHOWN_FAULTS} more; --json has all")
    else:
        table = RankTable.read(args.file)
        show(_summary(args.file, table) + ", no faults")
        if placement is not None and (elsewhere := misplaced(table, placement)):
            how = "`pangu launch` numbers them so by itself; for another launcher do it by `pangu ranktable order`"
            show(
                f"  {len(elsewhere)} of {table.world} ranks are not where the plan wants them (the first is"
                f" {elsewhere[0]}): {how}"
            )
    return USER_ERROR if faults else 0


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Options of `convert`."""
    _add_file(parser)
    parser.add_argument("--to", choices=FORMS, help="form (default: 1.2 where the table has super pods, else 1.0)")
    _add_output(parser)


def run_convert(args: argparse.Namespace) -> int:
    """Convert a table to another form, and write it."""
    table = RankTable.read(args.file, lenient=True)
    if args.to not in (None, "1.2") and table.has_super_pods:
        print(
            f"pangu ranktable: {args.file}: form {args.to} has no super pods, so they are left out; without --to they"
            " are kept",
            file=sys.stderr,
        )
    return _write(as_form(table, args.to) if args.to else table.as_dict(), args.output)


def add_wait(parser: argparse.ArgumentParser) -> None:
    """Options of `wait`."""
    _add_file(parser)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds to wait")


def run_wait(args: argparse.Namespace) -> int:
    """Wait until a table is completed; meanwhile print what is missing."""
    require_between("--timeout", args.timeout, 0, MAX_S)
    show(_summary(args.file, wait_completed(args.file, args.timeout, tell)))
    return 0


def add_order(parser: argparse.ArgumentParser) -> None:
    """Options of `order`."""
    _add_file(parser)
    _add_config(parser, required=True)
    _add_output(parser)


def run_order(args: argparse.Namespace) -> int:
    """Renumber the ranks of a table in the order of a plan, and write it."""
    table = RankTable.read(args.file)
    return _write(
        table.ordered(program.placement(["--config", args.config, *args.overrides]).placement).as_dict(), args.output
    )


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="rank table")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", action=NewFile, metavar="FILE", help="new file to write the table to; otherwise it is printed"
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _add_config(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--config", required=required, metavar="NAME", help="YAML file or shipped config whose plan the table is for"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="override a field, e.g. parallel.data_parallel=2"
    )


def _write(value: dict[str, Any], output: str | None) -> int:
    if output is None:
        print(json.dumps(value, indent=2))
    else:
        files.write_new(Path(output), files.json_text(value))
        show(_summary(output, RankTable.read(output)))
    return 0


def _summary(name: str, table: RankTable) -> str:
    return f"{name}: form {table.version}, {len(table.servers)} servers, {table.world} ranks"


ACTIONS = {
    "make": (add_make, run_make, "a table from hosts and the addresses of their devices"),
    "merge": (add_merge, run_merge, "one table from those of several hosts"),
    "show": (add_show, run_show, "ranks, servers and devices of a table"),
    "check": (add_check, run_check, "every fault of a table; with --world or --config also whether it fits a plan"),
    "convert": (
        add_convert,
        run_convert,
        "write a table in another form; mends numbers for strings, a byte order mark, a missing version or status",
    ),
    "wait": (add_wait, run_wait, "wait until the scheduler has completed a table"),
    "order": (add_order, run_order, "number the devices as a plan wants them: the heaviest traffic inside servers"),
}
