"""PanGu-alpha: its fields and its parameters. Source: specification A1, A2."""

from typing import Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.fields import STRICT, Float, Int, require, require_positive
from pangu_ms.models.common.config import MASK_BYTES, Activation, ModelConfig, ParameterSpec, bias, gain


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AlphaConfig(ModelConfig):
    """PanGu-alpha: num_layers - 1 ordinary blocks and one query layer (spec A1)."""

    family: Literal["alpha"] = "alpha"
    """Model family: a folder of pangu_ms/models. Every config states it."""
    vocab_size: Int = 40000
    """Vocabulary size (rows of the word embedding table); must equal the tokenizer's number of pieces. The released
    vocabulary has 40,000 (spec A2)."""
    hidden_act: Literal["gelu", "gelu_erf", "fast_gelu"] = "gelu"
    """gelu (tanh form) | gelu_erf | fast_gelu = x * sigmoid(1.702 x), which the released weights used on Ascend (spec
    A1.4)."""
    layer_norm_eps: Float = 1e-5
    """Added to the variance (spec A1.1)."""
    final_norm_position: Literal["before_query", "after_query"] = "before_query"
    """Position of the final LayerNorm: before or after the query layer. All released weights use before_query; official
    runs with pipeline stages computed after_query (spec A1.2)."""
    dropout: Float = 0.1
    """Probability for embeddings, attention probabilities and the outputs of attention and FFN while training (spec
    A1.3)."""
    init_rule: Literal["constant", "depth_scaled", "layer_scaled"] = "depth_scaled"
    """Scaling of init_std for the projections that write to the residual stream. constant: unscaled; depth_scaled:
    divided by sqrt(2 * num_layers) (spec A1.7, OLD and HF); layer_scaled: divided by sqrt(2 * (i + 1)) in layer i,
    counted from 0 (InternLM)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_heads_divide_hidden_size()
        require_positive(self, "layer_norm_eps")
        require(
            self.num_layers >= 2, "num_layers", f"={self.num_layers}: must be at least 2, one block and the query layer"
        )
        require(0 <= self.dropout < 1, "dropout", f"={self.dropout}: must be in [0, 1)")

    def axis_sizes(self) -> dict[str, int]:
        """See ModelConfig."""
        return super().axis_sizes() | {"position": self.seq_length}

    def layer_names(self) -> list[str]:
        """See ModelConfig: the query layer is the last."""
        return [f"blocks.{i}" for i in range(self.num_layers - 1)] + ["query_layer"]

    def layer_parameters(self, layer: int) -> dict[str, ParameterSpec]:
        """See ModelConfig."""
        specs = {"attention_norm.weight": gain("embed"), "attention_norm.bias": bias("embed")}
        for name in ("query", "key", "value"):
            specs |= {
                f"attention.{name}.weight": self.matrix("heads", "embed"),
                f"attention.{name}.bias": bias("heads"),
            }
        specs |= {
            "attention.output.weight": self.residual_matrix("heads", layer),
            "attention.output.bias": bias("embed"),
        }
        specs |= {"ffn_norm.weight": gain("embed"), "ffn_norm.bias": bias("embed")}
        specs |= {"ffn.up.weight": self.matrix("ffn", "embed"), "ffn.up.bias": bias("ffn")}
        return specs | {"ffn.down.weight": self.residual_matrix("ffn", layer), "ffn.down.bias": bias("embed")}

    def outer_parameters(self) -> tuple[dict[str, ParameterSpec], dict[str, ParameterSpec]]:
        """See ModelConfig."""
        tables = {"word_embedding": "vocab", "position_embedding": "position", "query_embedding": "position"}
        before = {f"{name}.weight": self.matrix(axis, "embed") for name, axis in tables.items()}
        return before, {"final_norm.weight": gain("embed"), "final_norm.bias": bias("embed")}

    def outer_parameter_layers(self) -> dict[str, tuple[int, ...]]:
        """See ModelConfig: the query layer reads the query table, the final norm is on its stage, and the head is the
        word table (spec A4)."""
        before, behind = AlphaConfig.outer_parameters(self)  # and not those of a family that is derived from this one
        first = {"word_embedding.weight": (0, -1), "position_embedding.weight": (0,), "query_embedding.weight": (-1,)}
        assert first.keys() == before.keys()
        return first | dict.fromkeys(behind, (-1,))

    def feed_forward_activations(
        self, layer: int, element_bytes: int, model_parallel: int, sequence_parallel: int
    ) -> list[Activation]:
        """See ModelConfig: the last layer keeps its position queries as well."""
        S, E, F = self.seq_length, self.hidden_size, self.ffn_hidden_size
        inner = element_bytes * S * F // model_parallel
        kept = [Activation("before the activation", inner), Activation("activation", inner, selective=True)]
        if self.dropout:
            kept.append(Activation("dropout masks", 2 * MASK_BYTES * S * E // sequence_parallel, count=0))
        if layer == self.num_layers - 1:
            kept.append(Activation("position queries", element_bytes * S * E))
        return kept

    def fields_free_in_students(self) -> set[str]:
        """See ModelConfig."""
        return super().fields_free_in_students() | {"dropout"}


CONFIG = AlphaConfig
