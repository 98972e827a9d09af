"""What every section and every model family's configuration is made of."""

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pangu_ms.errors import ConfigError

# A string under a field is its description: `pangu config show --fields` prints it.
STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Act = Literal["gelu", "gelu_erf", "fast_gelu"]
Dtype = Literal["float32", "float16", "bfloat16"]


def require(condition: bool, field: str, message: str) -> None:
    """Raise ConfigError "field: message" unless `condition`."""
    if not condition:
        raise ConfigError(f"{field}{message}")


def divisors(number: int) -> str:
    """Divisors of `number`, for the "use ..." part of a message."""
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0 and d <= 256)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ModelConfig:
    """Fields that every PanGu model has; a family adds its own and names its parameters."""

    vocab_size: int
    """Rows of the word table; must equal the tokenizer's number of pieces."""
    hidden_size: int
    """Width E of the residual stream."""
    num_layers: int
    """Number of layers; alpha counts its query layer (spec A1)."""
    num_heads: int
    """Attention heads; must divide hidden_size. A wrong number loads silently, since it changes no shape (spec A2)."""
    ffn_hidden_size: int = 0
    """Width of the feed-forward network; 0 means 4 * hidden_size."""
    seq_length: int = 1024
    """Context length in tokens, and rows of the position tables."""
    compute_dtype: Dtype = "float32"
    """dtype of matrix products and the residual stream; norms, softmax and loss stay float32. A CPU has no bfloat16 products."""
    layer_norm_eps: float = 1e-5
    """Added to the variance (spec A1.1)."""
    init_std: float = 0.02
    """Standard deviation of the normal initialisation (spec A1.7 lists 0.01 and 0.02)."""
    init_depth_scaled: bool = True
    """Divide init_std by sqrt(2 * num_layers) for the projections that write to the residual stream (spec A1.7, OLD and HF)."""

    def __post_init__(self) -> None:
        if self.ffn_hidden_size == 0:
            object.__setattr__(self, "ffn_hidden_size", 4 * self.hidden_size)
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size", "seq_length"):
            require(getattr(self, name) > 0, name, f"={getattr(self, name)}: must be positive")
        require(
            self.hidden_size % self.num_heads == 0,
            "num_heads",
            f"={self.num_heads}: must divide hidden_size={self.hidden_size}; use one of {divisors(self.hidden_size)}",
        )

    @property
    def head_dim(self) -> int:
        """Size D of one attention head."""
        return self.hidden_size // self.num_heads

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the model with its shape, in the model's order."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """Number of trainable values."""
        total = 0
        for shape in self.parameter_shapes().values():
            size = 1
            for length in shape:
                size *= length
            total += size
        return total
