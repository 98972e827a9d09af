"""What a step reads. Legend: B batch, S sequence length."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """What one training or evaluation step reads.

    Attributes:
        ids: int32 [B, S+1]; input is ids[:, :-1], labels are ids[:, 1:].
        positions: int32 [B, S].
        segments: int32 [B, S], number of the document in its row; attention stays inside equal numbers.
        loss_mask: float32 [B, S], 0 where the input token is pad or eod.
    """

    ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    loss_mask: np.ndarray

    def split(self, parts: int) -> Iterator["Batch"]:
        """Cut into micro-batches of B / parts rows, in order."""
        fields = (np.split(array, parts) for array in (self.ids, self.positions, self.segments, self.loss_mask))
        return (Batch(*arrays) for arrays in zip(*fields))
