"""PanGu-alpha: its fields and its parameters. Source: specification A1, A2."""

from typing import Literal

from pydantic.dataclasses import dataclass

from pangu_ms.config.base import STRICT, Act, Float, Int, ModelConfig, require


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AlphaConfig(ModelConfig):
    """PanGu-alpha: num_layers - 1 ordinary blocks and one query layer (spec A1)."""

    family: Literal["alpha"] = "alpha"
    """Model family; chooses the file in pangu_ms/models. Every config states it."""
    vocab_size: Int = 40000
    """Rows of the word table; must equal the tokenizer's number of pieces. The released vocabulary has 40,000 (spec A2)."""
    hidden_act: Act = "gelu"
    """gelu (tanh form) | gelu_erf | fast_gelu = x * sigmoid(1.702 x), which the released weights used on Ascend (spec A1.4)."""
    final_norm_position: Literal["before_query", "after_query"] = "before_query"
    """Where the final LayerNorm stands. All released weights: before_query. Official runs with pipeline stages computed after_query (spec A1.2)."""
    dropout: Float = 0.1
    """Probability for embeddings, attention probabilities and the outputs of attention and FFN while training (spec A1.3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_layers >= 2, "num_layers", f"={self.num_layers}: must be at least 2, one block and the query layer")
        require(0 <= self.dropout < 1, "dropout", f"={self.dropout}: must be in [0, 1)")

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """See ModelConfig. All matrices are [out, in]."""
        E, F, S = self.hidden_size, self.ffn_hidden_size, self.seq_length
        block = {"attention_norm.weight": (E,), "attention_norm.bias": (E,)}
        for name in ("query", "key", "value", "output"):
            block |= {f"attention.{name}.weight": (E, E), f"attention.{name}.bias": (E,)}
        block |= {"ffn_norm.weight": (E,), "ffn_norm.bias": (E,)}
        block |= {"ffn.up.weight": (F, E), "ffn.up.bias": (F,), "ffn.down.weight": (E, F), "ffn.down.bias": (E,)}
        shapes = {"word_embedding.weight": (self.vocab_size, E), "position_embedding.weight": (S, E), "query_embedding.weight": (S, E)}
        for prefix in [f"blocks.{i}" for i in range(self.num_layers - 1)] + ["query_layer"]:
            shapes |= {f"{prefix}.{name}": shape for name, shape in block.items()}
        return shapes | {"final_norm.weight": (E,), "final_norm.bias": (E,)}
