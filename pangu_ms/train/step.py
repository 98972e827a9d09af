"""One training step as a graph: loss, gradients, unscale, clip, guard, update.

A step whose loss or gradient is not finite, or whose loss exceeds a limit, leaves weights and moments untouched, inside
the graph.
"""

from dataclasses import dataclass
from typing import Protocol

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.common.initializer import initializer

import ascend_ops
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.heartbeat import STEP, beat
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.loss import TokenLoss, mean_loss, to_tensors
from pangu_ms.parallel.replicas import Replicas, SumOverReplicas
from pangu_ms.train.optimizer import AdamW

# HyperMap, not loops: see optimizer.py.
_sum_of_squares, _accumulate = ops.MultitypeFuncGraph("sum_of_squares"), ops.MultitypeFuncGraph("accumulate")


# Under a plan a rank has slices of gradients: by this mark MindSpore adds up their squares over all ranks, those of
# equal slices once.
_of_slices = ops.ExpandDims().add_prim_attr("grad_scale", True)


@_sum_of_squares.register("Tensor")
def _tensor_sum_of_squares(gradient):
    return _of_slices(ascend_ops.squared_norm(gradient), 0)


@_accumulate.register("Function", "Tensor", "Tensor", "Tensor")
def _accumulate_tensor(assign, first, total, gradient):
    return assign(total, ops.select(first, gradient, total + gradient))


class Gradients(nn.Cell):
    """Sum of losses, number of tokens that count, and gradients of loss_scale * (sum of losses) / (B * S).

    Dividing by the size of the micro-batch keeps float16 gradients in range; `GuardedUpdate` replaces it by the tokens
    that count.
    """

    def __init__(self, loss: TokenLoss, weights: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.value_and_grad = ops.value_and_grad(self.scaled, None, weights, has_aux=True)

    def scaled(self, ids_BS1, positions_BS, segments_BS, mask_BS, key, scale):
        total, count = self.loss(ids_BS1, positions_BS, segments_BS, mask_BS, key)
        return total * (scale / mask_BS.size), (total, count)

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, key, scale):
        (_, (total, count)), gradients = self.value_and_grad(ids_BS1, positions_BS, segments_BS, mask_BS, key, scale)
        return total, count, gradients


class GuardedUpdate(nn.Cell):
    """Unscale and clip gradients, then update, unless something is not finite or the loss exceeds its limit."""

    def __init__(self, optimizer: AdamW, clip_norm: float, micro_batch_tokens: int, num_uncounted: int = 0):
        """`num_uncounted`: leading gradients that the norm leaves out, since another pipeline stage counts them."""
        super().__init__(auto_prefix=False)
        self.num_uncounted = num_uncounted
        self.optimizer, self.clip_norm, self.micro_batch_tokens = optimizer, clip_norm, float(micro_batch_tokens)
        self.hyper_map, self.add, self.sqrt, self.is_finite = ops.HyperMap(), ops.AddN(), ops.Sqrt(), ops.IsFinite()
        self.minimum, self.both = ops.Minimum(), ops.LogicalAnd()

    def construct(self, total, count, gradients, lr, scale, loss_limit):
        """-> (gradient norm of the mean loss before clipping, whether the update was applied)."""
        unscale = self.micro_batch_tokens / (scale * (count + 1e-5))
        norm = self.sqrt(self.add(self.hyper_map(_sum_of_squares, gradients[self.num_uncounted :])))[0] * unscale
        applied = self.both(self.is_finite(norm + total), total <= loss_limit * (count + 1e-5))
        if applied:
            factor = unscale
            if self.clip_norm > 0:
                factor = unscale * self.minimum(self.clip_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
            self.optimizer(gradients, factor, lr)
        return norm, applied


class WholeStep(nn.Cell):
    """A batch that is one micro-batch: gradients and update in one graph."""

    def __init__(self, gradients: Gradients, update: GuardedUpdate):
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, key, lr, scale, loss_limit):
        total, count, gradients = self.gradients(ids_BS1, positions_BS, segments_BS, mask_BS, key, scale)
        norm, applied = self.update(total, count, gradients, lr, scale, loss_limit)
        return total, count, norm, applied


class GradientSums(nn.Cell):
    """Adds a micro-batch's gradients, loss and tokens to running sums, from zero on the first of a batch."""

    def __init__(self, gradients: Gradients, weights: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        self.sums = ParameterTuple(
            [
                Parameter(initializer("zeros", p.shape, ms.float32), "accumulated." + p.name, requires_grad=False)
                for p in weights
            ]
        )
        self.total = Parameter(Tensor(0.0, ms.float32), "accumulated_loss", requires_grad=False)
        self.count = Parameter(Tensor(0.0, ms.float32), "accumulated_tokens", requires_grad=False)
        self.assign, self.hyper_map = ops.Assign(), ops.HyperMap()

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, key, scale, keep):
        """`keep` is 0 for the first micro-batch of a batch, else 1 (float32 scalar)."""
        total, count, gradients = self.gradients(ids_BS1, positions_BS, segments_BS, mask_BS, key, scale)
        first = keep == 0.0  # select, not a product: the sums of a batch that overflowed are not finite
        self.hyper_map(ops.partial(_accumulate, self.assign, first), self.sums, gradients)
        self.assign(self.total, ops.select(first, total, self.total + total))
        self.assign(self.count, ops.select(first, count, self.count + count))
        return total


