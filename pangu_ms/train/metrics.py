"""Metrics of a run in its directory: metrics.jsonl, one JSON object per line. No mindspore import."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pangu_ms.core import small_json
from pangu_ms.core.errors import OutputError
from pangu_ms.core.files import open_ordinary, write_bytes


class MetricsFile:
    """A Tracker that appends to `metrics.jsonl`; a resumed run first removes the lines after its checkpoint."""

    def __init__(self, output: Path, first_step: int):
        self.path = output / "metrics.jsonl"
        if self.path.exists():
            write_bytes(self.path, b"".join(line for line in _lines(self.path) if _step_of(line) < first_step))
        self._file = open(self.path, "a", buffering=1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of a step (0 is the first)."""
        # JSON has no NaN: a loss that is not finite is written as its name.
        self._write({"step": step} | {k: v if math.isfinite(v) else str(v) for k, v in values.items()})

    def note(self, step: int, **texts: str) -> None:
        """Write texts about what happened before a step."""
        self._write({"step": step} | texts)

    def _write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + "\n")

    def finish(self) -> None:
        """Flush and close."""
        self._file.close()


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_ordinary(path) as file:
            yield from file
    except ValueError as error:
        raise OutputError(
            f"{path}: {error}; a run appends its metrics there; remove it or name a new --output"
        ) from None


def _step_of(line: bytes) -> float:
    """The step that a line belongs to; infinity if a crash truncated or emptied the line."""
    try:
        step = small_json.parse_object(line, finite=False).get("step")
    except ValueError:
        return math.inf
    return step if type(step) is int and line.endswith(b"\n") else math.inf
