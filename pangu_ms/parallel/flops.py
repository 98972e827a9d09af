"""Floating-point operations of a forward pass. No mindspore import."""

import math

from pangu_ms.models.common.config import ModelConfig


def layer_flops_per_token(model: ModelConfig, layer: int) -> int:
    """Operations of one layer for one token: 2 for each value of a matrix, and 4 * S * A for scores and context of
    attention, where A is the width of all heads.

    Attention is counted in full, not halved for the causal mask. Of a layer's experts those count that a
    token uses.

    Source: Narayanan et al. 2021 (arXiv 2104.04473), section 3 and appendix: 24 B S E^2 + 4 B S^2 E for a GPT layer.
    """
    sizes = active_sizes(model)
    matrices = sum(
        math.prod(sizes[axis] for axis in spec.axes) for spec in model.layer_parameters(layer).values() if spec.decay
    )
    return 2 * matrices + 4 * model.seq_length * sizes["heads"]


def active_sizes(model: ModelConfig) -> dict[str, int]:
    """Length of each logical axis, as far as one token uses it: of the experts of a layer the few that it goes to."""
    return model.axis_sizes() | {"expert": model.experts_per_token}


def head_flops_per_token(model: ModelConfig) -> int:
    """Operations of the logits for one token: 2 * V * E."""
    return 2 * model.vocab_size * model.hidden_size


def model_flops_per_token(model: ModelConfig) -> int:
    """Operations of the whole forward pass for one token. A training step computes three times as much, with full
    recomputation four times."""
    return sum(layer_flops_per_token(model, i) for i in range(model.num_layers)) + head_flops_per_token(model)
