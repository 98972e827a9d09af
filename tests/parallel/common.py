"""Plans of a small alpha by the sizes of their mesh."""

from pangu_ms.config import load_config
from pangu_ms.parallel.plan import Plan

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
