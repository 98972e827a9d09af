"""How a run is distributed over devices: the parallel degrees, and the rules that they must satisfy together with a
model. No mindspore import."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.fields import STRICT, Float, Int, divisors, require, require_not_negative, require_positive
from pangu_ms.models.common.config import ModelConfig


@dataclass(frozen=True, config=STRICT)
class ParallelConfig:
    """Parallel degrees of a run. It has data_parallel * model_parallel * pipeline_stage ranks; see
    pangu_ms/parallel/mesh.py for their order."""

    num_devices: Int = 0
    """Number of devices of the job; must be the product of the degrees. 0 means that product."""
    data_parallel: Int = 1
    """Number dp of model replicas, each with its own part of the batch; train.batch_size is the batch of one
    replica."""
    model_parallel: Int = 1
    """Number mp of devices that share each matrix (tensor parallelism): they split heads, feed-forward channels and,
    with vocab_embedding=row, the vocabulary."""
    expert_parallel: Int = 1
    """Number ep of devices that share the experts. They are among the data_parallel devices, so ep must divide
    data_parallel. 1 for models without experts."""
    expert_capacity_factor: Float = 2.0
    """Size of the buckets in which tokens travel between the devices that share a group of experts, as a multiple of
    what each would get of evenly spread tokens. 0: room for all tokens of a device. No token is dropped: a batch that
    needs more stops the run with the factor that it needs. Products and activations of the experts grow with it. Models
    whose router is learned always have room for all."""
    pipeline_stage: Int = 1
    """Number pp of pipeline stages that the layers are split into."""
    micro_batch_num: Int = 1
    """Micro-batches that flow through the stages in one step; must divide train.batch_size. With a single stage use
    train.accumulation_steps."""
    optimizer_shard: bool = False
    """Shard parameters, gradients and optimizer moments further, over the replicas that would hold equal copies of them
    (as in ZeRO); parameters are gathered where they are used."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes instead of keeping it from the forward pass. none: nothing; selective:
    attention probabilities and the outputs of activation functions; full: everything but each layer's input."""
    sequence_parallel: bool = False
    """Split norms and the residual stream along the sequence over the model_parallel devices: all-reduces become
    reduce-scatters and all-gathers. With several stages and replicas it costs more than it saves: MindSpore then sends
    the residual stream of all replicas between stages."""
    vocab_embedding: Literal["replicated", "row"] = "replicated"
    """Layout of the word embedding table (and the head). replicated: every model_parallel device holds all of it; row:
    its rows (the vocabulary) are split over these devices."""
    search_mode: Literal["sharding_propagation", "recursive_programming", "dynamic_programming", "none"] = (
        "sharding_propagation"
    )
    """How MindSpore shards the operators to which the plan gives no layout. sharding_propagation: the plan gives
    layouts to matrix products and tables, and MindSpore propagates them to the other operators. recursive_programming,
    dynamic_programming: searches of auto_parallel that choose all layouts themselves. none (semi_auto_parallel): every
    other operator is split over all devices, which costs redistributions."""
    operator_strategies: str = ""
    """JSON file of MindSpore operator strategies, which MindSpore reads instead of propagating layouts; written by hand
    or by `pangu plan rehearse --ranks 0 --output`. Needs search_mode=sharding_propagation."""
    devices_per_server: Int = 8
    """Devices of one server, which have fast links to each other (HCCS); 8 in an Atlas 800."""
    stage_layers: tuple[Int, ...] = ()
    """Number of layers of each stage, from the first stage on; alpha's query layer counts as one. Empty: the stages are
    balanced by the cost of their layers and the head."""

    def __post_init__(self) -> None:
        require_positive(
            self,
            "data_parallel",
            "model_parallel",
            "expert_parallel",
            "pipeline_stage",
            "micro_batch_num",
            "devices_per_server",
        )
        require_not_negative(
            self, num_devices="means the product of the degrees", expert_capacity_factor="makes room for all tokens"
        )
        require(
            self.expert_capacity_factor == 0 or self.expert_capacity_factor >= 1,
            "expert_capacity_factor",
            f"={self.expert_capacity_factor}: must be at least 1, or 0 for all tokens",
        )
        require(
            self.num_devices in (0, self.product()),
            "num_devices",
            f"={self.num_devices}: must be data_parallel * model_parallel * pipeline_stage = {self.data_parallel} *"
            f" {self.model_parallel} * {self.pipeline_stage} = {self.product()}; change a degree or num_devices",
        )
        require(
            self.data_parallel % self.expert_parallel == 0,
            "expert_parallel",
            f"={self.expert_parallel}: must divide data_parallel={self.data_parallel}; use one of"
            f" {divisors(self.data_parallel)}",
        )
        require(
            self.micro_batch_num >= self.pipeline_stage,
            "micro_batch_num",
            f"={self.micro_batch_num}: must be at least pipeline_stage={self.pipeline_stage}, or stages have nothing to"
            " do; raise it",
        )
        require(
            self.pipeline_stage > 1 or self.micro_batch_num == 1,
            "micro_batch_num",
            f"={self.micro_batch_num}: needs pipeline_stage above 1; without stages use train.accumulation_steps",
        )
        small, large = sorted((self.model_parallel, self.devices_per_server))
        require(
            large % small == 0,
            "model_parallel",
            f"={self.model_parallel}: must divide devices_per_server={self.devices_per_server} or be a multiple of it,"
            " so that groups end where servers do",
        )
        require(
            len(self.stage_layers) in (0, self.pipeline_stage),
            "stage_layers",
            f": names {len(self.stage_layers)} stages; pipeline_stage={self.pipeline_stage}; give one number for each"
            " stage, or none",
        )
        require(
            not self.operator_strategies or self.search_mode == "sharding_propagation",
            "operator_strategies",
            f"={self.operator_strategies}: MindSpore reads it with search_mode=sharding_propagation alone; found"
            f" {self.search_mode}; change one of them",
        )
        require(
            not self.sequence_parallel or self.model_parallel > 1,
            "sequence_parallel",
            ": needs model_parallel above 1, over whose devices it cuts the sequence; switch it off",
        )

    def product(self) -> int:
        """Number of devices: the product of the degrees."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.num_devices or self.product()


def group_owners(group_sizes: tuple[int, ...], expert_parallel: int) -> list[range] | None:
    """The ranks along ep that hold each group of experts, if every rank has equally many experts.

    Returns:
        None if a group would share a rank with a part of another group: tokens of a group are exchanged among its ranks
        alone, so that groups must end where ranks end. Several whole groups may lie on one rank.
    """
    size, start, owners = sum(group_sizes) // expert_parallel, 0, []
    for group_size in group_sizes:
        end = start + group_size
        ranks = range(start // size, -(-end // size))
        if len(ranks) > 1 and (start % size or end % size):
            return None
        owners.append(ranks)
        start = end
    return owners


def owner_blocks(parallel: ParallelConfig, model: ModelConfig) -> list[range]:
    """The sets of ranks along ep that exchange tokens, in their order: those that hold a group of experts together, or
    one rank that holds several groups."""
    return list(dict.fromkeys(group_owners(model.group_sizes, parallel.expert_parallel) or [range(1)]))


def bucket_rows_per_token(parallel: ParallelConfig, model: ModelConfig, ranks: int) -> float:
    """Rows of the bucket that a rank sends to each of the `ranks` of a group, for each of its tokens. Where a token
    goes is known before the step only if a table says it; otherwise there is room for all that can come."""
    most = float(model.most_experts_on_a_rank(parallel.expert_parallel))
    if not parallel.expert_capacity_factor or not model.group_of_domain:
        return most
    return min(most, parallel.expert_capacity_factor * model.experts_per_token / ranks)


def expert_degrees(model: ModelConfig) -> list[int]:
    """The values of expert_parallel that a model's experts allow: a rank has equally many experts as another, and
    groups end where ranks end."""
    experts, balanced = model.num_experts, model.num_balanced_groups
    if not experts:
        return [1]
    degrees = [n for n in range(1, experts + 1) if experts % n == 0 and group_owners(model.group_sizes, n)]
    return [n for n in degrees if balanced == 1 or balanced % n == 0]


def _check_experts(parallel: ParallelConfig, model: ModelConfig, rule: Callable[[bool, str, str], None]) -> None:
    experts, groups, ep = model.num_experts, model.group_sizes, parallel.expert_parallel
    if ep == 1 or experts == 0:
        return rule(ep == 1, "expert_parallel", f"this {model.family} model has no experts; use 1")
    if (balanced := model.num_balanced_groups) > 1:
        groups = (experts // balanced,) * balanced
    fit = expert_degrees(model)
    here = [n for n in fit if parallel.data_parallel % n == 0]
    others = [n for n in fit if n not in here]
    advice = f"use one of {_listed(here)}"
    advice += f", or with another data_parallel one of {_listed(others)}" if others else ""
    rule(experts % ep == 0, "expert_parallel", f"must divide the model's num_experts={experts}; {advice}")
    sizes = f"{groups[0]}" if len(set(groups)) == 1 else _listed(groups)
    rule(
        ep in fit,
        "expert_parallel",
        f"a rank would have {experts // ep} experts, and the model has {len(groups)} groups of {sizes}; groups must end"
        f" where ranks end; {advice}",
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def check_degrees(parallel: ParallelConfig, model: ModelConfig, train: Any) -> None:
    """Check the degrees against the model and the batch; `train` is the TrainConfig. Each rule has its own message.

    Raises:
        ConfigError: "parallel.FIELD=...: rule; what to do".
    """
    mp, pp = parallel.model_parallel, parallel.pipeline_stage

    def rule(condition: bool, field: str, message: str) -> None:
        require(condition, f"parallel.{field}", f"={getattr(parallel, field)}: {message}")

    rule(
        model.num_heads % mp == 0,
        "model_parallel",
        f"must divide num_heads={model.num_heads}; use one of {divisors(model.num_heads)}",
    )
    kv_heads = model.num_kv_heads
    rule(kv_heads % mp == 0, "model_parallel", f"must divide num_kv_heads={kv_heads}; use one of {divisors(kv_heads)}")
    ffn = model.ffn_hidden_size
    rule(ffn % mp == 0, "model_parallel", f"must divide ffn_hidden_size={ffn}; use one of {divisors(ffn)}")
    rule(
        parallel.vocab_embedding == "replicated" or model.vocab_size % mp == 0,
        "vocab_embedding",
        f"model_parallel={mp} must divide vocab_size={model.vocab_size}; use replicated, or another degree",
    )
    rule(
        parallel.vocab_embedding == "replicated" or mp == 1 or model.axis_sizes().get("slot", 1) == 1,
        "vocab_embedding",
        "the word tables of several slots are read as one table, whose rows no device has a part of; use replicated",
    )
    rule(
        not parallel.sequence_parallel or model.seq_length % mp == 0,
        "sequence_parallel",
        f"model_parallel={mp} must divide seq_length={model.seq_length}; switch it off, or use another degree",
    )
    rule(pp <= model.num_layers, "pipeline_stage", f"must not exceed num_layers={model.num_layers}; use fewer stages")
    layers = parallel.stage_layers
    rule(
        not layers or min(layers) > 0 and sum(layers) == model.num_layers,
        "stage_layers",
        f"must be positive and add up to num_layers={model.num_layers}",
    )
    _check_experts(parallel, model, rule)
    micro = parallel.micro_batch_num
    rule(
        pp == 1 or train.accumulation_steps == 1,
        "pipeline_stage",
        f"train.accumulation_steps={train.accumulation_steps}: use micro_batch_num instead",
    )
    rule(
        train.batch_size % micro == 0,
        "micro_batch_num",
        f"must divide train.batch_size={train.batch_size}; raise batch_size to a multiple",
    )
