"""PanGu-pi in eager PyTorch, as its users write it: the peer of the training benchmark. Same parameters by name, same
function.

Shapes: see pangu_ms/models/common/layers.py. No segments: what a trainer computes on packed text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from tests.bench.alpha_torch import ACTIVATIONS

if TYPE_CHECKING:
    from pangu_ms.models.pi.config import PiConfig


def rotary_table(config: PiConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines float32 [S, D], each angle twice."""
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angles = torch.outer(torch.arange(config.seq_length, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, -1)
    return (x * cos + torch.cat((-x2, x1), -1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal, rotary; query heads share those of keys and values."""

    def __init__(self, config: PiConfig):
        super().__init__()
        self.head_dim = config.head_dim
        E, width, kv_width = (
            config.hidden_size,
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        )
        self.query, self.output = nn.Linear(E, width, config.attention_bias), nn.Linear(width, E, config.attention_bias)
        self.key, self.value = (nn.Linear(E, kv_width, config.attention_bias) for _ in range(2))
        self.shared = config.num_kv_heads < config.num_heads

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], -1, self.head_dim).transpose(1, 2)

    def forward(self, x, cos, sin):
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        y = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=self.shared
        )
        return self.output(y.transpose(1, 2).flatten(2))


class AugmentedShortcut(nn.Module):
    def __init__(self, config: PiConfig):
        super().__init__()
        sizes = config.hidden_size, config.hidden_size // config.aug_shortcut_reduction
        self.down, self.up = (
            nn.Linear(*sizes, config.aug_shortcut_bias),
            nn.Linear(*sizes[::-1], config.aug_shortcut_bias),
        )
        self.activation = ACTIVATIONS[config.aug_shortcut_act]

    def forward(self, x):
        return self.up(self.activation(self.down(x)))


class SeriesScale(nn.Module):
    """phi(x) = sum_i act(a_i x + b_i)."""

    def __init__(self, config: PiConfig):
        super().__init__()
        shape = config.siaf_terms, config.ffn_hidden_size if config.siaf_mode == "channel" else 1
        self.scale, self.shift = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x):
        return sum(self.activation(a * x + b) for a, b in zip(self.scale, self.shift, strict=True))


class FeedForward(nn.Module):
    def __init__(self, config: PiConfig):
        super().__init__()
        sizes = config.hidden_size, config.ffn_hidden_size
        self.gate, self.up, self.down = (
            nn.Linear(*sizes, False),
            nn.Linear(*sizes, False),
            nn.Linear(*sizes[::-1], False),
        )
        self.activation, self.on_product = ACTIVATIONS[config.hidden_act], config.siaf_position == "product"
        self.siaf = SeriesScale(config) if config.siaf_terms > 1 and config.siaf_mode != "matrices" else None
        added = config.siaf_terms - 1 if config.siaf_mode == "matrices" else 0
        self.siaf_gates = nn.ModuleList(nn.Linear(*sizes, False) for _ in range(added))

    def forward(self, x):
        phi = self.activation if self.siaf is None or self.on_product else self.siaf
        gate = phi(self.gate(x)) + sum(self.activation(added(x)) for added in self.siaf_gates)
        product = gate * self.up(x)
        return self.down(self.siaf(product) if self.siaf is not None and self.on_product else product)


class Block(nn.Module):
    def __init__(self, config: PiConfig):
        super().__init__()
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2))
        self.attention, self.ffn = Attention(config), FeedForward(config)
        self.aug_shortcut = nn.ModuleList(AugmentedShortcut(config) for _ in range(config.aug_shortcut_branches))
        self.shortcut_reads_stream = config.aug_shortcut_input == "stream"

    def forward(self, x, cos, sin):
        normed = self.attention_norm(x)
        shortcuts = sum(branch(x if self.shortcut_reads_stream else normed) for branch in self.aug_shortcut)
        x = x + self.attention(normed, cos, sin) + shortcuts
        return x + self.ffn(self.ffn_norm(x))


class PiTorch(nn.Module):
    """ids int64 [B, S + 1] -> mean cross-entropy."""

    def __init__(self, config: PiConfig):
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False)
        self.cos, self.sin = rotary_table(config)

    def forward(self, ids):
        x = self.word_embedding(ids[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = self.final_norm(x)
        logits = functional.linear(x, self.word_embedding.weight) if self.head is None else self.head(x)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
