"""The state of a run in a checkpoint (state.json), which is checked before it is used. No mindspore import."""

import json

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict  # pydantic accepts typing.TypedDict only from Python 3.12 on

from pangu_ms.checkpoint import store
from pangu_ms.core.errors import CheckpointError
from pangu_ms.train.guard import Guard


class Branch(TypedDict):
    """One branch of a run, as a checkpoint's state keeps it; see branch.py."""

    step: int
    changed: list[str]
    """"section.field=new (was old)"."""


@dataclass(frozen=True, config=ConfigDict(extra="ignore", strict=True, allow_inf_nan=False))
class RunState:
    """The state of a run after some steps."""

    step: int
    """Optimizer steps done."""
    guard: Guard
    order: str = ""
    """SHA-256 of the order file; "" without one."""
    branches: tuple[Branch, ...] = Field(default=(), validation_alias="bends")
    """Branches of the run; state.json has them under the name that earlier versions wrote."""
    graph_batch_size: int | None = None
    """Sequences in one call of the graph; None in checkpoints of version 0.1.0."""

    @classmethod
    def of(cls, checkpoint: store.Checkpoint) -> "RunState":
        """The state in a checkpoint, from which a run can continue.

        Raises:
            CheckpointError: state.json is damaged, or not of a run.
        """
        try:
            found: RunState = _TYPE.validate_json(json.dumps(checkpoint.state()))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"{checkpoint.path}: state.json: {field}: {first['msg']}; a run cannot go on from it; use another"
                " checkpoint"
            ) from None
        if found.step != checkpoint.step:
            raise CheckpointError(
                f"{checkpoint.path}: state.json says step {found.step}, the manifest {checkpoint.step}; use another"
                " checkpoint"
            )
        return found


_TYPE = TypeAdapter(RunState)
