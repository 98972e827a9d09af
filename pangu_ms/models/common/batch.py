"""The arrays that a step reads. Legend: B batch, S sequence length."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from pangu_ms.models.common.config import ModelConfig

INPUTS = ("ids", "positions", "segments", "loss_mask")
"""Names of the arrays that every family reads; `ModelConfig.extra_inputs` names further ones."""


@dataclass(frozen=True)
class Batch:
    """The arrays that one training or evaluation step reads.

    Attributes:
        ids: int32 [B, S+1]; input is ids[:, :-1], labels are ids[:, 1:].
        positions: int32 [B, S].
        segments: int32 [B, S], number of the document in its row; a token attends only to tokens with the same number.
        loss_mask: float32 [B, S], 0 where the input token is pad or eod.
        extra: the family's extra inputs by name, in the order of `ModelConfig.extra_inputs`; the first dimension is B.
    """

    ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    loss_mask: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """All arrays in the order of a graph's inputs: INPUTS, then the extra ones."""
        return self.ids, self.positions, self.segments, self.loss_mask, *self.extra.values()

    def split(self, parts: int) -> Iterator["Batch"]:
        """Cut into micro-batches of B / parts rows, in order."""
        for ids, positions, segments, loss_mask, *extra in zip(*(np.split(array, parts) for array in self.arrays())):
            yield Batch(ids, positions, segments, loss_mask, dict(zip(self.extra, extra)))

    def take(self, order: np.ndarray) -> "Batch":
        """The rows of these numbers, in this order."""
        ids, positions, segments, loss_mask, *extra = (array[order] for array in self.arrays())
        return Batch(ids, positions, segments, loss_mask, dict(zip(self.extra, extra)))

    def with_extra(self, extra: dict[str, np.ndarray]) -> "Batch":
        """The same rows with extra inputs."""
        return replace(self, extra=extra)


def blank_batch(model: ModelConfig, batch_size: int) -> Batch:
    """A batch of zeros with the shapes and dtypes that a model reads; the loss mask is 1 everywhere."""
    shape = (batch_size, model.seq_length)
    zeros = np.zeros(shape, np.int32)
    extra = {
        name: np.zeros(spec.shape(batch_size, model.seq_length), spec.dtype)
        for name, spec in model.extra_inputs().items()
    }
    ids = np.zeros((batch_size, model.seq_length + 1), np.int32)
    return Batch(ids, zeros, zeros, np.ones(shape, np.float32), extra)
