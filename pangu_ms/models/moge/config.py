"""Pangu Pro MoE: its fields and its parameters. Source: specification F2; arXiv 2505.21411; the published
configuration_pangu_moe.py."""

from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.fields import STRICT, Float, Int, divisors, require, require_not_negative, require_positive
from pangu_ms.models.common.config import Activation, ParameterSpec, stack
from pangu_ms.models.pi.config import PiConfig

_SCALE = ParameterSpec(("one", "router"), mean=1.0)  # [1, N], as published


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MogeConfig(PiConfig):
    """Pangu Pro MoE: openPangu-Embedded's decoder whose feed-forward network is a Mixture of Grouped Experts.

    The experts of a layer are in equal groups, and a token goes to as many experts of each group: devices that hold one
    group each have the same work, whatever the router does. A shared expert sees every token.
    """

    ADDITIONS: ClassVar[dict[str, Any]] = {"aug_shortcut_branches": 1, "aug_shortcut_init": "zero"}

    family: Literal["moge"] = "moge"  # type: ignore[assignment]
    """Model family: a folder of pangu_ms/models. Every config states it."""
    vocab_size: Int = 153376
    """Vocabulary size (rows of the word embedding table); must equal the tokenizer's number of pieces."""
    ffn_hidden_size: Int = 0
    """Width of the shared expert; 0 means 4 * moe_intermediate_size, as in Pangu Pro MoE."""
    rope_theta: Float = 16e6
    """Base of the rotary angles."""
    attention_bias: bool = True
    """Biases of query, key, value and output projections."""
    siaf_terms: Int = 1
    """Terms of the series activation; experts have none, so 1."""
    aug_shortcut_branches: Int = 0
    """Number T of augmented shortcuts beside each attention; Pangu Pro MoE has none."""
    num_experts: Int = 64
    """Experts of each layer, over all groups; the shared expert is not among them."""
    num_expert_groups: Int = 8
    """Groups of experts, all of the same size."""
    experts_per_token: Int = 8
    """Experts that a token goes to; as many from each group."""
    moe_intermediate_size: Int = 1344
    """Width of one expert."""
    balance_loss_coef: Float = 0.001
    """Factor of the balance loss, which training adds to the cross-entropy; 0 leaves it out (see docs/moge.md)."""

    def __post_init__(self) -> None:
        require_positive(self, "num_experts", "num_expert_groups", "experts_per_token", "moe_intermediate_size")
        super().__post_init__()
        require_not_negative(self, balance_loss_coef="leaves the loss out")
        require(
            self.siaf_terms == 1,
            "siaf_terms",
            f"={self.siaf_terms}: must be 1, since experts have no series activation",
        )
        groups = self.num_expert_groups
        require(
            self.num_experts % groups == 0,
            "num_experts",
            f"={self.num_experts}: must divide into num_expert_groups={groups} equal groups; use a multiple of"
            f" {groups}, or one of {divisors(self.num_experts)} groups",
        )
        require(
            self.experts_per_token % groups == 0,
            "experts_per_token",
            f"={self.experts_per_token}: a token goes to as many experts of each of num_expert_groups={groups}; use a"
            f" multiple of {groups}",
        )
        require(
            self.experts_per_token <= self.num_experts,
            "experts_per_token",
            f"={self.experts_per_token}: must be at most num_experts={self.num_experts}",
        )

    def default_ffn_hidden_size(self) -> int:
        """See ModelConfig: Pangu Pro MoE's 5376 is 4 * 1344."""
        return 4 * self.moe_intermediate_size

    def axis_sizes(self) -> dict[str, int]:
        """See ModelConfig."""
        return super().axis_sizes() | {
            "expert": self.num_experts,
            "expert_ffn": self.moe_intermediate_size,
            "router": self.num_experts,
        }

    def layer_parameters(self, layer: int) -> dict[str, ParameterSpec]:
        """See ModelConfig: the feed-forward network of pi is the shared expert here."""
        specs = super().layer_parameters(layer)
        shared = {name: specs.pop(name) for name in list(specs) if name.startswith("ffn.")}
        experts = {
            "gate": self.matrix("expert_ffn", "embed"),
            "up": self.matrix("expert_ffn", "embed"),
            "down": self.residual_matrix("expert_ffn", layer),
        }
        specs |= {"ffn.router.weight": self.matrix("router", "embed"), "ffn.router.scale": _SCALE}
        specs |= {f"ffn.experts.{name}.weight": stack("expert", spec) for name, spec in experts.items()}
        return specs | {name.replace("ffn.", "ffn.shared."): spec for name, spec in shared.items()}

    def num_active_parameters(self) -> int:
        """Number of values that take part in the computation for one token: all but the experts that it does not go
        to."""
        of_expert = 3 * self.hidden_size * self.moe_intermediate_size
        return self.num_parameters() - self.num_layers * (self.num_experts - self.experts_per_token) * of_expert

    def feed_forward_activations(
        self, layer: int, element_bytes: int, model_parallel: int, sequence_parallel: int
    ) -> list[Activation]:
        """See ModelConfig: of each of its experts a token keeps what the shared expert keeps, and the rows before and
        behind it."""
        kept = super().feed_forward_activations(layer, element_bytes, model_parallel, sequence_parallel)
        rows = element_bytes * self.seq_length * self.experts_per_token
        inner = rows * self.moe_intermediate_size // model_parallel
        return [
            *kept,
            Activation("rows sorted by expert", 2 * rows * self.hidden_size, count=2, routed=True),
            Activation("gates and up of experts", 2 * inner, count=2, routed=True),
            Activation("activation of experts", inner, selective=True, routed=True),
            Activation("router probabilities", 4 * self.seq_length * self.num_experts),
        ]

    def most_experts_on_a_rank(self, expert_parallel: int) -> int:
        """See ModelConfig: a token goes to equally many experts of each group."""
        size, here = self.num_experts // self.num_expert_groups, self.num_experts // expert_parallel
        groups = max((first + here - 1) // size - first // size + 1 for first in range(0, self.num_experts, here))
        return min(groups * (self.experts_per_token // self.num_expert_groups), here)

    @property
    def num_balanced_groups(self) -> int:
        """See ModelConfig."""
        return self.num_expert_groups

    @property
    def has_balance_loss(self) -> bool:
        """See ModelConfig."""
        return self.balance_loss_coef > 0

    def fields_for_smoke_run(self, hidden_size: int) -> dict[str, Any]:
        """See ModelConfig: experts as narrow as the model."""
        width = round(hidden_size / 8 * self.moe_intermediate_size / self.hidden_size) * 8
        return {"moe_intermediate_size": max(8, width)}

    def fields_free_in_students(self) -> set[str]:
        """See ModelConfig."""
        return super().fields_free_in_students() | {"balance_loss_coef"}


CONFIG = MogeConfig