class ApplySums(nn.Cell):
    """The update from accumulated gradients, those of all replicas together."""

    def __init__(self, accumulated: GradientSums, update: GuardedUpdate, replicas: Replicas):
        super().__init__(auto_prefix=False)
        self.accumulated, self.update, self.stack = accumulated, update, ops.Stack()
        self.over_replicas = SumOverReplicas() if replicas.world > 1 else None

    def construct(self, lr, scale, loss_limit):
        total, count = (
            self.accumulated.total * 1.0,
            self.accumulated.count * 1.0,
        )  # values: a graph cannot return parameters
        gradients = self.accumulated.sums
        if self.over_replicas is not None:
            both = self.over_replicas((self.stack((total, count)),))[0]
            total, count = both[0], both[1]
            gradients = self.over_replicas(gradients)
        norm, applied = self.update(total, count, gradients, lr, scale, loss_limit)
        return total, count, norm, applied


@dataclass(frozen=True)
class StepResult:
    """What one step computed."""

    loss: float
    """Mean over the tokens that count, in nats."""
    grad_norm: float
    """Global norm before clipping."""
    applied: bool
    """False: the step was skipped, weights and moments are as before."""


class OptimizerStep(Protocol):
    """What the loop needs of a step, whoever executes it; owns the optimizer's state."""

    in_one_graph: bool
    """Whether one compiled graph is the whole step."""

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = float("inf")
    ) -> StepResult:
        """One optimizer step on this rank's batch; it is skipped when not finite or when the mean loss exceeds
        `loss_limit`."""

    def parameters(self) -> list[Parameter]:
        """The optimizer's state that this rank holds: first and second moments."""


def dropout_key(seed: int, step: int, micro_batch: int) -> np.int32:
    """A new key for every micro-batch of a run, the same when the run is repeated."""
    return np.int32(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1)[0] & 0x7FFFFFFF)


class TrainStep:
    """Runs optimizer steps on batches; owns the optimizer state. With replicas each of them calls it with its own part
    of the batch."""

    def __init__(self, model: nn.Cell, config: RunConfig, replicas: Replicas = Replicas()):
        self.config, self.replicas = config, replicas
        self.weights = ParameterTuple(model.trainable_params())
        decayed = {name for name, spec in config.model.parameters().items() if spec.decay}
        self.optimizer = AdamW(self.weights, config.optimizer, decayed)
        micro_tokens = config.train.batch_size // config.train.accumulation_steps * config.model.seq_length
        gradients = Gradients(TokenLoss(model), self.weights)
        update = GuardedUpdate(self.optimizer, config.optimizer.clip_norm, micro_tokens)
        self.in_one_graph = config.train.accumulation_steps == 1 and replicas.world == 1
        if self.in_one_graph:
            self.whole = WholeStep(gradients, update)
        else:
            self.accumulate = GradientSums(gradients, self.weights)
            self.apply = ApplySums(self.accumulate, update, replicas)

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = float("inf")
    ) -> StepResult:
        """One optimizer step; it is skipped when not finite or when the mean loss exceeds `loss_limit`."""
        seed, parts = self.config.train.seed, self.config.train.accumulation_steps
        controls = [Tensor(value, ms.float32) for value in (lr, scale, min(loss_limit, 3e38))]
        if self.in_one_graph:
            self.whole.set_train()  # an evaluation between steps switched the model's dropout off
            outputs = self.whole(*to_tensors(batch), Tensor(dropout_key(seed, step, 0)), *controls)
        else:
            self.accumulate.set_train()
            for i, micro in enumerate(batch.split(parts)):
                key = dropout_key(
                    seed, step, self.replicas.rank * parts + i
                )  # the micro-batch's place in the global batch
                total = self.accumulate(*to_tensors(micro), Tensor(key), controls[1], Tensor(float(i > 0), ms.float32))
            total.asnumpy()  # the device has finished: nothing but the sum over the replicas is left to wait for
            self.replicas.agree()
            beat(STEP, step)
            outputs = self.apply(*controls)
        total, count, norm, applied = (output.asnumpy().item() for output in outputs)
        return StepResult(mean_loss(total, count), norm, bool(applied))

    def parameters(self) -> list[Parameter]:
        """The optimizer's state: first and second moments."""
        return [*self.optimizer.m, *self.optimizer.v]
