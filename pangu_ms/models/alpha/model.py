"""PanGu-alpha: a pre-LayerNorm decoder whose last layer has learned position queries. Source: specification A1.

Shapes: see layers.py. A parameter's name is its path here; pangu_ms/models/alpha/config.py lists names and shapes.
"""

import mindspore as ms
from mindspore import nn, ops

import ascend_ops
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.layers import (
    Attention,
    CacheShape,
    Dropout,
    Embedding,
    FeedForward,
    LayerKey,
    LayerNorm,
    Logits,
    lazy_inlined,
)


class Block(nn.Cell):
    """Attention and feed-forward network, each with a LayerNorm before it and a residual connection around it.

    The queries of an ordinary block come from its own normalised stream. The query layer is the same block with queries
    from a position table: they are not normalised, keys and values come from the normalised stream, and the residual is
    the stream itself (spec A1.1 step 4).
    """

    def __init__(self, config: AlphaConfig, cache: CacheShape | None):
        super().__init__()
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention = Attention(config, cache)
        self.ffn_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.ffn = FeedForward(config, config.hidden_act)
        self.attention_dropout, self.ffn_dropout = Dropout(config.dropout, 1), Dropout(config.dropout, 2)
        self.fork_stream, self.fork_two, self.fork_three = ascend_ops.fork(2), ascend_ops.fork(2), ascend_ops.fork(3)

    def construct(self, x_BSE, segments_BS, slots_BS, key, query_BQE=None, residual_BQE=None, query_slots_BQ=None):
        """[B, S, E] -> [B, S, E]; Only the query layer is called with the last three arguments: `query`, which attends
        to the stream `x`, and the stream (`residual`) and the cache slots at the positions of the query; it returns [B,
        Q, E]."""
        if query_BQE is None:
            x_BSE, residual_BSE = self.fork_stream(x_BSE)
            for_query, for_key, for_value = self.fork_three(self.attention_norm(x_BSE))
            query_slots_BQ = slots_BS
        else:
            for_query, residual_BSE = query_BQE, residual_BQE
            for_key, for_value = self.fork_two(self.attention_norm(x_BSE))
        attended_BSE = self.attention(for_query, for_key, for_value, segments_BS, slots_BS, query_slots_BQ, key)
        normed_BSE, x_BSE = self.ffn_norm.after_sum(self.attention_dropout(attended_BSE, key), residual_BSE)
        return ascend_ops.add_to_stream(x_BSE, self.ffn_dropout(self.ffn(normed_BSE), key))


class PanguAlpha(nn.Cell):
    """The language model. `construct` computes all logits of whole sequences; `extend` those of the last token, with a
    cache."""

    def __init__(self, config: AlphaConfig, cache: CacheShape | None = None):
        super().__init__()
        self.dtype = getattr(ms, config.compute_dtype)
        self.word_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.seq_length, config.hidden_size)
        self.query_embedding = Embedding(config.seq_length, config.hidden_size)
        self.add_position, self.embedding_dropout = ops.Add(), Dropout(config.dropout, 0)
        self.layer_key = LayerKey(config.num_layers)
        repeated_block = lazy_inlined(Block, cache)
        self.blocks = nn.CellList([repeated_block(config, cache) for _ in range(config.num_layers - 1)])
        self.query_layer = Block(config, cache)
        self.final_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.product_with_table = Logits()
        self.norm_before_query = config.final_norm_position == "before_query"
        self.fork_stream, self.pick_last, self.cast = ascend_ops.fork(2), ops.GatherNd(), ops.Cast()

    def embed(self, ids_BS, positions_BS, key):
        """The embeddings, which are the input of the first layer: [B, S, E]."""
        x_BSE = self.add_position(self.word_embedding(ids_BS), self.position_embedding(positions_BS))
        return self.cast(self.embedding_dropout(x_BSE, key), self.dtype)

    def stream(self, ids_BS, positions_BS, segments_BS, slots_BS, key):
        """Embeddings and ordinary blocks: [B, S, E]."""
        x_BSE = self.embed(ids_BS, positions_BS, key)
        for i, block in enumerate(self.blocks):
            x_BSE = block(x_BSE, segments_BS, slots_BS, self.layer_key(key, i))
        return self.final_norm(x_BSE) if self.norm_before_query else x_BSE

    def attend_by_position(self, x_BSE, residual_BQE, positions_BQ, segments_BS, slots_BS, query_slots_BQ, key):
        """The query layer: [B, Q, E]."""
        query_BQE = self.cast(self.query_embedding(positions_BQ), self.dtype)
        key = self.layer_key(key, len(self.blocks))
        return self.query_layer(x_BSE, segments_BS, slots_BS, key, query_BQE, residual_BQE, query_slots_BQ)

    def logits(self, x_BQE, table_VE):
        """[B, Q, V] in the compute dtype."""
        x_BQE = x_BQE if self.norm_before_query else self.final_norm(x_BQE)
        return self.product_with_table(x_BQE, table_VE)

    def construct(self, ids_BS, positions_BS, segments_BS, key):
        """Logits [B, S, V] in the compute dtype, of ids, positions and segments, all int32 [B, S]; `key` int32 seeds
        dropout."""
        x_BSE, residual_BSE = self.fork_stream(self.stream(ids_BS, positions_BS, segments_BS, None, key))
        return self.logits(
            self.attend_by_position(x_BSE, residual_BSE, positions_BS, segments_BS, None, None, key),
            self.word_embedding.weight,
        )

    def hidden_states(self, ids_BS, positions_BS, segments_BS):
        """The output of the embeddings and of each layer: num_layers + 1 tensors [B, S, E]. A final norm before the
        query layer counts as part of the query layer."""
        states = (self.embed(ids_BS, positions_BS, None),)
        for block in self.blocks:
            states += (block(states[-1], segments_BS, None, None),)
        x_BSE = self.final_norm(states[-1]) if self.norm_before_query else states[-1]
        return states + (self.attend_by_position(x_BSE, x_BSE, positions_BS, segments_BS, None, None, None),)

    def extend(self, ids_BQ, positions_BQ, last_B2, slots_BQ):
        """Append Q tokens to the cache at `slots`; logits [B, V] float32 of the token at index `last` = (row, query
        index), int32 [B, 2].

        The query layer is computed only for that token, since no later layer needs the others.
        """
        # A value instead of the parameter: MindSpore copies a parameter that is read before and after cache writes.
        table_VE = ops.stop_gradient(self.word_embedding.weight)
        x_BQE = self.stream(ids_BQ, positions_BQ, None, slots_BQ, None)
        residual_B1E = self.pick_last(x_BQE, last_B2).expand_dims(1)
        positions_B1 = self.pick_last(positions_BQ, last_B2).expand_dims(1)
        slots_B1 = self.pick_last(slots_BQ, last_B2).expand_dims(1)
        logits_B1V = self.logits(
            self.attend_by_position(x_BQE, residual_B1E, positions_B1, None, slots_BQ, slots_B1, None), table_VE
        )
        return self.cast(logits_B1V, ms.float32).squeeze(1)


MODEL = PanguAlpha
