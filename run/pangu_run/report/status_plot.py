"""`pangu status --plot`: plots the steps of a job over time, the current steps of its ranks, and its events. matplotlib
is imported only when a plot is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pangu_ms.core.figure import new_figure, write_figure
from pangu_run.report.status import JobStatus

MARKS = {
    "failure": "tab:red",
    "hang": "tab:purple",
    "restart": "tab:orange",
    "signal": "tab:brown",
    "slow": "tab:olive",
    "ended": "black",
}


def draw(job: Path, status: JobStatus, events: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the step events of each attempt as a line, checkpoints as points, other events as vertical lines, and the
    current step of each rank.

    Raises:
        OutputError: `path` exists or cannot be written.
    """
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    start = events[0]["time"] if events else 0.0
    for attempt in sorted({event["attempt"] for event in events}):
        steps = [event for event in events if event["event"] == "step" and event["attempt"] == attempt]
        axes.plot(
            [event["time"] - start for event in steps], [event["step"] for event in steps], label=f"attempt {attempt}"
        )
    saved = [event for event in events if event["event"] == "checkpoint"]
    axes.plot(
        [event["time"] - start for event in saved],
        [event["step"] for event in saved],
        "kv",
        markersize=5,
        label="checkpoint",
    )
    named = set()
    for event in events:
        if color := MARKS.get(event["event"]):
            axes.axvline(
                event["time"] - start,
                color=color,
                linestyle=":",
                label=None if event["event"] in named else event["event"],
            )
            named.add(event["event"])
    _ranks(axes, status, events, start)
    axes.set(
        xlabel="s since the first attempt began",
        ylabel="step",
        title=f"{status.id}: {status.state}, {len(status.ranks)} ranks ({job})",
    )
    axes.legend(loc="upper left", fontsize="small")
    write_figure(figure, path)


def _ranks(axes: Any, status: JobStatus, events: Sequence[dict[str, Any]], start: float) -> None:
    """Mark the current step of each rank; the marks coincide unless some ranks are behind."""
    known = [rank for rank in status.ranks if rank.step is not None]
    if known and events:
        last = max(event["time"] for event in events) - start
        colors = ["tab:red" if rank.notes else "tab:green" for rank in known]
        axes.scatter(
            [last] * len(known), [rank.step for rank in known], s=18, color=colors, label="ranks now", zorder=3
        )
