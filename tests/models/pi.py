"""A small PanGu-pi and its weights."""

import numpy as np

from pangu_ms.models.pi.config import PiConfig


def small(**fields) -> PiConfig:
    """A LLaMA of two blocks, changed by `fields`."""
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_hidden_size": 40,
        "seq_length": 24,
    }
    return PiConfig(**sizes | {"siaf_terms": 1, "aug_shortcut_branches": 0, "aug_shortcut_reduction": 2} | fields)


def random_parameters(config, seed=0, deviation=0.3):
    rng = np.random.default_rng(seed)
    means = {name: 1.0 if name.endswith(("norm.weight", "siaf.scale")) else 0.0 for name in config.parameter_shapes()}
    return {
        name: rng.normal(means[name], deviation, shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }
