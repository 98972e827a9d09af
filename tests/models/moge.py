"""A small Pangu Pro MoE and its weights."""

import numpy as np

from pangu_ms.models.moge.config import MogeConfig


def small(**fields) -> MogeConfig:
    """Two blocks with 3 groups of 4 experts; no two sizes are equal, and the number of choices is not a group's
    size."""
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 6,
        "seq_length": 24,
        "rope_theta": 100.0,
        "num_experts": 12,
        "num_expert_groups": 3,
        "experts_per_token": 3,
        "moe_intermediate_size": 20,
        "ffn_hidden_size": 28,
    }
    return MogeConfig(**sizes | fields)


def random_parameters(config, seed=0, deviation=0.3):
    """Norms and router scales near 1, all else near 0."""
    rng = np.random.default_rng(seed)
    means = {name: float(name.endswith(("norm.weight", "router.scale"))) for name in config.parameter_shapes()}
    return {
        name: rng.normal(means[name], deviation, shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }
