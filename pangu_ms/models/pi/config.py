"""PanGu-pi: its fields and its parameters. Source: specification D2 to D4, E1, F1.

With siaf_terms=1 and aug_shortcut_branches=0 it is LLaMA; with attention_bias it is openPangu-Embedded.
"""

import math
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.errors import ConfigError
from pangu_ms.core.fields import (
    STRICT,
    Act,
    Float,
    Int,
    divisors,
    require,
    require_at_most,
    require_not_negative,
    require_positive,
)
from pangu_ms.models.common.config import Activation, ModelConfig, ParameterSpec, bias, gain

_SERIES, _SHORTCUT = {"siaf_mode", "siaf_position"}, {"aug_shortcut_input", "aug_shortcut_act"}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PiConfig(ModelConfig):
    """PanGu-pi: RMSNorm, rotary positions, gated feed-forward with series activation, attention with augmented
    shortcuts."""

    ADDITIONS: ClassVar[dict[str, Any]] = {
        "siaf_terms": 2,
        "siaf_init": "identity",
        "aug_shortcut_branches": 1,
        "aug_shortcut_init": "zero",
    }
    FIELDS_OF_PARTS: ClassVar[dict[str, str]] = {
        "aug_shortcut": "aug_shortcut_branches or aug_shortcut_bias",
        "attention": "attention_bias",
        "head": "tie_word_embeddings",
    }

    family: Literal["pi"] = "pi"
    """Model family: a folder of pangu_ms/models. Every config states it."""
    vocab_size: Int = 100883
    """Vocabulary size (rows of the word embedding table); must equal the tokenizer's number of pieces. PanGu-pi has
    100,883 (spec D4)."""
    seq_length: Int = 2048
    """Context length in tokens; PanGu-pi's is not published, pi Pro trained on 2048 (spec D4, E1)."""
    num_kv_heads: Int = 0
    """Heads of keys and values, each shared by num_heads / num_kv_heads query heads; 0 means num_heads."""
    head_dim: Int = 0
    """Size D of one attention head; 0 means hidden_size / num_heads."""
    hidden_act: Act = "silu"
    """Activation of the gate (and of the terms of its series); silu makes the gated feed-forward SwiGLU."""
    rms_norm_eps: Float = 1e-5
    """Added to the mean square (spec E1, F1)."""
    rope_theta: Float = 10000.0
    """Base of the rotary angles; openPangu-Embedded has 16e6 (spec F1)."""
    attention_bias: bool = False
    """Biases of query, key, value and output projections, as in openPangu-Embedded (spec F1)."""
    tie_word_embeddings: bool = False
    """Use the word embedding table also as the output head."""
    siaf_terms: Int = 2
    """Terms n of the series activation phi(x) = sum_i act(a_i x + b_i); 1 is the plain activation, without parameters
    (spec D3: n = 2 chosen)."""
    siaf_mode: Literal["channel", "scalar", "matrices"] = "channel"
    """channel: a_i and b_i are vectors with one value per channel; scalar: they are one number each; matrices: each
    term has a gate matrix instead, as the paper's eq. 9 can be read (spec D3; not certain)."""
    siaf_position: Literal["gate", "product"] = "gate"
    """Where phi is applied. gate: in place of the gate's activation, down(phi(gate) * up); product: to the gated
    product, down(phi(act(gate) * up)) (spec D3; not certain)."""
    siaf_init: Literal["random", "mean", "identity"] = "random"
    """Initial values of the series; b_i = 0 always. random: a_1 = 1 and the other a_i are normal with init_std; mean:
    all a_i are 1/n plus such noise, since equal terms would stay equal; identity: a_1 = 1 and the other a_i are 0, so
    that on the gate phi is the plain activation at first (spec D3; not certain). With siaf_mode=matrices identity makes
    the added gate matrices 0."""
    aug_shortcut_branches: Int = 1
    """Number T of augmented shortcuts beside each attention; 0 for none. PanGu-pi's number is not published (spec
    D2)."""
    aug_shortcut_reduction: Int = 32
    """Reduction r of the bottleneck: a branch goes through hidden_size / r channels (spec D2: 32 chosen)."""
    aug_shortcut_input: Literal["normed", "stream"] = "normed"
    """What a branch reads: the normalised hidden states that attention reads, or the residual stream (spec D2; not
    certain)."""
    aug_shortcut_act: Act = "gelu"
    """Activation between a branch's two matrices (spec D2: "such as GeLU")."""
    aug_shortcut_bias: bool = False
    """Biases of a branch's two matrices (spec D2; not certain)."""
    aug_shortcut_init: Literal["normal", "zero"] = "normal"
    """Initial value of a branch's second matrix. normal: like any projection; zero: 0, so that at first the model
    computes what it does without the branch (spec D2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim == 0:
            self._require_heads_divide_hidden_size()
            self._resolve("head_dim", self.hidden_size // self.num_heads)
        if self.num_kv_heads == 0:
            self._resolve("num_kv_heads", self.num_heads)
        require_positive(
            self, "num_kv_heads", "head_dim", "rms_norm_eps", "rope_theta", "siaf_terms", "aug_shortcut_reduction"
        )
        require_not_negative(self, aug_shortcut_branches="is none")
        require_at_most(self, 64, "siaf_terms", "aug_shortcut_branches")
        require(
            self.head_dim % 2 == 0,
            "head_dim",
            f"={self.head_dim}: must be even, as rotary positions turn pairs; change it, or hidden_size or num_heads",
        )
        kv_rule = f"={self.num_kv_heads}: must divide num_heads={self.num_heads}; use one of {divisors(self.num_heads)}"
        require(self.num_heads % self.num_kv_heads == 0, "num_kv_heads", kv_rule)
        rule = (
            f"={self.aug_shortcut_reduction}: must divide hidden_size={self.hidden_size}; use one of"
            f" {divisors(self.hidden_size)}"
        )
        require(
            self.aug_shortcut_branches == 0 or self.hidden_size % self.aug_shortcut_reduction == 0,
            "aug_shortcut_reduction",
            rule,
        )
        clash = "=product: has no gate matrices to add; use siaf_mode=channel or scalar"
        require(self.siaf_mode != "matrices" or self.siaf_position == "gate", "siaf_position", clash)

    def default_ffn_hidden_size(self) -> int:
        """8/3 of the hidden size, rounded up to a multiple of 256 (spec D4)."""
        return -(-8 * self.hidden_size // (3 * 256)) * 256

    def axis_sizes(self) -> dict[str, int]:
        """See ModelConfig."""
        return super().axis_sizes() | {
            "siaf_term": self.siaf_terms,
            "bottleneck": self.hidden_size // self.aug_shortcut_reduction,
            "one": 1,
        }

    def layer_parameters(self, layer: int) -> dict[str, ParameterSpec]:
        """See ModelConfig."""
        attention = {
            "query": self.matrix("heads", "embed"),
            "key": self.matrix("kv_heads", "embed"),
            "value": self.matrix("kv_heads", "embed"),
            "output": self.residual_matrix("heads", layer),
        }
        ffn = {
            "gate": self.matrix("ffn", "embed"),
            "up": self.matrix("ffn", "embed"),
            "down": self.residual_matrix("ffn", layer),
        }
        specs = {"attention_norm.weight": gain("embed")}
        specs |= _linears("attention", attention, self.attention_bias)
        for branch in range(self.aug_shortcut_branches):
            specs |= _linears(f"aug_shortcut.{branch}", self._shortcut(layer), self.aug_shortcut_bias)
        specs["ffn_norm.weight"] = gain("embed")
        return specs | _linears("ffn", ffn, False) | self._siaf()

    def _shortcut(self, layer: int) -> dict[str, ParameterSpec]:
        zero = ParameterSpec(("embed", "bottleneck"), decay=True)
        return {
            "down": self.matrix("bottleneck", "embed"),
            "up": zero if self.aug_shortcut_init == "zero" else self.residual_matrix("bottleneck", layer),
        }

    def _siaf(self) -> dict[str, ParameterSpec]:
        terms, noise = self.siaf_terms, self.init_std
        if terms == 1:
            return {}
        if self.siaf_mode == "matrices":
            gate = ParameterSpec(("ffn", "embed"), std=0.0 if self.siaf_init == "identity" else noise, decay=True)
            return {f"ffn.siaf_gates.{i}.weight": gate for i in range(terms - 1)}
        axes = ("siaf_term", "ffn" if self.siaf_mode == "channel" else "one")
        mean: tuple[float, ...] = (1 / terms,) * terms if self.siaf_init == "mean" else (1.0,) + (0.0,) * (terms - 1)
        noise_of_first = noise if self.siaf_init == "mean" else 0.0
        noise_of_others = 0.0 if self.siaf_init == "identity" else noise
        std = (noise_of_first, *(noise_of_others,) * (terms - 1))
        return {"ffn.siaf.scale": ParameterSpec(axes, mean, std), "ffn.siaf.shift": ParameterSpec(axes)}

    def outer_parameters(self) -> tuple[dict[str, ParameterSpec], dict[str, ParameterSpec]]:
        """See ModelConfig."""
        table = self.matrix("vocab", "embed")
        head = {} if self.tie_word_embeddings else {"head.weight": table}
        return {"word_embedding.weight": table}, {"final_norm.weight": gain("embed")} | head

    def outer_parameter_layers(self) -> dict[str, tuple[int, ...]]:
        """See ModelConfig."""
        before, behind = self.outer_parameters()
        first: tuple[int, ...] = (0, -1) if self.tie_word_embeddings else (0,)
        return dict.fromkeys(before, first) | dict.fromkeys(behind, (-1,))

    def feed_forward_activations(
        self, layer: int, element_bytes: int, model_parallel: int, sequence_parallel: int
    ) -> list[Activation]:
        """See ModelConfig: the shortcut branches are among them."""
        inner = element_bytes * self.seq_length * self.ffn_hidden_size // model_parallel
        gates = self.siaf_terms if self.siaf_mode == "matrices" else 1
        # With siaf_position=product the series reads another tensor, the gated product.
        products = 2 if self.siaf_terms > 1 and self.siaf_position == "product" else 1
        kept = [
            Activation("gates and up", (gates + 1) * inner, count=gates + 1),
            Activation("activation", products * inner, selective=True, count=products),
        ]
        if branches := self.aug_shortcut_branches:
            bottleneck = element_bytes * self.seq_length * self.axis_sizes()["bottleneck"]
            kept.append(Activation("shortcut branches", 2 * branches * bottleneck, count=2 * branches))
        return kept

    def fields_for_hidden_size(self, hidden_size: int) -> dict[str, Any]:
        """See ModelConfig."""
        return {"aug_shortcut_reduction": math.gcd(self.aug_shortcut_reduction, hidden_size)}

    def fields_free_in_students(self) -> set[str]:
        """See ModelConfig."""
        free = super().fields_free_in_students() | {"num_kv_heads", "siaf_init", "aug_shortcut_init"}
        # The parameters that these three add or remove have names of their own.
        free |= {"attention_bias", "aug_shortcut_bias", "tie_word_embeddings"}
        free |= {"siaf_terms", "aug_shortcut_branches", "aug_shortcut_reduction"}  # `require_student` has their rules
        free |= _SERIES if self.siaf_terms == 1 else set()
        return free | (set() if self.aug_shortcut_branches else _SHORTCUT)

    def require_student(self, student: ModelConfig) -> None:
        """See ModelConfig."""
        assert isinstance(student, PiConfig)
        if student.siaf_terms < self.siaf_terms:
            raise ConfigError(
                f"model.siaf_terms={student.siaf_terms}: the teacher has {self.siaf_terms}, and no term can be dropped;"
                " set it to that or more"
            )

    def require_same_function(self, student: ModelConfig) -> None:
        """See ModelConfig (spec D2, D3)."""
        assert isinstance(student, PiConfig)
        if student.siaf_terms > self.siaf_terms:
            student._require_initial("siaf_init", "identity")
            # With one term there is no phi, so siaf_position=product would add an activation of the product.
            if self.siaf_terms == 1:
                student._require_initial("siaf_position", "gate")
        own, wanted = self.axis_sizes()["bottleneck"], student.axis_sizes()["bottleneck"]
        if student.aug_shortcut_branches > self.aug_shortcut_branches or wanted > own:
            student._require_initial("aug_shortcut_init", "zero")
        if student.aug_shortcut_branches and self.aug_shortcut_branches and wanted < own:
            raise ConfigError(
                f"model.aug_shortcut_reduction={student.aug_shortcut_reduction}: would cut the teacher's branches; set"
                f" it to {self.aug_shortcut_reduction} or less"
            )

    def _require_initial(self, field: str, value: str) -> None:
        if getattr(self, field) != value:
            raise ConfigError(
                f"model.{field}={getattr(self, field)}: the additions would change the model's function; set"
                f" model.{field}={value}"
            )


def _linears(prefix: str, matrices: dict[str, ParameterSpec], with_bias: bool) -> dict[str, ParameterSpec]:
    """The weights and, if wanted, biases of dense layers."""
    specs = {}
    for name, matrix in matrices.items():
        specs[f"{prefix}.{name}.weight"] = matrix
        if with_bias:
            specs[f"{prefix}.{name}.bias"] = bias(matrix.axes[0])
    return specs


CONFIG = PiConfig
