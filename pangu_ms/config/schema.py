"""The run configuration: frozen dataclasses, one section each. Every field has its description under it."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, core_schema

from pangu_ms.config.parallel import ParallelConfig, check_degrees
from pangu_ms.core.fields import STRICT, Float, Int, require, require_not_negative, require_positive
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.registry import FAMILIES


class _ByFamily:
    """Pydantic schema of the model section: the class that `family` names validates it. It is built here because
    pydantic's Field(discriminator=...) refuses a union of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(family.config) for name, family in FAMILIES.items()}
        return core_schema.tagged_union_schema(choices, discriminator="family")


AnyModelConfig = Annotated[ModelConfig, _ByFamily()]


@dataclass(frozen=True, config=STRICT)
class TokenizerConfig:
    """How `pangu tokenizer train` makes a vocabulary when none is given."""

    vocab_size: Int = 40000
    """Number of SentencePiece pieces, specials included."""
    segmenter: Literal["jieba", "none"] = "jieba"
    """jieba cuts Chinese text into words before SentencePiece, as the released vocabulary expects (spec A5); none is
    for code and other languages."""

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size")


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which records are read, and in which order."""

    records: str = ""
    """Directory written by `pangu data prepare`, or MindRecord files (a glob) with an input_ids column; --data on the
    command line."""
    eod_reset: bool = True
    """Restart positions and attention after each end-of-document token (spec A1.5)."""
    seed: Int = 1
    """The order of the sequences is a function of this seed and the epoch."""
    shuffle: bool = True
    """False reads the records in file order, as the official loader does (spec A6)."""
    order: str = ""
    """File written by `pangu data resample`: only the rows that it lists are read, in its order or, with shuffle, in a
    new permutation each epoch. Empty: all rows are read (spec E2.4)."""
    held_out: Float = 0.02
    """Share of documents that `prepare` puts aside for evaluation."""
    mixture: dict[str, Float] = field(default_factory=dict)
    """Weight of each domain of the records, such as {zh: 0.4, code: 0.6}: its share of the sequences that are read. The
    weights need not sum to 1; domains of weight 0, and domains without a weight, are not read. Empty: every epoch reads
    all rows once, whatever their domain."""
    samples_per_domain: dict[str, Int] = field(default_factory=dict)
    """Number of sequences of each domain in the batch of every replica, such as {zh: 2, code: 6}; the sum must be
    train.batch_size. A batch has its domains one after the other in alphabetical order. Excludes mixture."""

    def __post_init__(self) -> None:
        require(0 <= self.held_out < 1, "held_out", f"={self.held_out}: must be in [0, 1)")
        require_not_negative(self, seed="is the smallest")
        require(
            not (self.mixture and self.samples_per_domain),
            "samples_per_domain",
            ": data.mixture is given, too; a run has one of them; set the other one to {}",
        )
        _require_amounts("mixture", self.mixture)
        _require_amounts("samples_per_domain", self.samples_per_domain)
        total = sum(self.mixture.values())
        for name, weight in self.mixture.items():
            require(
                weight == 0 or weight * MIXTURE_STEPS >= total,
                f"mixture.{name}",
                f"={weight}: must be 0 or at least {1 / MIXTURE_STEPS:.1g} of the weights' sum, which is {total:g}",
            )


MIXTURE_STEPS = 1 << 20
"""Longest period of a mixture, in samples: the smallest share of a domain is one sample of a period."""


def _require_amounts(name: str, amounts: dict[str, Any]) -> None:
    """Require that amounts by domain are not negative, and not all 0."""
    for domain, amount in amounts.items():
        require(amount >= 0, f"{name}.{domain}", f"={amount}: must not be negative; 0 reads nothing of the domain")
    require(not amounts or any(amounts.values()), name, ": all are 0; at least one domain must be read")


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW as the official code uses it: decoupled decay, no bias correction (spec A3.1)."""

    lr: Float = 1e-4
    """Peak learning rate."""
    min_lr: Float = 1e-6
    """Learning rate at the end of the decay and after it."""
    base_batch_tokens: Int = 0
    """Tokens of the batch that lr and min_lr are meant for: both are multiplied by sqrt(train.batch_size *
    model.seq_length / base_batch_tokens), which is safe for batches below 4 M tokens (spec E2.5). 0 leaves both
    unscaled."""
    warmup_steps: Int = 100
    """Steps of linear warm-up from 0. The official code uses 2000 (spec A3.1), which is more steps than a trial run
    has; the large configs set that."""
    decay_steps: Int = 0
    """Step at which min_lr is reached; 0 means train.steps."""
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    """Shape of the decay."""
    power: Float = 1.0
    """Exponent of the polynomial schedule; 1 is linear."""
    decay_from: Literal["warmup", "zero"] = "warmup"
    """Step from which the decay is measured; the official schedule measures from zero (spec A3.1)."""
    beta1: Float = 0.9
    """Decay of the first moment."""
    beta2: Float = 0.95
    """Decay of the second moment."""
    eps: Float = 1e-8
    """Added to the square root of the second moment."""
    expert_eps: Float = 1e-20
    """The same for experts and embedding slots, whose gradients are much smaller (spec C1). A gradient below 1e-19 has
    a second moment of 0 in float32; its step then has the size of lr, whatever the gradient."""
    lazy_experts: bool = True
    """An expert or embedding slot that no token of a step came to is left alone: no update, no decay, and its moments
    stay. false updates all in every step, as AdamW does other parameters."""
    weight_decay: Float = 0.1
    """Decoupled decay of every matrix and embedding; biases and norms have none (spec A3.1)."""
    clip_norm: Float = 1.0
    """Largest global norm of the gradient after unscaling; 0 switches clipping off."""

    def __post_init__(self) -> None:
        require(0 <= self.min_lr <= self.lr, "min_lr", f"={self.min_lr}: must be between 0 and lr={self.lr}")
        require_not_negative(
            self, warmup_steps="starts at lr", decay_steps="means train.steps", base_batch_tokens="takes lr as it is"
        )
        require_not_negative(self, weight_decay="switches decay off", clip_norm="switches clipping off")
        require_positive(self, "power", "eps", "expert_eps")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, f"={getattr(self, name)}: must be in [0, 1)")
        require(
            self.schedule == "constant" or self.decay_steps == 0 or self.decay_steps > self.warmup_steps,
            "decay_steps",
            f"={self.decay_steps}: must exceed warmup_steps={self.warmup_steps}; raise it, shorten the warm-up, or use"
            " 0 for train.steps",
        )


@dataclass(frozen=True, config=STRICT)
class OffloadConfig:
    """Where experts and embedding slots are kept while training (spec C4, ECSS). Each step fetches those of the
    domains of its batch, so the saving grows with the number of domains that a batch does not have."""

    experts: bool = False
    """Keep them, with their float32 moments, in host memory; only a working set is in the graph. For one process."""
    directory: str = ""
    """Directory for memory-mapped files, on a fast disk, that hold them in place of memory. Empty: memory."""
    transfer: Literal["auto", "in_place", "copy"] = "auto"
    """How the working set reaches the graph. in_place: a CPU graph reads the host's arrays; copy: each step copies
    them, as for a device with memory of its own; auto: in_place on a CPU, copy elsewhere."""


@dataclass(frozen=True, config=STRICT)
class GuardConfig:
    """When a step is skipped, and when the run stops."""

    spike_factor: Float = 0.0
    """Skip a step whose loss exceeds this multiple of its running mean; 0 switches the check off."""
    spike_window: Int = 100
    """Steps of the running mean, and steps before the check begins."""
    max_skipped: Int = 20
    """Stop the run after this many skipped steps in a row. With dynamic loss scaling the first steps may overflow; each
    overflow divides the scale by loss_scale.factor."""

    def __post_init__(self) -> None:
        require(
            self.spike_factor == 0 or self.spike_factor > 1,
            "spike_factor",
            f"={self.spike_factor}: must exceed 1, or ordinary steps are skipped; 0 switches the check off",
        )
        require_positive(self, "spike_window", "max_skipped")


@dataclass(frozen=True, config=STRICT)
class LossScaleConfig:
    """Dynamic loss scale; used when model.compute_dtype is float16 (spec A3.1: 2^32, factor 2, window 1000)."""

    initial: Float = 2.0**16
    """First scale. The official 2^32 costs about 16 skipped steps; the scale grows back by itself."""
    factor: Float = 2.0
    """The scale is divided by it on overflow, and multiplied by it after `window` steps without overflow."""
    window: Int = 1000
    """Steps without overflow before the scale grows."""

    def __post_init__(self) -> None:
        require_positive(self, "initial", "window")
        require(self.factor > 1, "factor", f"={self.factor}: must exceed 1; the official code uses 2")


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Length of the run, its batch, and the intervals of logging, evaluation and checkpoints."""

    steps: Int = 1000
    """Optimizer steps of the whole run."""
    batch_size: Int = 8
    """Sequences in one optimizer step on each of the parallel.data_parallel replicas."""
    accumulation_steps: Int = 1
    """Micro-batches that one step's batch is split into (gradient accumulation); must divide batch_size. The result
    equals that of the unsplit batch."""
    seed: Int = 1
    """Seed of the initial weights and of dropout."""
    log_every: Int = 1
    """Steps between lines of metrics.jsonl."""
    eval_every: Int = 0
    """Steps between evaluations on the held-out records; 0: only at the end."""
    eval_batches: Int = 50
    """Batches of held-out records per evaluation."""
    eval_tasks: list[str] = field(default_factory=list)
    """Benchmark tasks that the model is scored on while it is trained, such as [c3, tnews], or files of tasks: those of
    log-probabilities, without demonstrations. `pangu tasks list` shows what there is."""
    eval_tasks_every: Int = 0
    """Steps between these evaluations; 0: only at the end."""
    eval_tasks_items: Int = 200
    """First items of each task that are asked; 0 asks all."""
    eval_tasks_data: str = ""
    """Directory with the files of the tasks."""
    save_every: Int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: Int = 2
    """Newest checkpoints kept; 0 keeps all."""

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size", "accumulation_steps", "log_every", "eval_batches")
        require_not_negative(
            self,
            eval_every="means only at the end",
            eval_tasks_every="means only at the end",
            eval_tasks_items="asks all",
            save_every="means only at the end",
            keep_checkpoints="keeps all",
            seed="is the smallest",
        )
        require(
            self.batch_size % self.accumulation_steps == 0,
            "accumulation_steps",
            f"={self.accumulation_steps}: must divide batch_size={self.batch_size}",
        )


@dataclass(frozen=True, config=STRICT)
class RuntimeConfig:
    """The device and its compiler."""

    device: Literal["CPU", "Ascend"] = "CPU"
    """MindSpore device target. Ascend is untested: no device was at hand."""
    chip: Literal["", "ascend910", "ascend910b"] = ""
    """Accelerator that the plan is made for: `pangu plan` uses its rates and memory, `pangu manifest` its image and
    labels. Empty: not specified."""
    compile_cache: bool = True
    """Keep compiled graphs in the user's cache directory; they can be deleted at any time."""


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Everything that a run depends on."""

    model: AnyModelConfig
    """Architecture and size."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        check_degrees(self.parallel, self.model, self.train)
        require(
            not self.offload.experts or bool(self.model.members_of([0])),
            "offload.experts",
            f": family {self.model.family} has no experts whose use depends on a domain; switch it off",
        )
        require(
            not self.offload.experts or self.parallel.world == 1,
            "offload.experts",
            f": keeps experts in the memory of one process; the plan has {self.parallel.world} ranks; use one, or"
            " switch it off",
        )
        require(
            not self.train.eval_tasks
            or not self.offload.experts
            and (self.runtime.device == "CPU" or self.parallel.world == 1),
            "train.eval_tasks",
            f"={self.train.eval_tasks}: no process of this run has the whole model in its memory; use [], and score its"
            " checkpoints",
        )
        samples = self.data.samples_per_domain
        require(
            not samples or sum(samples.values()) == self.train.batch_size,
            "data.samples_per_domain",
            f": {sum(samples.values())} samples in all, train.batch_size={self.train.batch_size}: must be equal; set"
            f" train.batch_size={sum(samples.values())} or change the samples",
        )

    @property
    def global_batch_size(self) -> int:
        """Sequences in one optimizer step over all replicas."""
        return self.train.batch_size * self.parallel.data_parallel
