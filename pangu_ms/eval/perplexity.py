"""Held-out loss of a model: mean cross-entropy, perplexity, bits per byte."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from pangu_ms.config.base import ModelConfig
from pangu_ms.data.loader import Batch, batch_from_ids
from pangu_ms.data.records import RecordSet
from pangu_ms.errors import DataError
from pangu_ms.models.loss import TokenLoss, mean_loss, to_tensors


@dataclass(frozen=True)
class Score:
    """Cross-entropy over the positions that count."""

    total_nats: float
    """Sum of the cross-entropy."""
    num_tokens: float
    """Number of predicted tokens."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return mean_loss(self.total_nats, self.num_tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


class Evaluator:
    """Compiles the loss once and scores batches; all must have one shape."""

    def __init__(self, model: nn.Cell, config: ModelConfig):
        self.loss = TokenLoss(model)
        self.no_dropout = Tensor(0, ms.int32)

    def score(self, batches: Iterable[Batch]) -> Score:
        """Sum over all batches."""
        total = count = 0.0
        self.loss.set_train(False)
        for batch in batches:
            batch_total, batch_count = self.loss(*to_tensors(batch), self.no_dropout)
            total, count = total + batch_total.asnumpy().item(), count + batch_count.asnumpy().item()
        return Score(total, count)


def num_batches(records: RecordSet, batch_size: int, max_batches: int = 0) -> int:
    """Number of batches that `sequential_batches` makes.

    Raises:
        DataError: a size or number that makes no batch.
    """
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}: must be at least 1")
    if max_batches < 0:
        raise DataError(f"max_batches={max_batches}: must be at least 0; 0 scores all")
    available = -(-records.num_rows // batch_size)
    return min(available, max_batches or available)


def sequential_batches(records: RecordSet, batch_size: int, eod_reset: bool, max_batches: int = 0) -> Iterator[Batch]:
    """Batches in file order, all of one size: the last is filled up with rows that do not count. `max_batches` 0 means all."""
    for i in range(num_batches(records, batch_size, max_batches)):
        ids = records.read_rows(np.arange(i * batch_size, min((i + 1) * batch_size, records.num_rows)))
        missing = batch_size - len(ids)
        padding = np.full((missing, ids.shape[1]), records.pad_id, np.int32)  # the pad token never counts
        yield batch_from_ids(np.concatenate([ids, padding]), records.eod_id, records.pad_id, eod_reset)
