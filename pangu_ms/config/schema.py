"""The run configuration: frozen dataclasses, one section each. Every field has its description under it."""

from dataclasses import field
from typing import Annotated, Literal, Union

from pydantic import Field
from pydantic.dataclasses import dataclass

from pangu_ms.config.alpha import AlphaConfig
from pangu_ms.config.base import STRICT, require
from pangu_ms.config.registry import FAMILIES

AnyModelConfig = Annotated[Union[tuple(family.config for family in FAMILIES.values())], Field(discriminator="family")] if len(FAMILIES) > 1 else AlphaConfig


@dataclass(frozen=True, config=STRICT)
class TokenizerConfig:
    """How `pangu tokenizer train` makes a vocabulary when none is given."""

    vocab_size: int = 40000
    """Number of SentencePiece pieces, specials included."""
    segmenter: Literal["jieba", "none"] = "jieba"
    """jieba cuts Chinese text into words before SentencePiece, as the released vocabulary expects (spec A5); none is for code and other languages."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Records and how they are read."""

    records: str = ""
    """Directory written by `pangu data prepare`, or MindRecord files (a glob) with an input_ids column; --data on the command line."""
    eod_reset: bool = True
    """Restart positions and attention after each end-of-document token (spec A1.5)."""
    seed: int = 1
    """The order of the sequences is a function of this seed and the epoch."""
    shuffle: bool = True
    """False reads the records in file order, as the official loader does (spec A6)."""
    held_out: float = 0.02
    """Share of documents that `prepare` puts aside for evaluation."""

    def __post_init__(self) -> None:
        require(0 <= self.held_out < 1, "held_out", f"={self.held_out}: must be in [0, 1)")


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW as the official code uses it: decoupled decay, no bias correction (spec A3.1)."""

    lr: float = 1e-4
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the end of the decay and after it."""
    warmup_steps: int = 2000
    """Steps of linear warm-up from 0."""
    decay_steps: int = 0
    """Step at which min_lr is reached; 0 means train.steps."""
    schedule: Literal["cosine", "polynomial", "constant"] = "cosine"
    """Shape of the decay."""
    power: float = 1.0
    """Exponent of the polynomial schedule; 1 is linear."""
    decay_from: Literal["warmup", "zero"] = "warmup"
    """Step from which the decay is measured; the official schedule measures from zero (spec A3.1)."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of every matrix and embedding; biases and norms have none (spec A3.1)."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient after unscaling; 0 switches clipping off."""

    def __post_init__(self) -> None:
        require(0 <= self.min_lr <= self.lr, "min_lr", f"={self.min_lr}: must be between 0 and lr={self.lr}")
        require(self.warmup_steps >= 0, "warmup_steps", f"={self.warmup_steps}: must not be negative")


@dataclass(frozen=True, config=STRICT)
class GuardConfig:
    """What makes a step be skipped, and a run stop."""

    spike_factor: float = 0.0
    """Skip a step whose loss exceeds this multiple of its running mean; 0 switches the check off."""
    spike_window: int = 100
    """Steps of the running mean, and steps before the check begins."""
    max_skipped: int = 20
    """Stop the run after this many skipped steps in a row. With dynamic loss scale the first steps may overflow: each halves the scale."""


@dataclass(frozen=True, config=STRICT)
class LossScaleConfig:
    """Dynamic loss scale; used when model.compute_dtype is float16 (spec A3.1: 2^32, factor 2, window 1000)."""

    initial: float = 2.0**16
    """First scale. The official 2^32 costs about 16 skipped steps; the scale grows back by itself."""
    factor: float = 2.0
    """Division on overflow, multiplication after `window` good steps."""
    window: int = 1000
    """Good steps before the scale grows."""


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Length of the run, batch, and how often things happen."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_size: int = 8
    """Sequences per device in one optimizer step."""
    accumulation_steps: int = 1
    """Micro-batches that one step's batch is cut into; must divide batch_size. The result equals the uncut batch."""
    seed: int = 1
    """Seed of the initial weights and of dropout."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 0
    """Steps between evaluations on the held-out records; 0: only at the end."""
    eval_batches: int = 50
    """Batches of held-out records per evaluation."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; 0 keeps all."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation_steps", "log_every"):
            require(getattr(self, name) > 0, name, f"={getattr(self, name)}: must be positive")
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
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        require(
            not (self.runtime.device == "CPU" and self.model.compute_dtype == "bfloat16"),
            "model.compute_dtype",
            "=bfloat16: MindSpore's CPU kernels have no bfloat16 matrix product; use float32 or float16, or runtime.device=Ascend",
        )
