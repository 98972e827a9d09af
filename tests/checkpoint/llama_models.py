"""Small models that llama.cpp computes, and their checkpoints."""

from pangu_ms.checkpoint import store
from pangu_ms.config.load import config_from_dict
from tests.models import pi

LLAMA = {"num_kv_heads": 2, "hidden_size": 64, "ffn_hidden_size": 96, "rope_theta": 5e5, "rms_norm_eps": 1e-6}
VARIANTS = {
    "llama": LLAMA,
    "tied": {"tie_word_embeddings": True, "head_dim": 6},
    "openpangu": LLAMA | {"attention_bias": True},
}


def saved(root, model, parameters=None, tokenizer=None):
    """The checkpoint of a model with random weights; returns the weights."""
    family = type(model).__name__.removesuffix("Config").lower()
    tree = {"model": {"family": family} | {name: getattr(model, name) for name in model.field_names()}}
    weights = parameters or pi.random_parameters(model)
    store.save(root, 0, {"model": weights}, {}, config_from_dict(tree, "here"), tokenizer)
    return weights
