"""PanGu-alpha in eager PyTorch, as its users write it: the peer of the training benchmark. Same parameters by name,
same function.

Shapes: see pangu_ms/models/common/layers.py. No dropout, no segments: what a GPT trainer computes on packed text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from pangu_ms.models.alpha.config import AlphaConfig


ACTIVATIONS = {
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "fast_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
}


class Attention(nn.Module):
    """Queries from `query`, keys and values from `memory`; causal."""

    def __init__(self, config: AlphaConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.query, self.key, self.value, self.output = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(self, query, memory):
        q, k, v = self.heads(self.query(query)), self.heads(self.key(memory)), self.heads(self.value(memory))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(query.shape))


class FeedForward(nn.Module):
    def __init__(self, config: AlphaConfig):
        super().__init__()
        self.up, self.down = (
            nn.Linear(config.hidden_size, config.ffn_hidden_size),
            nn.Linear(config.ffn_hidden_size, config.hidden_size),
        )
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    def __init__(self, config: AlphaConfig):
        super().__init__()
        self.attention_norm, self.ffn_norm = (nn.LayerNorm(config.hidden_size, config.layer_norm_eps) for _ in range(2))
        self.attention, self.ffn = Attention(config), FeedForward(config)

    def forward(self, x, query=None):
        normed = self.attention_norm(x)
        x = x + self.attention(normed if query is None else query, normed)
        return x + self.ffn(self.ffn_norm(x))


class AlphaTorch(nn.Module):
    """ids int64 [B, S + 1] -> mean cross-entropy."""

    def __init__(self, config: AlphaConfig):
        super().__init__()
        E = config.hidden_size
        self.word_embedding = nn.Embedding(config.vocab_size, E)
        self.position_embedding, self.query_embedding = (
            nn.Embedding(config.seq_length, E),
            nn.Embedding(config.seq_length, E),
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers - 1))
        self.query_layer, self.final_norm = Block(config), nn.LayerNorm(E, config.layer_norm_eps)
        self.norm_before_query = config.final_norm_position == "before_query"

    def forward(self, ids):
        positions = torch.arange(ids.shape[1] - 1).expand(ids.shape[0], -1)
        x = self.word_embedding(ids[:, :-1]) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x) if self.norm_before_query else x
        x = self.query_layer(x, self.query_embedding(positions))
        x = x if self.norm_before_query else self.final_norm(x)
        logits = functional.linear(x, self.word_embedding.weight)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
