"""Sharding rules of one run: a family's rules, adapted to the parallel configuration. No mindspore import."""

from pangu_ms.config.parallel import ParallelConfig
from pangu_ms.models.common.sharding import Rules


def rules_for(table: Rules, parallel: ParallelConfig) -> Rules:
    """A family's rules with the axes of sequence and vocabulary that the configuration chooses, and without mesh axes
    of size 1."""
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
