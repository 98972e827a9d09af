"""What every section and every model family's configuration is made of."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Strict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from pangu_ms.errors import ConfigError

# A string under a field is its description: `pangu config show --fields` prints it.
STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

Act = Literal["gelu", "gelu_erf", "fast_gelu"]
Dtype = Literal["float32", "float16", "bfloat16"]


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "input should be a valid number")
    return value


# Python counts true as 1; a config does not. YAML reads 1e-4 as a string, so floats also come from text.
Int = Annotated[int, Strict()]
Float = Annotated[float, BeforeValidator(_not_bool)]


def require(condition: bool, field: str, message: str) -> None:
    """Raise ConfigError "field: message" unless `condition`."""
    if not condition:
        raise ConfigError(f"{field}{message}")


def require_positive(section: Any, *names: str) -> None:
    """Each named field of `section` is above 0."""
    for name in names:
        require(getattr(section, name) > 0, name, f"={getattr(section, name)}: must be positive")


def require_not_negative(section: Any, **meaning_of_0: str) -> None:
    """Each named field of `section` is 0 or more; the message says what 0 does: require_not_negative(self, keep="keeps all")."""
    for name, meaning in meaning_of_0.items():
        require(getattr(section, name) >= 0, name, f"={getattr(section, name)}: must not be negative; 0 {meaning}")


def divisors(number: int) -> str:
    """Divisors of `number`, for the "use ..." part of a message."""
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0 and d <= 256)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ModelConfig:
    """Fields that every PanGu model has; a family adds its own and names its parameters."""

    vocab_size: Int
    """Rows of the word table; must equal the tokenizer's number of pieces."""
    hidden_size: Int
    """Width E of the residual stream."""
    num_layers: Int
    """Number of layers; alpha counts its query layer (spec A1)."""
    num_heads: Int
    """Attention heads; must divide hidden_size. A wrong number loads silently, since it changes no shape (spec A2)."""
    ffn_hidden_size: Int = 0
    """Width of the feed-forward network; 0 means 4 * hidden_size."""
    seq_length: Int = 1024
    """Context length in tokens, and rows of the position tables."""
    compute_dtype: Dtype = "float32"
    """dtype of matrix products and the residual stream; norms, softmax and loss stay float32. A CPU has no bfloat16 products."""
    layer_norm_eps: Float = 1e-5
    """Added to the variance (spec A1.1)."""
    init_std: Float = 0.02
    """Standard deviation of the normal initialisation (spec A1.7 lists 0.01 and 0.02)."""
    init_depth_scaled: bool = True
    """Divide init_std by sqrt(2 * num_layers) for the projections that write to the residual stream (spec A1.7, OLD and HF)."""

    def __post_init__(self) -> None:
        if self.ffn_hidden_size == 0:
            object.__setattr__(self, "ffn_hidden_size", 4 * self.hidden_size)
        require_positive(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size", "seq_length", "layer_norm_eps", "init_std")
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
