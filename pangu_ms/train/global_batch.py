"""Keeping the global batch when the number of cards changes: which fields to set, and what else depends on the split.
No mindspore import."""

from pangu_ms.config.schema import RunConfig
from pangu_ms.data.domains import override


def overrides_for(config: RunConfig, global_batch_size: int) -> list[str] | None:
    """Overrides with which `config` has `global_batch_size` sequences per step; None if that number cannot be divided
    among its replicas or stages.

    A micro-batch gets at most as many sequences as it has in `config`, so that it still fits the card.
    """
    parallel, train = config.parallel, config.train
    batch_size, rest = divmod(global_batch_size, parallel.data_parallel)
    if rest or batch_size < parallel.pipeline_stage or not all(_scales(config, batch_size)):
        return None
    in_stages = parallel.pipeline_stage > 1
    section, field = ("parallel", "micro_batch_num") if in_stages else ("train", "accumulation_steps")
    now = getattr(getattr(config, section), field)
    fitting = range(parallel.pipeline_stage, batch_size + 1)
    parts = next(n for n in fitting if batch_size % n == 0 and batch_size // n <= train.batch_size // now)
    wanted = {"train.batch_size": (train.batch_size, batch_size), f"{section}.{field}": (now, parts)}
    words = [f"{name}={new}" for name, (old, new) in wanted.items() if old != new]
    samples = {name: n * batch_size // train.batch_size for name, n in config.data.samples_per_domain.items()}
    return words + ([override("samples_per_domain", samples)] if samples and batch_size != train.batch_size else [])


def _scales(config: RunConfig, batch_size: int) -> list[bool]:
    """Whether the number of samples of each domain stays whole in batches of another size."""
    samples = config.data.samples_per_domain.values()
    return [number * batch_size % config.train.batch_size == 0 for number in samples]


def samples_per_domain(config: RunConfig) -> dict[str, int]:
    """Samples of each domain in the global batch, if data.samples_per_domain sets them."""
    return {name: number * config.parallel.data_parallel for name, number in config.data.samples_per_domain.items()}


def why_not(config: RunConfig, global_batch_size: int) -> str:
    """Why `overrides_for` returns None."""
    parallel = config.parallel
    if global_batch_size % parallel.data_parallel:
        return f"parallel.data_parallel={parallel.data_parallel} does not divide it"
    each = global_batch_size // parallel.data_parallel
    if not all(_scales(config, each)):
        return f"data.samples_per_domain has no whole numbers in batches of {each}"
    return (
        f"each of data_parallel={parallel.data_parallel} replicas gets {each} of it, fewer than"
        f" pipeline_stage={parallel.pipeline_stage} stages"
    )


def graph_batch_size(config: RunConfig) -> int:
    """Number of sequences in one call of the compiled gradient graph, whose tokens are the divisor of the gradients.

    A process that has the whole model sees its replica's micro-batch; the graph of a plan sees that of all replicas,
    which MindSpore splits.
    """
    parts = max(config.parallel.micro_batch_num, config.train.accumulation_steps)
    by_itself = config.runtime.device == "CPU" or config.parallel.world == 1
    return (config.train.batch_size if by_itself else config.global_batch_size) // parts


def rescaled_loss_scale(scale: float, config: RunConfig, was: int) -> float:
    """The loss scale of a run that continues with another `graph_batch_size` than before (`was`), chosen so that
    float16 gradients keep their magnitude."""
    return max(1.0, scale * graph_batch_size(config) / was) if config.model.compute_dtype == "float16" else scale


def changes_dropout_masks(config: RunConfig, was: int) -> bool:
    """Whether dropout draws other masks than with the previous `graph_batch_size` (`was`): a mask depends on the index
    of an element in its micro-batch."""
    return config.model.dropout > 0 and graph_batch_size(config) != was
