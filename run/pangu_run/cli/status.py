"""`pangu status`: show the state of a job's ranks. The exit code is 0 if the job runs or has succeeded, 1 if it failed
or its launcher is gone."""

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from pangu_ms.core import console
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.parser import NewFile, Parser
from pangu_ms.core.table import print_json, table_lines
from pangu_run.job_directory import JobDirectory
from pangu_run.report.ascend_errors import explain
from pangu_run.report.log_errors import failure_lines, failure_summary
from pangu_run.report.observe import observe
from pangu_run.report.status import GONE, STUCK, JobStatus, Rank, clock, duration, group_ranks, ranks_text

PLOT_HELP = "also plot steps over time and events to this new file (.png, .svg, .pdf; needs matplotlib)"
COLUMNS = ("rank", "host", "device", "state", "phase", "step", "tokens/s", "last beat", "")


def build_parser() -> Parser:
    """The parser of the verb."""
    parser = Parser(prog="pangu status", description=__doc__)
    parser.add_argument("dir", metavar="DIR", help="--output of a `pangu launch`, or the job directory in it")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show the status repeatedly until the job ends; with --json print a line each time",
    )
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds between two updates of --watch"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with all ranks")
    parser.add_argument("--plot", action=NewFile, metavar="FILE", help=PLOT_HELP)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb; returns the exit code."""
    args = build_parser().parse_args(argv)
    if not 0.1 <= args.interval <= 3600:
        raise LaunchError(f"--interval {args.interval:g}: must be from 0.1 to 3600 s; leave it out for 2")
    plot = Path(args.plot) if args.plot else None
    if plot:
        from pangu_ms.core.figure import require_plot

        require_plot(plot)
    directory = JobDirectory.find(args.dir)
    last = (
        watch(directory, args.interval, args.json)
        if args.watch and (args.json or sys.stdout.isatty())
        else show(directory, args.json)
    )
    if plot:
        from pangu_run.report.status_plot import draw

        draw(directory.path, observe(directory), directory.events(directory.job().get("id")), plot)
        console.tell(f"{plot}: written")
    return 0 if last.well else 1


def show(directory: JobDirectory, as_json: bool) -> JobStatus:
    """Print the status of the job once."""
    status = observe(directory)
    if as_json:
        print_json(dataclasses.asdict(status), ensure_ascii=False)
    else:
        console.show("\n".join(status_lines(status)))
    return status


def watch(directory: JobDirectory, interval: float, as_json: bool) -> JobStatus:
    """Print the status repeatedly until the job is over; on a terminal, each time in place of the last."""
    drawn = 0
    while True:
        if as_json:
            status = show(directory, True)
        else:
            status = observe(directory)
            size = shutil.get_terminal_size()
            # Cut to the width: a line that wraps would make the count of drawn lines wrong.
            lines = [console.printable(line)[: size.columns - 1] for line in status_lines(status)]
            lines = lines if status.over else _fitting(lines, size.lines - 1)
            # Up to the first line drawn before, and clear from there to the end of the screen.
            print(
                (f"\x1b[{drawn}F" if drawn else "") + "\x1b[J" + "\n".join(lines),
                file=console.raw(sys.stdout),
                flush=True,
            )
            drawn = len(lines)
        if status.over:
            return status
        time.sleep(interval)


def _fitting(lines: list[str], height: int) -> list[str]:
    return lines if len(lines) <= height else [*lines[: max(1, height - 1)], f"... {len(lines) - height + 1} more rows"]


def status_lines(status: JobStatus) -> list[str]:
    """The lines of the header and of the table."""
    return [*_header(status), "", *_table(group_ranks(status.ranks))] if status.ranks else _header(status)


def _header(status: JobStatus) -> list[str]:
    ended = f", exit code {status.exit_code}" if status.exit_code is not None else ""
    lines = [
        f"job {status.id}, attempt {status.attempt}, {status.state}{ended}"
        + (f", {status.restarts} restarts" if status.restarts else "")
    ]
    if status.state == GONE:
        lines.append(
            f"launcher gone since {clock(time.time() - (status.age_s or 0))} ({duration(status.age_s)}); it ended"
            " without a word"
        )
    if status.state == STUCK:
        lines.append(
            f"launcher lives but has written nothing for {duration(status.age_s)}: is its disk full or its host halted?"
        )
    lines.append(", ".join(_progress(status)))
    if status.slow:
        lines.append("slow: " + ", ".join(map(_slow, status.slow[:8])))
    if status.failure:
        lines.append(f"first cause: {failure_summary(status.failure)}")
        lines += [f"  -> {explanation.line}"] if (explanation := explain(failure_lines(status.failure))) else []
    return [line for line in lines if line]


def _progress(status: JobStatus) -> list[str]:
    total = f" of {status.total_steps}" if status.total_steps is not None else ""
    parts = [f"step {status.step}{total}"] if status.step is not None else []
    parts += [f"{status.tokens_per_second:,.0f} tokens/s"] if status.tokens_per_second is not None else []
    parts += [f"ETA {duration(status.eta_s)}"] if status.eta_s is not None else []
    return parts + (
        [f"checkpoint of step {status.checkpoint['step']} {duration(status.checkpoint['age_s'])} ago"]
        if status.checkpoint
        else []
    )


def _slow(report: dict[str, Any]) -> str:
    return f"rank {report['rank']} ({_seconds(report['seconds'])}, median {_seconds(report['median'])})"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _table(rows: list[Rank]) -> list[str]:
    return table_lines(COLUMNS, [_cells(row) for row in rows], "<" * len(COLUMNS))


def _cells(row: Rank) -> tuple[str, ...]:
    host = row.hosts[0] if len(row.hosts) == 1 else f"{len(row.hosts)} hosts" if row.hosts else "-"
    device, step = ("-" if value is None else str(value) for value in (row.device, row.step))
    speed = "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    ended = f"ended ({row.exit_code})" if row.state == "ended" and row.exit_code is not None else row.state
    return (
        ranks_text(row.ranks),
        host,
        device,
        ended,
        row.phase or "-",
        step,
        speed,
        duration(row.silent_s),
        ", ".join(row.notes),
    )
