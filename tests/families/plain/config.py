"""The fields and the parameters of a plain decoder."""

from typing import Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.fields import STRICT, Float, require_positive
from pangu_ms.models.common.config import Activation, ModelConfig, ParameterSpec, bias, gain


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PlainConfig(ModelConfig):
    """num_layers ordinary blocks, learned positions, the word table as the head."""

    family: Literal["plain"] = "plain"
    """Model family."""
    layer_norm_eps: Float = 1e-5
    """Added to the variance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_heads_divide_hidden_size()
        require_positive(self, "layer_norm_eps")

    def axis_sizes(self) -> dict[str, int]:
        return super().axis_sizes() | {"position": self.seq_length}

    def layer_parameters(self, layer: int) -> dict[str, ParameterSpec]:
        matrices = {f"attention.{name}": self.matrix("heads", "embed") for name in ("query", "key", "value")}
        matrices |= {"attention.output": self.residual_matrix("heads", layer)}
        matrices |= {"ffn.up": self.matrix("ffn", "embed"), "ffn.down": self.residual_matrix("ffn", layer)}
        specs: dict[str, ParameterSpec] = {}
        for name in ("attention_norm", "ffn_norm"):
            specs |= {f"{name}.weight": gain("embed"), f"{name}.bias": bias("embed")}
        for name, matrix in matrices.items():
            specs |= {f"{name}.weight": matrix, f"{name}.bias": bias(matrix.axes[0])}
        return specs

    def outer_parameters(self) -> tuple[dict[str, ParameterSpec], dict[str, ParameterSpec]]:
        tables = {"word_embedding": "vocab", "position_embedding": "position"}
        before = {f"{name}.weight": self.matrix(axis, "embed") for name, axis in tables.items()}
        return before, {"final_norm.weight": gain("embed"), "final_norm.bias": bias("embed")}

    def outer_parameter_layers(self) -> dict[str, tuple[int, ...]]:
        first: dict[str, tuple[int, ...]] = {"word_embedding.weight": (0, -1), "position_embedding.weight": (0,)}
        return first | dict.fromkeys(self.outer_parameters()[1], (-1,))

    def feed_forward_activations(
        self, layer: int, element_bytes: int, model_parallel: int, sequence_parallel: int
    ) -> list[Activation]:
        inner = element_bytes * self.seq_length * self.ffn_hidden_size // model_parallel
        return [Activation("before the activation", inner), Activation("activation", inner, selective=True)]


CONFIG = PlainConfig
