"""A checkpoint of a PanGu-pi whose random weights are large: every part of it shows in the text it writes."""

from pathlib import Path

import numpy as np

from pangu_ms.checkpoint import store
from pangu_ms.config import RunConfig, load_config
from tests.models.pi import random_parameters
from tests.reference import pi_numpy

# Shared heads, two terms for each channel, two branches: what a LLaMA has not, and nothing as wide as another thing.
MODEL = [
    "vocab_size=384",
    "hidden_size=32",
    "num_layers=2",
    "num_heads=4",
    "num_kv_heads=2",
    "ffn_hidden_size=40",
    "seq_length=32",
]
MODEL += [
    "siaf_terms=2",
    "aug_shortcut_branches=2",
    "aug_shortcut_reduction=4",
    "aug_shortcut_bias=true",
    "rope_theta=100",
]


def pi_config() -> RunConfig:
    """pi/tiny with MODEL, for the records of tests/conftest.py."""
    return load_config("pi/tiny", [f"model.{field}" for field in MODEL])


def save_pi_checkpoint(root: Path, tokenizer: Path | None = None) -> tuple[store.Checkpoint, dict[str, np.ndarray]]:
    """Save it below `root`; returns it and its weights."""
    config = pi_config()
    weights = random_parameters(config.model)
    return store.open_checkpoint(store.save(root, 0, {"model": weights}, {}, config, tokenizer)), weights


def reference_logits(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """float64 [V] after `ids`, by the specification."""
    return pi_numpy.forward(pi_config().model, weights, np.array([ids], np.int32), None)[0, -1]
