"""Held-out loss of a model: mean cross-entropy, perplexity, bits per byte."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn

from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.model import load_model
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.compile_cache import cached_compile
from pangu_ms.infer.packed_model import load_packed_model
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.loss import TokenLoss, mean_loss, to_tensors


@dataclass(frozen=True)
class Score:
    """Cross-entropy over the positions that the loss mask keeps."""

    total_nats: float
    """Sum of the cross-entropy."""
    num_tokens: float
    """Number of predicted tokens."""
    domains: Mapping[str, "Score"] = field(default_factory=dict)
    """The score of each domain, if there are several."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return mean_loss(self.total_nats, self.num_tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))  # math.exp overflows above 709


def combined(scores: Iterable[Score], domains: Sequence[str] = ()) -> Score:
    """Add up scores.

    Args:
        scores: scores of batches.
        domains: the domain of each batch; by default all are of one domain.
    """
    total = nothing = Score(0.0, 0.0)
    by_domain: dict[str, Score] = {}
    for score, domain in zip(scores, domains or itertools.repeat("")):
        total = _sum(total, score)
        by_domain[domain] = _sum(by_domain.get(domain, nothing), score)
    return Score(total.total_nats, total.num_tokens, by_domain if len(by_domain) > 1 else {})


def _sum(a: Score, b: Score) -> Score:
    return Score(a.total_nats + b.total_nats, a.num_tokens + b.num_tokens)


class Evaluator:
    """Compiles the loss once and scores batches, which must all have the same shape."""

    def __init__(self, model: nn.Cell, config: RunConfig | None = None):
        """Wrap a model in its loss; nothing is compiled yet.

        Args:
            model: built from `config.model`.
            config: says where the compile cache is, which holds the compiled graph; None compiles without a cache.
        """
        self.loss = TokenLoss(model)
        self.config = config
        self.weights = ""  # dtype of packed weights
        self.no_dropout = Tensor(0, ms.int32)
        self.compiled = False

    @classmethod
    def load(cls, checkpoint: store.Checkpoint, config: RunConfig) -> "Evaluator":
        """The checkpoint's model on the device and in the dtype that `config` says. That of a quantized checkpoint
        computes as it does in generation.

        Raises:
            CheckpointError: names or shapes of the tensors are not those of the checkpoint's configuration.
        """
        if not checkpoint.quantized:
            return cls(load_model(checkpoint, config), config)
        evaluator = cls(load_packed_model(checkpoint, config), config)
        evaluator.weights = checkpoint.quantized
        return evaluator

    def each(self, batches: Iterable[Batch]) -> Iterator[Score]:
        """Yield the score of each batch."""
        for batch in batches:
            if self.compiled:
                score = self._score(batch)
            else:
                with self._compile_cache(batch):
                    score = self._score(batch)
            self.compiled = True
            yield score

    def _score(self, batch: Batch) -> Score:
        self.loss.set_train(False)  # a training step on the same model may have switched dropout on
        total, count = self.loss(*to_tensors(batch), self.no_dropout)
        return Score(total.asnumpy().item(), count.asnumpy().item())

    def graph_config(self) -> dict[str, Any]:
        """What identifies the model of the graph."""
        assert self.config
        return config_to_dict(self.config)["model"]

    def _compile_cache(self, batch: Batch) -> AbstractContextManager[bool]:
        """The context for the first batch, whose call compiles the graph."""
        if self.config is None:
            return nullcontext(False)
        batch_size, row_length = batch.ids.shape
        identity = {
            "graph": "evaluate",
            "model": self.graph_config(),
            "device": self.config.runtime.device,
            "batch_size": batch_size,
            "row_length": row_length,
        }
        if self.weights:
            identity["weights"] = self.weights
        return cached_compile(self.config.runtime.compile_cache, identity)

    def score(self, batches: Iterable[Batch], domains: Sequence[str] = ()) -> Score:
        """The score of all batches together.

        Args:
            batches: batches of the same shape.
            domains: the domain of each batch; by default all are of one domain.
        """
        return combined(self.each(batches), domains)
