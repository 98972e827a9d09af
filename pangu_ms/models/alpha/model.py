"""PanGu-alpha: a pre-LayerNorm decoder whose last layer has learned position queries. Source: specification A1.

Shapes: see layers.py. A parameter's name is its path here; pangu_ms/models/alpha/config.py lists names and shapes.
"""

from typing import Any

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
        self.ffn = self.network(config)
        self.attention_dropout, self.ffn_dropout = Dropout(config.dropout, 1), Dropout(config.dropout, 2)
        self.fork_stream, self.fork_two, self.fork_three = ascend_ops.fork(2), ascend_ops.fork(2), ascend_ops.fork(3)

    def network(self, config: Any) -> nn.Cell:
        """The cell of the feed-forward network."""
        return FeedForward(config, config.hidden_act)

    def construct(
        self,
        x_BSE,
        segments_BS,
        places,
        key,
        query_BQE=None,
        residual_BQE=None,
        query_places=None,
        ids_BQ=None,
        domain_B=None,
    ):
        """[B, S, E] -> [B, S, E]; for the arguments of the query layer see `attend`, for the last two
        `feed_forward`."""
        normed_BSE, x_BSE = self.attend(x_BSE, segments_BS, places, key, query_BQE, residual_BQE, query_places)
        return ascend_ops.add_to_stream(x_BSE, self.ffn_dropout(self.feed_forward(normed_BSE, ids_BQ, domain_B), key))

    def feed_forward(self, x_BQE, ids_BQ, domain_B):
        """The feed-forward network. PanGu-Sigma's sparse layers choose experts by the ids of the tokens and the domain
        of each sequence."""
        return self.ffn(x_BQE)

    def attend(self, x_BSE, segments_BS, places, key, query_BQE=None, residual_BQE=None, query_places=None):
        """Attention with its residual connection: (what the feed-forward network reads, the stream), both [B, S, E].

        Only the query layer is called with the last three arguments: `query`, which attends to the stream `x`, the
        stream (`residual`) at the positions of the query, and with a cache their places; the results are then
        [B, Q, E].
        """
        if query_BQE is None:
            x_BSE, residual_BSE = self.fork_stream(x_BSE)
            for_query, for_key, for_value = self.fork_three(self.attention_norm(x_BSE))
        else:
            for_query, residual_BSE = query_BQE, residual_BQE
            for_key, for_value = self.fork_two(self.attention_norm(x_BSE))
        attended_BSE = self.attention(for_query, for_key, for_value, segments_BS, places, query_places, key)
        return self.ffn_norm.after_sum(self.attention_dropout(attended_BSE, key), residual_BSE)


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
        kinds = [self.layer_class(config, layer) for layer in range(config.num_layers)]
        repeated = {kind: lazy_inlined(kind, cache) for kind in kinds}
        self.blocks = nn.CellList([repeated[kind](config, cache) for kind in kinds[:-1]])
        self.query_layer = kinds[-1](config, cache)
        self.query_layer.attention.reads_one_input = False
        self.final_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.product_with_table = Logits()
        self.norm_before_query = config.final_norm_position == "before_query"
        self.fork_stream, self.pick, self.cast = ascend_ops.fork(2), ops.Gather(), ops.Cast()

    def layer_class(self, config: Any, layer: int) -> type[Block]:
        """The class of a layer."""
        return Block

    def word_table(self):
        """The table of the word embedding, which is also the head."""
        return self.word_embedding.weight

    def look_up(self, ids_BS, domain_B):
        """The word embeddings of tokens: [B, S, E]."""
        return self.word_embedding(ids_BS)

    def embed(self, ids_BS, positions_BS, key, domain_B):
        """The embeddings, which are the input of the first layer: [B, S, E]."""
        x_BSE = self.add_position(self.look_up(ids_BS, domain_B), self.position_embedding(positions_BS))
        return self.cast(self.embedding_dropout(x_BSE, key), self.dtype)

    def stream(self, ids_BS, positions_BS, segments_BS, places, key, domain_B):
        """Embeddings and ordinary blocks: [B, S, E]."""
        x_BSE = self.embed(ids_BS, positions_BS, key, domain_B)
        for i, block in enumerate(self.blocks):
            key_i = self.layer_key(key, i)
            x_BSE = block(x_BSE, segments_BS, places, key_i, None, None, None, ids_BS, domain_B)
        return self.final_norm(x_BSE) if self.norm_before_query else x_BSE

    def attend_by_position(
        self, x_BSE, residual_BQE, positions_BQ, segments_BS, places, query_places, key, ids_BQ, domain_B
    ):
        """The query layer: [B, Q, E]."""
        query_BQE = self.cast(self.query_embedding(positions_BQ), self.dtype)
        key = self.layer_key(key, len(self.blocks))
        return self.query_layer(
            x_BSE, segments_BS, places, key, query_BQE, residual_BQE, query_places, ids_BQ, domain_B
        )

    def logits(self, x_BQE, table_VE, domain_B):
        """[B, Q, V] in the compute dtype."""
        x_BQE = x_BQE if self.norm_before_query else self.final_norm(x_BQE)
        return self.product_with_table(x_BQE, table_VE)

    def construct(self, ids_BS, positions_BS, segments_BS, key, domain_B=None):
        """Logits [B, S, V] in the compute dtype, of ids, positions and segments, all int32 [B, S]; `key` int32 seeds
        dropout; `domain` int32 [B] is that of PanGu-Sigma."""
        x_BSE, residual_BSE = self.fork_stream(self.stream(ids_BS, positions_BS, segments_BS, None, key, domain_B))
        x_BSE = self.attend_by_position(
            x_BSE, residual_BSE, positions_BS, segments_BS, None, None, key, ids_BS, domain_B
        )
        return self.logits(x_BSE, self.word_table(), domain_B)

    def hidden_states(self, ids_BS, positions_BS, segments_BS, domain_B=None):
        """The output of the embeddings and of each layer: num_layers + 1 tensors [B, S, E]. A final norm before the
        query layer counts as part of the query layer."""
        states = (self.embed(ids_BS, positions_BS, None, domain_B),)
        for block in self.blocks:
            states += (block(states[-1], segments_BS, None, None, None, None, None, ids_BS, domain_B),)
        x_BSE = self.final_norm(states[-1]) if self.norm_before_query else states[-1]
        last_BSE = self.attend_by_position(x_BSE, x_BSE, positions_BS, segments_BS, None, None, None, ids_BS, domain_B)
        return states + (last_BSE,)

    def extend(self, ids_N1, places, last_S, domain_N=None):
        """Append N tokens to the cache at `places` (see KVCache); logits [S, V] float32 of the tokens at the indices
        `last` int32 [S]; `domain` int32 [N] is that of PanGu-Sigma.

        The query layer is computed only for these tokens, since no later layer needs the others.
        """
        # A value instead of the parameter: MindSpore copies a parameter that is read before and after cache writes.
        table_VE = ops.stop_gradient(self.word_table())
        positions_N1, slots_N1 = places
        x_N1E = self.stream(ids_N1, positions_N1, None, places, None, domain_N)
        ids_S1, residual_S1E = self.pick(ids_N1, last_S, 0), self.pick(x_N1E, last_S, 0)
        positions_S1, slots_S1 = self.pick(positions_N1, last_S, 0), self.pick(slots_N1, last_S, 0)
        domain_S = None if domain_N is None else self.pick(domain_N, last_S, 0)
        x_S1E = self.attend_by_position(
            x_N1E, residual_S1E, positions_S1, None, places, (positions_S1, slots_S1), None, ids_S1, domain_S
        )
        return self.cast(self.logits(x_S1E, table_VE, domain_S), ms.float32).squeeze(1)


MODEL = PanguAlpha
