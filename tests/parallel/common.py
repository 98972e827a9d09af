"""Plans of a small alpha by the sizes of their mesh; what a compiled step must agree with."""

from pangu_ms.config import load_config
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import MOMENTS, Plan

# Written by MindSpore 2.9 (search_mode="sharding_propagation", 8 devices), shortened.
OPERATORS = (
    '{"current_stage":0,"parallel_layout_value_item":{"Default/network-Net/MatMul-op0":{"0":{"alias_name":["dp","ep","mp"],"dev_matrix":[2,2,2],'
    '"interleaved_parallel":false,"tensor_map":[[2],[-1]]},"1":{"alias_name":["dp","ep","mp"],"dev_matrix":[2,2,2],"interleaved_parallel":false,'
    '"tensor_map":[[1,0],[-1]]}}},"parallel_out_layout_value_item":{"Default/network-Net/MatMul-op0":{"0":{"alias_name":["dp","ep","mp"],'
    '"dev_matrix":[2,2,2],"interleaved_parallel":false,"tensor_map":[[2],[1,0]]}}},"parallel_out_strategy_item":{"Default/network-Net/MatMul-op0":'
    '{"parallel_strategy":[[2,4]],"stage":0}},"parallel_strategy_item":{"Default/network-Net/MatMul-op0":{"parallel_strategy":[[2,1],[4,1]],"stage":0},'
    '"Default/network-Net/Mul-op0":{"parallel_strategy":[[4,2],[]],"stage":0}}}'
)


SMALL = ["vocab_size=512", "hidden_size=128", "num_layers=2", "num_heads=4", "seq_length=32"]


OVERRIDES = [f"model.{m}" for m in SMALL] + ["train.batch_size=8", "tokenizer.vocab_size=512"]


def degrees(dp=1, mp=1, pp=1, optimizer_shard=False, rows=False):
    words = [
        f"data_parallel={dp}",
        f"model_parallel={mp}",
        f"pipeline_stage={pp}",
        f"micro_batch_num={2 * pp if pp > 1 else 1}",
    ]
    words += ["optimizer_shard=true"] * optimizer_shard + ["vocab_embedding=row"] * rows
    return [f"parallel.{word}" for word in words]


def plan_of(**kind):
    return Plan.of(load_config("alpha/tiny", OVERRIDES + degrees(**kind)))


def assert_layouts_agree(plan: Plan, graph: dict, stage: int) -> None:
    """Parameters and moments that a stage's graph has, and the slice that each device holds.

    `graph`: {"held": names, "layouts": {name: [device matrix, tensor map, slice shape]}} of a compiled step.
    """
    held = plan.stage_parameters(stage)
    wanted = [prefix + name for prefix in ("", *MOMENTS) for name in held]
    assert sorted(wanted) == sorted(
        name for name in graph["held"] if name.removeprefix("adam_m.").removeprefix("adam_v.") in plan.layouts
    )
    for name in held:
        layout, (matrix, tensor_map, _) = plan.layouts[name], graph["layouts"][name]
        axes = tuple((str(i), size) for i, size in enumerate(matrix))
        dims = [d if isinstance(d, list) else [d] for d in tensor_map]
        theirs = Layout(
            layout.shape, axes, tuple(tuple(str(len(matrix) - 1 - i) for i in dim if i >= 0) for dim in dims)
        )
        ours = Layout(layout.shape, layout.axes, layout.dims)
        assert [ours.slices(r) for r in range(ours.num_devices)] == [
            theirs.slices(r) for r in range(theirs.num_devices)
        ], name
        for prefix in ("", *MOMENTS):
            assert tuple(graph["layouts"][prefix + name][2]) == layout.slice_shape, prefix + name
