"""MindFormers' training step with an overflow check that a CPU can run."""

from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper import MFTrainOneStepCell
from mindspore import Tensor, ops


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class PanguTrainOneStepCell(MFTrainOneStepCell):
    """Skips a step whose gradients are not finite, and halves a dynamic loss scale.

    MindFormers' own step reads the NPU's status register (NPUGetFloatStatusV2), for which there is no CPU kernel.
    """

    def get_overflow_status(self, status, compute_output):
        """Whether any gradient is not finite, as a bool scalar. One sum per gradient suffices: it is finite only if all
        values of the gradient are finite."""
        finite = Tensor(True)
        for gradient in compute_output:
            finite = ops.logical_and(finite, ops.isfinite(gradient.sum()))
        return ops.logical_not(finite)
