"""A checkpoint whose random weights are large, so that its texts differ with every token of their prompts."""

from pathlib import Path

from pangu_ms.checkpoint import store
from pangu_ms.config import load_config
from tests.models.alpha import random_parameters

SEQ_LENGTH = 192
MODEL = ["vocab_size=384", "hidden_size=32", "num_layers=2", "num_heads=4", f"seq_length={SEQ_LENGTH}"]


def save_checkpoint(root: Path, tokenizer: Path) -> Path:
    """Save it in `root`."""
    config = load_config("alpha/tiny", [f"model.{field}" for field in MODEL])
    store.save(root, 0, {"model": random_parameters(config.model)}, {}, config, tokenizer)
    return root
