"""The cost of an engine's steps, fitted to measured ones, and its file. numpy only."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.infer.scheduling.simulator import GraphCost

FORMAT = 1
STALL = 5.0
"""Steps that took longer than so many times the median of their graph were interrupted, and say nothing about it."""


class MeasuredStep(NamedTuple):
    """One step of an engine.

    Attributes:
        slots: of the graph.
        rows: decoding slots.
        prompt_tokens: of the chunk; 0: there was none.
        cached_tokens: that the decoding slots attended to.
        seconds: how long it took, with everything that the engine does.
    """

    slots: int
    rows: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float


@dataclass(frozen=True)
class StepCosts:
    """What was measured of one model on one machine.

    Attributes:
        cost: for the simulator.
        chunk: the most prompt tokens of a step.
        checkpoint: digest of the checkpoint's manifest.
    """

    cost: GraphCost
    chunk: int
    checkpoint: str


def fit(steps: Sequence[MeasuredStep]) -> GraphCost:
    """Least squares: seconds of each graph, with a chunk and without, and for each row and each cached token. A row or
    cached token that would cost less than nothing, which noise can say, costs nothing.

    Raises:
        ValueError: there is no step with a chunk, or none without, of a number of slots.
    """
    kinds = sorted({(step.slots, step.prompt_tokens > 0) for step in steps})
    if {(slots, chunk) for slots, _ in kinds for chunk in (False, True)} != set(kinds):
        raise ValueError(f"measured steps of {kinds}: each number of slots needs some with a chunk and some without")
    kept = [step for kind in kinds for step in _without_stalls([one for one in steps if _kind(one) == kind])]
    graphs = np.array([[float(_kind(step) == kind) for kind in kinds] for step in kept])
    more = np.array([(step.rows, step.cached_tokens) for step in kept], np.float64)
    seconds = np.array([step.seconds for step in kept])
    found = min(_fits(graphs, more, seconds), key=lambda one: one[0])[1]
    of_kind = {kind: max(float(value), 0.0) for kind, value in zip(kinds, found)}
    decode, with_chunk = ({slots: of_kind[slots, chunk] for slots, _ in kinds} for chunk in (False, True))
    return GraphCost(decode, with_chunk, float(found[-2]), float(found[-1]))


def _kind(step: MeasuredStep) -> tuple[int, bool]:
    return step.slots, step.prompt_tokens > 0


def _without_stalls(steps: list[MeasuredStep]) -> list[MeasuredStep]:
    median = float(np.median([step.seconds for step in steps]))
    return [step for step in steps if step.seconds <= STALL * median]


def _fits(graphs: np.ndarray, more: np.ndarray, seconds: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """(squared error, coefficients) with each subset of the columns of `more`, unless one of these is negative."""
    for used in itertools.product((0.0, 1.0), repeat=more.shape[1]):
        columns = np.hstack([graphs, more * used])
        found = np.linalg.lstsq(columns, seconds, rcond=None)[0]
        if (found[graphs.shape[1] :] >= 0).all():
            yield float(((columns @ found - seconds) ** 2).sum()), found


def save(path: Path, costs: StepCosts) -> None:
    """Write costs as a new JSON file.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    cost = costs.cost
    content: dict[str, Any] = {format_version.KEY: FORMAT, "checkpoint": costs.checkpoint, "chunk": costs.chunk}
    slots = list(cost.decode)
    content |= {"slots": slots, "decode": [cost.decode[n] for n in slots]}
    content |= {"with_chunk": [cost.with_chunk[n] for n in slots], "row": cost.row, "cached_token": cost.cached_token}
    files.write_new(path, json.dumps(content, indent=1) + "\n")


def load(path: Path) -> StepCosts:
    """Read what `save` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        content = small_json.read_object(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}; a file of `pangu schedule calibrate` is needed; correct it") from None
    if "slots" in content:
        format_version.require_known(content.get(format_version.KEY), FORMAT, path, DataError)
    wrong = small_json.misfit(content, _FORM) or _wrong_numbers(content)
    if wrong:
        raise DataError(f"{path}: {wrong}; not what `pangu schedule calibrate` writes; calibrate again")
    slots = content["slots"]
    decode, with_chunk = (dict(zip(slots, map(float, content[key]))) for key in ("decode", "with_chunk"))
    cost = GraphCost(decode, with_chunk, float(content["row"]), float(content["cached_token"]))
    return StepCosts(cost, content["chunk"], content["checkpoint"])


def _wrong_numbers(content: dict[str, Any]) -> str:
    slots = content["slots"]
    if not slots or not all(0 < n < 1 << 31 for n in slots):
        return "slots holds no numbers from 1 up"
    for key in ("decode", "with_chunk"):
        if len(content[key]) != len(slots) or not all(0 <= value <= small_json.TIME.most for value in content[key]):
            return f"{key} holds no time for each number of slots"
    return "" if all(content["decode"]) else "decode holds a step without time"


_SECONDS = small_json.TIME
_FORM: small_json.Form = {
    "checkpoint": str,
    "chunk": range(1, 1 << 20),
    "slots": [int],
    "decode": [float],
    "with_chunk": [float],
    "row": _SECONDS,
    "cached_token": _SECONDS,
}
