"""The one place that applies a plan to a model: layouts, stages, recomputation, and MindSpore's parallel settings."""

import mindspore as ms
from mindspore import nn

import ascend_ops
from pangu_ms.parallel.plan import OPTIMIZER_SHARD_MIN_BYTES, Plan


def begin(plan: Plan, rank: int) -> None:
    """Set MindSpore and ascend_ops up for a plan; before the model is built.

    Args:
        rank: this process's.
    """
    parallel, world = plan.config.parallel, plan.mesh.world
    mode = {"parallel_mode": "semi_auto_parallel"}
    if parallel.search_mode != "none":
        mode = {"parallel_mode": "auto_parallel", "search_mode": parallel.search_mode}
    shard = {}
    if parallel.optimizer_shard:
        threshold = {"parallel_optimizer_threshold": OPTIMIZER_SHARD_MIN_BYTES >> 10}  # in KB
        shard = {"enable_parallel_optimizer": True, "parallel_optimizer_config": threshold}
    ms.set_auto_parallel_context(device_num=world, global_rank=rank, full_batch=True, pipeline_stages=parallel.pipeline_stage, **mode, **shard)
    ascend_ops.lay_out(ascend_ops.Devices(plan.mesh.axes, plan.rules))


def apply(plan: Plan, model: nn.Cell) -> None:
    """Tell each cell of a model its layout, its stage and what it recomputes."""
    specs = plan.config.model.parameters()
    for _, cell in model.cells_and_names():
        if hasattr(cell, "axes"):
            cell.axes = specs[cell.weight.name].axes
