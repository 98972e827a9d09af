"""Which mesh axes cut each logical axis: the tables that plans are made from. No mindspore import.

The logical axes of parameters are those of `ModelConfig.parameters()`; batch and sequence are those of activations. ()
means whole on every device.
"""

from pangu_ms.config.parallel import ParallelConfig

Rules = dict[str, tuple[str, ...]]

COMMON: Rules = {
    "batch": ("dp", "ep"),  # expert devices hold their own part of the batch
    "sequence": (),  # of norms and residuals; ("mp",) with sequence_parallel
    "vocab": (),  # ("mp",) with vocab_embedding=row
    "embed": (),
    "heads": ("mp",),
    "ffn": ("mp",),
}
ALPHA: Rules = COMMON | {
    "position": (),  # position and query tables: 1,024 rows, read by every device
}
PI: Rules = COMMON | {
    "kv_heads": ("mp",),
    "siaf_term": (),
    "bottleneck": (),  # a branch is E / 32 wide: cutting it would cost an all-reduce to save 1/mp of 3 % of the work
    "one": (),
}


def rules_for(table: Rules, parallel: ParallelConfig) -> Rules:
    """A family's table with what the configuration decides, and without axes of one device."""
    decided = table | {
        "sequence": ("mp",) if parallel.sequence_parallel else table["sequence"],
        "vocab": ("mp",) if parallel.vocab_embedding == "row" else table["vocab"],
    }
    sizes = {
        "dp": parallel.data_parallel // parallel.expert_parallel,
        "ep": parallel.expert_parallel,
        "mp": parallel.model_parallel,
    }
    return {axis: tuple(name for name in names if sizes[name] > 1) for axis, names in decided.items()}
