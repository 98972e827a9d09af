"""The interface of optimizer steps, and helpers that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.loss import TokenLoss, mean_loss, to_tensors

NO_LIMIT = float("inf")
LARGEST_LIMIT = 3e38
"""Replaces NO_LIMIT in a graph, where limit * tokens would be infinity * 0 = NaN without tokens; nearly the largest
float32."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step, the same on all ranks."""

    total_loss: float
    """Sum of the cross-entropy over the tokens that count, in nats."""
    num_tokens: float
    """Number of tokens that count."""
    grad_norm: float
    """Global norm of the gradient of the mean loss, before clipping."""
    applied: bool
    """False if the step was skipped; weights and moments are then unchanged."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further values to log: `balance_loss`, that of this process's last micro-batch, of a model that has one."""

    @classmethod
    def of(cls, outputs: Sequence[Tensor], loss: TokenLoss | None = None) -> "StepResult":
        """From a graph's outputs (total loss, tokens, norm, applied); waits for the device. `loss` is the loss of the
        graph, if it may have a balance loss."""
        total, count, norm, applied = (output.asnumpy().item() for output in outputs)
        metrics = {}
        if loss is not None and loss.balance_loss is not None:
            metrics["balance_loss"] = loss.balance_loss.asnumpy().item()
        return cls(total, count, norm, bool(applied), metrics)

    @property
    def loss(self) -> float:
        """Mean over the tokens that count, in nats."""
        return mean_loss(self.total_loss, self.num_tokens)


class OptimizerStep(Protocol):
    """Takes optimizer steps on batches; owns the optimizer's state."""

    in_one_graph: bool
    """Whether one compiled graph computes the whole step."""

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT
    ) -> StepResult:
        """Take a step. The step is skipped if the loss or the gradient norm is not finite, or the mean loss exceeds
        `loss_limit`.

        Args:
            batch: this rank's part of the global batch; with a plan the whole global batch on every rank.
            step: number of optimizer steps done, from which dropout is seeded.
            lr: learning rate.
            scale: loss scale.
            loss_limit: largest mean loss, in nats.
        """

    def parameters(self) -> list[Parameter]:
        """The optimizer's state that this rank holds: first and second moments."""


def dropout_key(seed: int, step: int, micro_batch: int) -> np.int32:
    """A new key for every micro-batch of a run, the same when the run is repeated."""
    return np.int32(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1)[0] & 0x7FFFFFFF)


def control_tensors(lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT) -> tuple[Tensor, ...]:
    """Learning rate, loss scale and loss limit as a graph takes them: float32 scalars."""
    return tuple(Tensor(value, ms.float32) for value in (lr, scale, min(loss_limit, LARGEST_LIMIT)))


class GraphStep:
    """An optimizer step that is computed by one graph.

    The inputs of `whole_batch.WholeStep` are those of TokenLoss, then the controls. `micro_batches.MicroBatchStep` has
    one dropout key for each micro-batch, and its controls are parameters that are set before the call.
    """

    in_one_graph = True

    def __init__(self, cell: nn.Cell, seed: int, num_micro_batches: int = 1, loss: TokenLoss | None = None):
        """`seed` is that of dropout: train.seed. For `loss` see StepResult.of."""
        self.cell, self.seed, self.num_micro_batches, self.loss = cell, seed, num_micro_batches, loss

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT
    ) -> StepResult:
        """See OptimizerStep."""
        return StepResult.of(self.cell(*self.inputs(batch, step, lr, scale, loss_limit)), self.loss)

    def inputs(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT
    ) -> tuple[Tensor, ...]:
        """The graph's inputs; with several micro-batches this also sets the controls."""
        keys = [dropout_key(self.seed, step, i) for i in range(self.num_micro_batches)]
        if self.num_micro_batches == 1:
            return *to_tensors(batch), Tensor(keys[0]), *control_tensors(lr, scale, loss_limit)
        self.control(lr, scale, min(loss_limit, LARGEST_LIMIT))
        return *to_tensors(batch), Tensor(np.array(keys, np.int32))

    def control(self, lr: float, scale: float, loss_limit: float) -> Any:
        """Set the controls of a `MicroBatchStep`."""
        self.cell.control(lr, scale, loss_limit)

    def parameters(self) -> list[Parameter]:
        """See OptimizerStep."""
        optimizer = self.cell.update.optimizer
        return [*optimizer.m, *optimizer.v]
