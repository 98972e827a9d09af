"""Write llama_golden.npz: weights and logits of a tiny LLaMA as Hugging Face transformers computes it, for machines
without PyTorch.

    python -m tests.reference.make_llama_golden

Made with transformers 4.57.1 and torch 2.13.0; needs both. Weights are float16 under Hugging Face names, `ids` int32
[B, S], `logits` float32 [B, S, V].
"""

from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).with_name("llama_golden.npz")

# Grouped heads that are wider than hidden_size / num_heads, and biases: everything that LLaMA's descendants add to
# LLaMA (spec F1). theta is small, so that in 20 positions the slowest pair of dimensions turns too.
CONFIG = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 20,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "attention_bias": True,
    "tie_word_embeddings": False,
}


def golden() -> dict[str, np.ndarray]:
    """The arrays of the file, by a seed."""
    import torch

    llama, generator = random_llama(CONFIG, seed=0), np.random.default_rng(1)
    ids = generator.integers(0, CONFIG["vocab_size"], (2, CONFIG["max_position_embeddings"])).astype(np.int32)
    with torch.no_grad():
        logits = llama(torch.tensor(ids, dtype=torch.int64)).logits.numpy()
    weights = {name: value.numpy().astype(np.float16) for name, value in llama.state_dict().items()}
    return weights | {"ids": ids, "logits": logits.astype(np.float32)}


def random_llama(fields: dict[str, Any], seed: int) -> Any:
    """A LlamaForCausalLM of float32 whose weights, those of norms and biases too, are random numbers that float16 holds
    exactly.

    Args:
        fields: of LlamaConfig.
        seed: of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            parameter.copy_(torch.tensor(generator.normal(mean, 0.3, parameter.shape).astype(np.float16)))
    return llama


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **golden())
