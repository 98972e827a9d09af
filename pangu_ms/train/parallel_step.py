"""The training step of a plan as one cell over whole batches: MindSpore's compiler cuts it for a rank."""

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn

from pangu_ms.models.common.loss import TokenLoss
from pangu_ms.parallel.plan import Plan
from pangu_ms.train.optimizer import AdamW
from pangu_ms.train.pipeline_step import MicroBatchStep
from pangu_ms.train.step import Gradients, GuardedUpdate, WholeStep


class RankGradients(Gradients):
    """Gradients of a graph that MindSpore cuts over ranks.

    Each rank starts its backward pass at its own copy of the loss, and the backward passes of the collectives add the
    copies up: gradients come out as many times too large as there are ranks. MindSpore divides by that number where the
    differentiated function returns the loss alone; ours returns (total, count) beside it, and MindSpore then divides
    nothing (2.9.0; `pangu plan execute` shows it). The seed of the backward pass is an input, the loss scale: were it a
    constant, the compiler would sum it over the ranks itself, and in a rehearsal ask the stub communicator for their
    number, which is virtual_cluster.STUB_GROUP_SIZE.
    """

    def __init__(self, loss: TokenLoss, weights: ParameterTuple, num_ranks: int):
        super().__init__(loss, weights)
        self.num_ranks = num_ranks

    def construct(self, ids_BS1, positions_BS, segments_BS, mask_BS, key, scale):
        (_, (total, count)), gradients = self.value_and_grad(
            ids_BS1, positions_BS, segments_BS, mask_BS, key, scale / self.num_ranks
        )
        return total, count, gradients


def build_step(plan: Plan, model: nn.Cell) -> nn.Cell:
    """The step for a model that `apply` has laid out, with the batch of all replicas: `train.step.WholeStep`, in
    micro-batches MicroBatchStep."""
    config, parts = plan.config, plan.num_micro_batches
    weights = ParameterTuple(model.trainable_params())
    decayed = {name for name, spec in config.model.parameters().items() if spec.decay}
    micro_tokens = config.global_batch_size // parts * config.model.seq_length
    update = GuardedUpdate(
        AdamW(weights, config.optimizer, decayed),
        config.optimizer.clip_norm,
        micro_tokens,
        _num_uncounted(plan, weights),
    )
    if parts == 1:
        return WholeStep(RankGradients(TokenLoss(model), weights, plan.mesh.stage_size), update)
    return MicroBatchStep(TokenLoss(model), update, plan.mesh, parts, config.parallel.optimizer_shard)


def _num_uncounted(plan: Plan, weights: ParameterTuple) -> int:
    """1 where this rank's stage is the last of a tied word table: it has a part of the gradient, the first stage has
    the sum."""
    stage = plan.mesh.coordinate(ms.get_auto_parallel_context("global_rank")).stage
    again = [name for name, (first, *others) in plan.parameter_stages.items() if stage in others]
    assert again == list(plan.parameter_stages)[: len(again)], "the tied table is the first parameter"
    return len({parameter.name for parameter in weights} & set(again))  # 0 where it is not trained


def step_inputs(plan: Plan) -> tuple[Tensor, ...]:
    """Inputs of that step, of the right shapes and dtypes."""
    B, S = plan.config.global_batch_size, plan.config.model.seq_length
    ids, index, mask = np.zeros((B, S + 1), np.int32), np.zeros((B, S), np.int32), np.ones((B, S), np.float32)
    batch = Tensor(ids), Tensor(index), Tensor(index), Tensor(mask)
    if plan.num_micro_batches > 1:
        return *batch, Tensor(np.ones(plan.num_micro_batches, np.int32))  # a dropout key for each micro-batch
    controls = (Tensor(value, ms.float32) for value in (1e-3, 1.0, 3e38))  # learning rate, loss scale, loss limit
    return *batch, Tensor(np.int32(1)), *controls
