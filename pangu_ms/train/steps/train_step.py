"""The optimizer step of a process that has the whole model: a single process, or one of several replicas on a CPU."""

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from pangu_ms.config.schema import RunConfig
from pangu_ms.core.heartbeat import STEP, beat
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.loss import TokenLoss, to_tensors
from pangu_ms.parallel.replicas import Replicas, SumOverReplicas
from pangu_ms.train.steps.gradients import Gradients, GradientSums
from pangu_ms.train.steps.protocol import NO_LIMIT, GraphStep, StepResult, control_tensors, dropout_key
from pangu_ms.train.steps.update import build_update
from pangu_ms.train.steps.whole_batch import WholeStep


class ApplySums(nn.Cell):
    """The graph of the update from accumulated gradients, summed over all replicas."""

    def __init__(self, accumulated: GradientSums, update: nn.Cell, replicas: Replicas):
        """`update` as for `WholeStep`."""
        super().__init__(auto_prefix=False)
        self.accumulated, self.update, self.stack = accumulated, update, ops.Stack()
        self.over_replicas = SumOverReplicas() if replicas.world > 1 else None

    def construct(self, lr, scale, loss_limit):
        """-> sum of losses, tokens that count, gradient norm, whether the update was applied."""
        # * 1.0 turns the parameters into values, because a graph cannot return parameters.
        total, count = self.accumulated.total * 1.0, self.accumulated.count * 1.0
        gradients = self.accumulated.sums
        if self.over_replicas is not None:
            both = self.over_replicas((self.stack((total, count)),))[0]
            total, count = both[0], both[1]
            gradients = self.over_replicas(gradients)
        return (total, count) + self.update(total, count, gradients, lr, scale, loss_limit)


class TrainStep:
    """Takes optimizer steps; owns the optimizer's state. Each replica calls it with its own part of the batch."""

    def __init__(self, model: nn.Cell, config: RunConfig, replicas: Replicas | None = None):
        self.config, self.replicas = config, replicas or Replicas()
        self.weights = ParameterTuple(model.trainable_params())
        self.loss = TokenLoss(model, keeps_balance_loss=True)
        gradients = Gradients(self.loss, self.weights)
        update = build_update(config, self.weights, config.train.batch_size // config.train.accumulation_steps)
        self.optimizer = update.optimizer
        self.in_one_graph = config.train.accumulation_steps == 1 and self.replicas.world == 1
        if self.in_one_graph:
            self.whole = GraphStep(WholeStep(gradients, update), config.train.seed, loss=self.loss)
        else:
            self.accumulate = GradientSums(gradients, self.weights)
            self.apply = ApplySums(self.accumulate, update, self.replicas)

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT
    ) -> StepResult:
        """See OptimizerStep."""
        if self.in_one_graph:
            self.whole.cell.set_train()  # an evaluation between steps switched the model's dropout off
            return self.whole(batch, step, lr, scale, loss_limit)
        return self._accumulated(batch, step, control_tensors(lr, scale, loss_limit))

    def _accumulated(self, batch: Batch, step: int, controls: tuple[Tensor, ...]) -> StepResult:
        """A step with several micro-batches or replicas: one graph accumulates gradients, and a second one applies
        them."""
        self.accumulate.set_train()  # as above
        parts, (_, scale, _) = self.config.train.accumulation_steps, controls
        for i, micro_batch in enumerate(batch.split(parts)):
            place = self.replicas.rank * parts + i  # index of the micro-batch in the global batch
            key = dropout_key(self.config.train.seed, step, place)
            keep = Tensor(float(i > 0), mstype.float32)
            total = self.accumulate(*to_tensors(micro_batch), Tensor(key), scale, keep)
        total.asnumpy()  # waits for the device, so that after the barrier only the all-reduce is left to wait for
        self.replicas.barrier()
        beat(STEP, step)
        return StepResult.of(self.apply(*controls), self.loss)

    def parameters(self) -> list[Parameter]:
        """See OptimizerStep."""
        return [*self.optimizer.m, *self.optimizer.v]
