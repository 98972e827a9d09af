"""Metrics of a run: one JSON object per line, and TensorBoard where asked. No mindspore import."""

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_ms.core import small_json
from pangu_ms.core.errors import OutputError
from pangu_ms.core.files import open_ordinary, write_bytes


class MetricsWriter:
    """Appends to `metrics.jsonl`; a resumed run first drops the lines behind its checkpoint."""

    def __init__(self, directory: Path, first_step: int, tensorboard: bool):
        self.path = directory / "metrics.jsonl"
        if self.path.exists():
            write_bytes(self.path, b"".join(line for line in _lines(self.path) if _step_of(line) < first_step))
        self.file = open(self.path, "a", buffering=1)
        self.board = _tensorboard_writer(directory / "tensorboard", first_step) if tensorboard else None

    def write(self, step: int, **values: float) -> None:
        """Write values of a step (0 is the first)."""
        # JSON has no NaN: a loss that is not finite is written as its name.
        self._line({"step": step} | {k: v if math.isfinite(v) else str(v) for k, v in values.items()})
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def note(self, step: int, **words: str) -> None:
        """Write what happened before a step."""
        self._line({"step": step} | words)

    def _line(self, values: dict[str, Any]) -> None:
        self.file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Flush and close."""
        self.file.close()
        if self.board:
            self.board.close()


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_ordinary(path) as file:
            yield from file
    except ValueError as error:
        raise OutputError(
            f"{path}: {error}; a run appends its metrics there; remove it or name a new --output"
        ) from None


def _step_of(line: bytes) -> float:
    """The step that a line tells of; infinity where a crash cut or emptied it."""
    try:
        step = small_json.parse_object(line, finite=False).get("step")
    except ValueError:
        return math.inf
    return step if type(step) is int and line.endswith(b"\n") else math.inf


def require_tensorboard() -> None:
    """Raise OutputError unless tensorboardX is installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise OutputError('--tensorboard: tensorboardX is not installed; run: pip install "pangu-ms[tensorboard]"')


def _tensorboard_writer(directory: Path, first_step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory), purge_step=first_step)
