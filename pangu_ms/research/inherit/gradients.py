"""The loss of a model and its derivatives with respect to masks on the model's units."""

import dataclasses

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor

from pangu_ms.models.build import build_model, fill, weights
from pangu_ms.models.common.batch import Batch
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.loss import TokenLoss, mean_loss, to_tensors
from pangu_ms.research.inherit.units import Units, masked, unit_sums
from pangu_ms.train.steps.gradients import Gradients


class MaskDerivatives:
    """Computes derivatives of the loss with respect to masks on units. It uses the ordinary gradient graph of the
    weights, which is compiled once.

    A mask m replaces the weights w of a unit by m * w. So dL/dm is the sum over these weights of w * dL/d(m * w), which
    is the masked weight times its gradient, divided by m. Everything is computed in float32 and without dropout.
    """

    def __init__(self, config: ModelConfig, tensors: dict[str, np.ndarray]):
        """Build the model.

        Args:
            config: configuration of the model.
            tensors: parameters of the model, float32 by name.
        """
        self.config, self.tensors = config, tensors
        self.model = build_model(dataclasses.replace(config, compute_dtype="float32"))
        self.weights = weights(self.model)
        self.masked = ParameterTuple([weight for weight in self.weights if weight.dtype == ms.float32])
        for weight in self.masked:
            weight.requires_grad = True  # parameters that are not trained have masks too
        self.gradients = Gradients(TokenLoss(self.model), self.masked)
        self.gradients.set_train(False)

    def __call__(self, batch: Batch, masks: Units) -> tuple[float, Units]:
        """The mean loss of a batch with masked weights, and its derivative with respect to the mask of each unit. All
        masks of a group that `masks` lacks are 1."""
        values = masked(self.config, self.tensors, masks)
        fill(self.weights, values)
        total, count, gradients = self.gradients(*to_tensors(batch), Tensor(0, ms.int32), Tensor(1.0, ms.float32))
        total, count = total.asnumpy().item(), count.asnumpy().item()
        by_name = {parameter.name: gradient for parameter, gradient in zip(self.masked, gradients)}
        sums = unit_sums(self.config, lambda name: values[name] * by_name[name].asnumpy())
        # Gradients are of the summed loss divided by B * S; the mean loss divides by count + 1e-5 (see mean_loss).
        unscale = batch.loss_mask.size / (count + 1e-5)
        derivatives = {group: value * unscale / masks.get(group, 1.0) for group, value in sums.items()}
        return mean_loss(total, count), derivatives
