"""Applies a plan to a model: layouts, stages, recomputation, and MindSpore's parallel settings. No other module does
that."""

from pathlib import Path

import mindspore as ms
from mindspore import nn
from mindspore.parallel import set_op_strategy_config
from mindspore.parallel._cost_model_context import _set_algo_single_loop

import ascend_ops
from pangu_ms.models.build import weights
from pangu_ms.models.common.layers import Logits, OnOwnSlices, Operator, RoutedExperts, ShardedWeight
from pangu_ms.parallel.operator_file import check_operators, read_operator_strategies
from pangu_ms.parallel.plan import OPTIMIZER_SHARD_MIN_BYTES, Plan
from pangu_ms.parallel.token_exchange import TokenExchange


def begin(plan: Plan, rank: int) -> None:
    """Configure MindSpore and ascend_ops for a plan; must be called before the model is built.

    Args:
        rank: rank of this process.

    Raises:
        PlanError: parallel.operator_strategies is not a file of operator strategies, or is for another number of
            devices.
    """
    parallel, world = plan.config.parallel, plan.mesh.world
    mode = {"parallel_mode": "semi_auto_parallel"}
    if parallel.search_mode != "none":
        mode = {"parallel_mode": "auto_parallel", "search_mode": parallel.search_mode}
    shard = {}
    if parallel.optimizer_shard:
        threshold = {"parallel_optimizer_threshold": OPTIMIZER_SHARD_MIN_BYTES >> 10}  # in KB
        shard = {"enable_parallel_optimizer": True, "parallel_optimizer_config": threshold}
    # Otherwise MindSpore's propagation treats the operators of two lists of cells as those of one loop, and mixes them
    # up.
    _set_algo_single_loop(False)
    # full_batch: the graph is written for the batch of all replicas, of which the compiler gives each rank its part.
    ms.set_auto_parallel_context(
        device_num=world, global_rank=rank, full_batch=True, pipeline_stages=parallel.pipeline_stage, **mode, **shard
    )
    if parallel.operator_strategies:
        check_operators(parallel.operator_strategies, read_operator_strategies(parallel.operator_strategies), plan)
        set_op_strategy_config("LOAD", str(Path(parallel.operator_strategies).absolute()))
    # Custom operators take layouts instead of strategies, and make them from the mesh and the rules.
    ascend_ops.lay_out(ascend_ops.Devices(plan.mesh.axes, plan.rules))


def apply(plan: Plan, model: nn.Cell) -> None:
    """Give each cell of a model its layout and its stage, and mark the cells to recompute."""
    specs = plan.config.model.parameters()
    for _, cell in model.cells_and_names():
        if isinstance(cell, ShardedWeight):
            cell.axes = specs[cell.weight.name].axes
        if isinstance(cell, RoutedExperts):
            cell.dispatcher = TokenExchange(plan, ms.get_auto_parallel_context("global_rank"))
        if isinstance(cell, OnOwnSlices):
            cell.distribute()
    for parameter in weights(model):
        # MindSpore 2.9 cannot compile the sharding of a table that two stages hold.
        parameter.parallel_optimizer = len(plan.parameter_stages[parameter.name]) == 1
    if plan.mesh.num_stages > 1:
        _set_stages(plan, model)
    for cell in _recomputed(plan, model):
        cell.recompute()


def _set_stages(plan: Plan, model: nn.Cell) -> None:
    stages = dict(zip(plan.config.model.layer_names(), plan.layer_stages))
    for name, layers in plan.config.model.outer_parameter_layers().items():
        # The cell of a tied table is the embedding, which is on the first of its stages.
        stages[name.rpartition(".")[0]] = plan.layer_stages[layers[0]]
    for name, cell in model.cells_and_names():
        if isinstance(cell, Logits):
            stages[name] = plan.layer_stages[-1]
    for prefix, stage in stages.items():
        model.get_sub_cell(prefix).pipeline_stage = stage


def _recomputed(plan: Plan, model: nn.Cell) -> list[nn.Cell]:
    if plan.config.parallel.recompute == "full":
        return [model.get_sub_cell(name) for name in plan.config.model.layer_names()]
    if plan.config.parallel.recompute == "selective":
        return [cell for _, cell in model.cells_and_names() if isinstance(cell, Operator)]
    return []
