"""Held-out loss of a model: mean cross-entropy, perplexity, bits per byte."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.model import load_model
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.compile_cache import cached_compile
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.loss import TokenLoss, mean_loss, to_tensors


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

    @classmethod
    def load(cls, checkpoint: store.Checkpoint, config: RunConfig) -> "Evaluator":
        """The checkpoint's model on the device and in the dtype that `config` says.

        Raises:
            CheckpointError: names or shapes are not those of its own configuration.
        """
        return cls(load_model(checkpoint, config), config.model)

    def each(self, batches: Iterable[Batch]) -> Iterator[Score]:
        """One score for every batch."""
        self.loss.set_train(False)
        for batch in batches:
            total, count = self.loss(*to_tensors(batch), self.no_dropout)
            yield Score(total.asnumpy().item(), count.asnumpy().item())

    def score(self, batches: Iterable[Batch]) -> Score:
        """Sum over all batches."""
        total = count = 0.0
        for score in self.each(batches):
            total, count = total + score.total_nats, count + score.num_tokens
        return Score(total, count)


def cached_evaluator(config: RunConfig, batch_size: int, row_length: int) -> AbstractContextManager[bool]:
    """Around an evaluator's first batch, which compiles: the graph comes from the compile cache, or goes to it."""
    identity = {"graph": "evaluate", "model": config_to_dict(config)["model"], "device": config.runtime.device}
    return cached_compile(config.runtime.compile_cache, identity | {"batch_size": batch_size, "row_length": row_length})
