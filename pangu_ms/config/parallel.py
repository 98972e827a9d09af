"""How a run is laid over devices: the degrees, and the rules that they obey together with a model. No mindspore
import."""

from typing import Any, Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.fields import STRICT, Int, divisors, require, require_not_negative, require_positive
from pangu_ms.models.common.config import ModelConfig


@dataclass(frozen=True, config=STRICT)
class ParallelConfig:
    """Degrees of a plan. Ranks are data_parallel * model_parallel * pipeline_stage; see pangu_ms/parallel/mesh.py for
    their order."""

    num_devices: Int = 0
    """Devices of the job; the degrees must multiply to it. 0 means their product."""
    data_parallel: Int = 1
    """Replicas dp of the model, each with its own part of the batch; train.batch_size is that of one replica."""
    model_parallel: Int = 1
    """Devices mp that share each matrix (tensor parallelism): heads, feed-forward channels and, with
    vocab_embedding=row, the vocabulary."""
    expert_parallel: Int = 1
    """Devices ep that share the experts: a part of data_parallel, so it must divide it. Models without experts have
    1."""
    pipeline_stage: Int = 1
    """Stages pp that the layers are cut into."""
    micro_batch_num: Int = 1
    """Micro-batches that flow through the stages in one step; must divide train.batch_size. Without stages use
    train.accumulation_steps."""
    optimizer_shard: bool = False
    """Cut parameters, gradients and moments once more over the replicas that would hold equal ones; parameters are
    gathered where they are used."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping: nothing | attention's probabilities and activations |
    all but each layer's input."""
    sequence_parallel: bool = False
    """Norms and residuals cut over the sequence on the model_parallel devices: all-reduces become reduce-scatters and
    all-gathers. With stages and replicas it costs more than it saves: MindSpore then sends the stream of all replicas
    between stages."""
    vocab_embedding: Literal["replicated", "row"] = "replicated"
    """The word table (and head) whole on every model_parallel device, or cut by rows over them."""
    search_mode: Literal["sharding_propagation", "recursive_programming", "dynamic_programming", "none"] = (
        "sharding_propagation"
    )
    """How MindSpore lays out what the plan does not name. sharding_propagation: the plan names products and tables, and
    their layouts spread from there; the two searches (of auto_parallel) choose all by themselves; none
    (semi_auto_parallel) splits every other operator over all devices, which costs redistributions."""
    operator_strategies: str = ""
    """JSON file of MindSpore's operator strategies, read instead of propagating: made by hand or by `pangu plan
    rehearse --ranks 0 --output`. Needs search_mode=sharding_propagation."""
    devices_per_server: Int = 8
    """Devices with fast links among each other (HCCS); 8 in an Atlas 800."""
    stage_layers: tuple[Int, ...] = ()
    """Layers of each stage, from the first; alpha's query layer is one. Empty: balanced by their cost, embeddings and
    head included."""

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
        require_not_negative(self, num_devices="means the product of the degrees")
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
        """Devices that the degrees make."""
        return self.data_parallel * self.model_parallel * self.pipeline_stage

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.num_devices or self.product()


def check_degrees(parallel: ParallelConfig, model: ModelConfig, train: Any) -> None:
    """Degrees against the model and the batch; `train` is the TrainConfig. Each rule has its own message.

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
    experts = model.num_experts
    rule(
        parallel.expert_parallel == 1 or (experts > 0 and experts % parallel.expert_parallel == 0),
        "expert_parallel",
        f"must divide the model's num_experts={experts}; use {'one of ' + divisors(experts) if experts else '1'}",
    )
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
