"""Figures of the analyses."""

from pathlib import Path
from typing import Any

from pangu_ms.core.figure import new_figure, require_plot, write_figure

PANELS = {
    "effective_dimension": "effective dimension d({share:g})",
    "token_cosine": "cosine of tokens",
    "relative_rank_one_distance": "relative distance to rank one",
}


def plot_collapse(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the measures over the layers: a panel for each measure, a line for each checkpoint.

    Args:
        results: what `run.collapse` returned, each with a `label` added; all with the same share.
        path: the figure to write, atomically.

    Raises:
        OutputError: the suffix is unknown, matplotlib is missing, or the path cannot be written.
    """
    require_plot(path)
    figure = new_figure(14, 4.5)
    axes = figure.subplots(1, len(PANELS))
    for axis, (field, title) in zip(axes, PANELS.items()):
        lines = []
        for result in results:
            numbers, values = [x["layer"] for x in result["layers"]], [x[field] for x in result["layers"]]
            lines += axis.plot(numbers, values, marker="o", markersize=3)
        axis.set(title=title.format(share=results[0]["share"]), xlabel="layer (0 is the embedding)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    labels = [r["label"].replace("$", r"\$") for r in results]  # matplotlib would typeset $...$ as a formula
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(labels), 4))
    write_figure(figure, path)
