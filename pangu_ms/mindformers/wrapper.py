"""MindFormers' training step with an overflow check that a CPU can run."""

from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindformers.wrapper import MFTrainOneStepCell
from mindspore import Tensor, ops


@MindFormerRegister.register(MindFormerModuleType.WRAPPER)
class PanguTrainOneStepCell(MFTrainOneStepCell):
    """A step whose gradients are not finite is skipped, and a dynamic loss scale halved.

    MindFormers asks the NPU's status register (NPUGetFloatStatusV2), which has no CPU kernel.
    """

    def get_overflow_status(self, status, compute_output):
        """bool scalar: whether a gradient is not finite. A sum is finite only if its terms are."""
        finite = Tensor(True)
        for gradient in compute_output:
            finite = ops.logical_and(finite, ops.isfinite(gradient.sum()))
        return ops.logical_not(finite)
