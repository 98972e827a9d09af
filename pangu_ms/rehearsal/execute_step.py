"""The steps of an execution: they have a training step's own loss, gradients, norm, clipping and guard, but momentum
SGD instead of AdamW.

AdamW normalises a gradient by its magnitude, so that a wrong scale of gradients would not show in the weights.
"""

import numpy as np
from mindspore import Parameter, ParameterTuple, nn, ops

from pangu_ms.models.common.batch import Batch
from pangu_ms.train.steps.micro_batches import MicroBatchStep
from pangu_ms.train.steps.protocol import NO_LIMIT, GraphStep, StepResult
from pangu_ms.train.steps.whole_batch import WholeStep

MOMENTUM = 0.9
# HyperMap, not loops: see train/optimizer.py.
_apply = ops.MultitypeFuncGraph("apply_momentum")


@_apply.register("Function", "Number", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _apply_momentum(operator, momentum, lr, factor, parameter, velocity, gradient):
    return operator(parameter, velocity, lr, gradient * factor, momentum)


class MomentumSGD(nn.Cell):
    """velocity = MOMENTUM * velocity + gradient; p -= lr * velocity. Called as AdamW is."""

    def __init__(self, parameters: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        # MindSpore shards a clone over devices as it shards the parameter
        self.velocities = self.parameters.clone("velocity", "zeros")
        self.operator, self.hyper_map = ops.ApplyMomentum(), ops.HyperMap()

    def construct(self, gradients, norms, factor, lr):
        """Apply gradients (float32, in the parameters' order) times `factor`, at learning rate `lr` (float32
        scalars); their norms are not needed."""
        return self.hyper_map(
            ops.partial(_apply, self.operator, MOMENTUM, lr, factor), self.parameters, self.velocities, gradients
        )


def with_momentum_sgd(graph: WholeStep | MicroBatchStep) -> nn.Cell:
    """A step's graph with MomentumSGD as the optimizer; a WholeStep then also returns its gradients. `graph` must not
    be used afterwards."""
    graph.update.optimizer = MomentumSGD(graph.update.optimizer.parameters)
    return graph if isinstance(graph, MicroBatchStep) else VerificationStep(graph)


class VerificationStep(nn.Cell):
    """The graph of a step that also returns its gradients."""

    def __init__(self, graph: WholeStep):
        super().__init__(auto_prefix=False)
        self.gradients, self.update = graph.gradients, graph.update

    def construct(self, *inputs):
        """As WholeStep, with the gradients as further outputs, in the order of the weights."""
        lr, scale, loss_limit = inputs[-3:]
        total, count, gradients = self.gradients(*inputs[:-3], scale)
        norm, applied = self.update(total, count, gradients, lr, scale, loss_limit)
        return total, count, norm, applied, gradients


class RecordedStep(GraphStep):
    """Takes steps with a graph of `with_momentum_sgd`, either built here or exported and loaded again, and keeps the
    gradients of the last step."""

    gradients: list[np.ndarray] = []

    def __call__(
        self, batch: Batch, step: int, lr: float, scale: float = 1.0, loss_limit: float = NO_LIMIT
    ) -> StepResult:
        """See OptimizerStep."""
        outputs = self.cell(*self.inputs(batch, step, lr, scale, loss_limit))
        rest = outputs[4:]
        tensors = rest[0] if rest and isinstance(rest[0], tuple) else rest  # MindIR flattens the tuple of gradients
        self.gradients = [tensor.asnumpy() for tensor in tensors]
        return StepResult.of(outputs[:4])

    def control(self, lr: float, scale: float, loss_limit: float) -> None:
        """Does nothing, since a loaded graph got its controls when it was loaded."""
