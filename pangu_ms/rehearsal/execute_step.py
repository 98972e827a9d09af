"""The step that is executed: a training step's own loss, gradients, norm, clipping and guard, with momentum SGD for
AdamW.

AdamW divides a gradient by its own size, so a wrong scale of gradients would not show in its weights.
"""

from mindspore import Parameter, ParameterTuple, nn, ops

from pangu_ms.train.pipeline_step import MicroBatchStep
from pangu_ms.train.step import WholeStep

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
        self.velocities = self.parameters.clone(
            "velocity", "zeros"
        )  # clones are cut over devices as their parameters are
        self.operator, self.hyper_map = ops.ApplyMomentum(), ops.HyperMap()

    def construct(self, gradients, factor, lr):
        """Apply gradients (float32, in the parameters' order) times `factor`, at learning rate `lr` (float32
        scalars)."""
        return self.hyper_map(
            ops.partial(_apply, self.operator, MOMENTUM, lr, factor), self.parameters, self.velocities, gradients
        )


def with_momentum_sgd(step: WholeStep | MicroBatchStep) -> nn.Cell:
    """The step with MomentumSGD; one of a whole batch also returns its gradients. `step` must not be used any more."""
    step.update.optimizer = MomentumSGD(step.update.optimizer.parameters)
    return step if isinstance(step, MicroBatchStep) else VerificationStep(step)


class VerificationStep(nn.Cell):
    """A training step that also returns its gradients."""

    def __init__(self, step: WholeStep):
        super().__init__(auto_prefix=False)
        self.gradients, self.update = step.gradients, step.update

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, key, lr, scale, loss_limit):
        """-> (sum of losses, tokens that count, norm, whether applied, gradients in the order of the weights)."""
        total, count, gradients = self.gradients(ids_BS1, positions_BS, segments_BS, mask_BS, key, scale)
        norm, applied = self.update(total, count, gradients, lr, scale, loss_limit)
        return total, count, norm, applied, gradients
