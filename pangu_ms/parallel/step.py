"""The training step of a plan as one cell over whole batches: MindSpore's compiler cuts it for a rank."""

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn

from pangu_ms.models.loss import TokenLoss
from pangu_ms.parallel.plan import Plan
from pangu_ms.train.optimizer import AdamW
from pangu_ms.train.step import Gradients, GuardedUpdate, WholeStep


def build_step(plan: Plan, model: nn.Cell) -> nn.Cell:
    """The step of `train.step` for a model that `apply` has laid out, with the batch of all replicas."""
    config = plan.config
    weights = ParameterTuple(model.trainable_params())
    decayed = {name for name, spec in config.model.parameters().items() if spec.decay}
    update = GuardedUpdate(AdamW(weights, config.optimizer, decayed), config.optimizer.clip_norm, config.global_batch_size * config.model.seq_length)
    return WholeStep(Gradients(TokenLoss(model), weights), update)


def step_inputs(plan: Plan) -> tuple[Tensor, ...]:
    """Inputs of that step, of the right shapes and dtypes."""
    B, S = plan.config.global_batch_size, plan.config.model.seq_length
    ids, index, mask = np.zeros((B, S + 1), np.int32), np.zeros((B, S), np.int32), np.ones((B, S), np.float32)
    controls = (Tensor(value, ms.float32) for value in (1e-3, 1.0, 3e38))  # learning rate, loss scale, loss limit
    return Tensor(ids), Tensor(index), Tensor(index), Tensor(mask), Tensor(np.int32(1)), *controls
