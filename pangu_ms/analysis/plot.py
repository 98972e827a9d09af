"""Figures of the diagnostics. matplotlib is imported when one is drawn."""

import importlib.util
import io
from pathlib import Path
from typing import Any

from pangu_ms import files
from pangu_ms.errors import OutputError

FORMATS = (".png", ".svg")
PANELS = {
    "effective_dimension": "effective dimension d({share:g})",
    "token_cosine": "cosine of tokens",
    "relative_rank_one_distance": "relative distance to rank one",
}


def require_plot(path: Path) -> None:
    """Raise OutputError unless a figure can be drawn into a file of that name: its format is known and matplotlib is installed."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path}: must end with {' or '.join(FORMATS)}; name another --plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError('--plot: matplotlib is not installed; run: pip install "pangu-ms[plot]"')


def plot_collapse(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the measures over the layers, a panel each, a line for each checkpoint; written whole or not at all.

    Args:
        results: as `run.collapse` returns them, each with a `label`; all of one share.

    Raises:
        OutputError: unknown suffix, no matplotlib, or a place that cannot be written.
    """
    require_plot(path)
    from matplotlib.figure import Figure  # without pyplot there is no window and no global state

    figure = Figure(figsize=(14, 4.5), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (field, title) in zip(axes, PANELS.items()):
        lines = [axis.plot([x["layer"] for x in r["layers"]], [x[field] for x in r["layers"]], marker="o", markersize=3)[0] for r in results]
        axis.set(title=title.format(share=results[0]["share"]), xlabel="layer (0 is the embedding)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    labels = [r["label"].replace("$", r"\$") for r in results]  # no formulas in a path
    figure.legend(lines, labels, loc="outside lower center", ncols=min(len(labels), 4))
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=150)
    files.write_bytes(path, content.getvalue())
