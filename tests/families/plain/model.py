"""The mathematics of a plain decoder. Shapes: see pangu_ms/models/common/layers.py."""

import mindspore as ms
from mindspore import nn, ops

import ascend_ops
from pangu_ms.models.common.layers import Attention, CacheShape, Embedding, FeedForward, LayerNorm, Logits, lazy_inlined

from .config import PlainConfig


class Block(nn.Cell):
    """x + attention(norm(x)), then x + FFN(norm(x))."""

    def __init__(self, config: PlainConfig, cache: CacheShape | None):
        super().__init__()
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config, cache)
        self.ffn_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.ffn = FeedForward(config, "gelu")
        self.fork_stream, self.fork_normed = ascend_ops.fork(2), ascend_ops.fork(3)

    def construct(self, x_BSE, segments_BS, places):
        x_BSE, residual_BSE = self.fork_stream(x_BSE)
        for_query, for_key, for_value = self.fork_normed(self.attention_norm(x_BSE))
        y_BSE = self.attention(for_query, for_key, for_value, segments_BS, places, None, None)
        normed_BSE, x_BSE = self.ffn_norm.after_sum(y_BSE, residual_BSE)
        return ascend_ops.add_to_stream(x_BSE, self.ffn(normed_BSE))


class Plain(nn.Cell):
    """The language model."""

    def __init__(self, config: PlainConfig, cache: CacheShape | None = None):
        super().__init__()
        self.dtype = getattr(ms, config.compute_dtype)
        self.word_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.seq_length, config.hidden_size)
        block = lazy_inlined(Block, cache)
        self.blocks = nn.CellList([block(config, cache) for _ in range(config.num_layers)])
        self.final_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.product_with_table = Logits()
        self.add_position, self.cast, self.pick = ops.Add(), ops.Cast(), ops.Gather()

    def embed(self, ids_BS, positions_BS):
        return self.cast(
            self.add_position(self.word_embedding(ids_BS), self.position_embedding(positions_BS)), self.dtype
        )

    def stream(self, ids_BS, positions_BS, segments_BS, places):
        x_BSE = self.embed(ids_BS, positions_BS)
        for block in self.blocks:
            x_BSE = block(x_BSE, segments_BS, places)
        return x_BSE

    def construct(self, ids_BS, positions_BS, segments_BS, key):
        x_BSE = self.stream(ids_BS, positions_BS, segments_BS, None)
        return self.product_with_table(self.final_norm(x_BSE), self.word_embedding.weight)

    def hidden_states(self, ids_BS, positions_BS, segments_BS):
        states = (self.embed(ids_BS, positions_BS),)
        for block in self.blocks:
            states += (block(states[-1], segments_BS, None),)
        return states

    def extend(self, ids_N1, places, last_S):
        table_VE = ops.stop_gradient(self.word_embedding.weight)
        x_S1E = self.pick(self.stream(ids_N1, places[0], None, places), last_S, 0)
        return self.cast(self.product_with_table(self.final_norm(x_S1E), table_VE), ms.float32).squeeze(1)


MODEL = Plain
