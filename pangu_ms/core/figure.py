"""Writes figures to files. The file name is checked before the work starts, and the file is written atomically.
matplotlib is imported only when a figure is drawn."""

import importlib.util
import io
from pathlib import Path
from typing import Any

from pangu_ms.core import files
from pangu_ms.core.errors import OutputError

FORMATS = (".png", ".svg", ".pdf")


def require_plot(path: Path) -> None:
    """Raise OutputError unless a figure can be drawn into a file of that name: its format is known and matplotlib is
    installed."""
    if path.suffix.lower() not in FORMATS:
        raise OutputError(
            f"--plot {path}: the name tells the format; it must end in {', '.join(FORMATS)}; name another file"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError('--plot: matplotlib is not installed; run: pip install "pangu-ms[plot]"')


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure of this size in inches. It is made without pyplot, so there is no window and no global
    state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure in the format that the suffix of `path` names.

    Raises:
        OutputError: `path` exists or cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=150)
    files.write_new(path, content.getvalue())
