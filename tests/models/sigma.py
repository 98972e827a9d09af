"""A checkpoint of a small PanGu-Sigma with random weights."""

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.config import load_config
from pangu_ms.models.common.init import initial_values

FIELDS = [
    "vocab_size=384",
    "hidden_size=32",
    "num_layers=3",
    "num_heads=4",
    "seq_length=32",
    "domains=[text, code, law]",
    "num_experts=6",
    "group_sizes=[2,3,1]",
    "slot_of_domain=[0,1,0]",
]
TEXT, CODE, LAW = range(3)
UNUSED = {"blocks.1.ffn.routing": 2, "query_layer.ffn.routing": 3}
"""An expert of the group of code to which no token goes, in each sparse layer another one."""


def save_sigma(root, records, num_layers=3):
    """Biases are random, too; groups have 2, 3 and 1 experts, and there are two word tables. Of two layers the query
    layer alone has experts."""
    fields = [*FIELDS, f"num_layers={num_layers}"]
    config, random = load_config("sigma/tiny", [f"model.{field}" for field in fields]), np.random.default_rng(0)
    tensors = {}
    for name, value in initial_values(config.model, 1):
        if value.dtype == np.int32:
            tensors[name] = value.copy()
        else:
            tensors[name] = value + 0.1 * random.standard_normal(value.shape).astype(np.float32)
    for name in UNUSED.keys() & tensors.keys():
        expert, line = UNUSED[name], tensors[name][CODE]
        line[line == expert] = 4
    store.save(root, 7, {"model": tensors}, {}, config, records / "tokenizer")
    return store.open_checkpoint(root)
