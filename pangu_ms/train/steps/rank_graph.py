"""The graph of a plan's step, written for the batch of all replicas; MindSpore's compiler shards it for a rank."""

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn

from pangu_ms.models.common.batch import blank_batch
from pangu_ms.models.common.loss import TokenLoss, to_tensors
from pangu_ms.parallel.plan import Plan
from pangu_ms.train.steps.gradients import RankGradients
from pangu_ms.train.steps.micro_batches import MicroBatchStep
from pangu_ms.train.steps.protocol import control_tensors
from pangu_ms.train.steps.update import build_update
from pangu_ms.train.steps.whole_batch import WholeStep


def build_rank_graph(plan: Plan, model: nn.Cell) -> nn.Cell:
    """The step for a model to which `apply` has given layouts, on the batch of all replicas: WholeStep, or with several
    micro-batches MicroBatchStep."""
    config, parts = plan.config, plan.num_micro_batches
    weights = ParameterTuple(model.trainable_params())
    update = build_update(config, weights, config.global_batch_size // parts, _num_uncounted(plan, weights))
    if parts == 1:
        return WholeStep(RankGradients(TokenLoss(model), weights, plan.mesh.stage_size), update)
    return MicroBatchStep(TokenLoss(model), update, plan.mesh, parts, config.parallel.optimizer_shard)


def _num_uncounted(plan: Plan, weights: ParameterTuple) -> int:
    """1 if this rank's stage is the last stage of a tied word table, otherwise 0. The last stage has only a part of the
    table's gradient, and the first stage, which has the sum, counts it in the norm."""
    stage = plan.mesh.coordinate(ms.get_auto_parallel_context("global_rank")).stage
    again = [name for name, (first, *others) in plan.parameter_stages.items() if stage in others]
    assert again == list(plan.parameter_stages)[: len(again)], "the tied table is the first parameter"
    return len({parameter.name for parameter in weights} & set(again))  # 0 if the table is not trainable


def example_inputs(plan: Plan) -> tuple[Tensor, ...]:
    """Inputs of the graph of `build_rank_graph`, with the right shapes and dtypes."""
    batch = to_tensors(blank_batch(plan.config.model, plan.config.global_batch_size))
    if plan.num_micro_batches > 1:
        return *batch, Tensor(np.ones(plan.num_micro_batches, np.int32))  # a dropout key for each micro-batch
    return *batch, Tensor(np.int32(1)), *control_tensors(1e-3)
