"""PanGu-pi: LLaMA's decoder with series activations and augmented shortcuts. Source: specification D2, D3, E1, F1.

Shapes: see layers.py. A parameter's name is its path here; pangu_ms/models/pi/config.py lists names and shapes.
"""

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

import ascend_ops
from pangu_ms.models.common.layers import (
    Attention,
    CacheShape,
    Embedding,
    GatedNetwork,
    Linear,
    Logits,
    Operator,
    RMSNorm,
    lazy_inlined,
    zeros,
)
from pangu_ms.models.pi.config import PiConfig


class AugmentedShortcut(nn.Cell):
    """One branch beside attention, up(act(down(z))): [B, S, E] -> [B, S, E] token by token, through E / r channels
    (spec D2, eq. 4)."""

    def __init__(self, config: PiConfig):
        super().__init__()
        bottleneck = config.axis_sizes()["bottleneck"]
        self.down = Linear(config.hidden_size, bottleneck, config.aug_shortcut_bias)
        self.up = Linear(bottleneck, config.hidden_size, config.aug_shortcut_bias)
        self.activation = Operator(getattr(ascend_ops, config.aug_shortcut_act))

    def construct(self, x_BSE):
        rows = ascend_ops.as_rows(x_BSE)
        return ascend_ops.from_rows(self.up(self.down.activated(rows, self.activation, "bottleneck")), x_BSE)


class SeriesScale(nn.Cell):
    """The parameters a_i and b_i of a series activation, [n, C] or [n, 1] (spec D3, eq. 7)."""

    def __init__(self, config: PiConfig):
        super().__init__()
        shape = config.siaf_terms, config.ffn_hidden_size if config.siaf_mode == "channel" else 1
        self.scale, self.shift = zeros("scale", *shape), zeros("shift", *shape)


class FeedForward(GatedNetwork):
    """The gated feed-forward network with phi(x) = sum_i act(a_i x + b_i) in one of two places (spec D3): [B, S, E] ->
    [B, S, E]."""

    def __init__(self, config: PiConfig):
        super().__init__(is_one_product=config.siaf_mode != "matrices" or config.siaf_terms == 1)
        sizes = config.hidden_size, config.ffn_hidden_size
        self.gate, self.up, self.down = (
            Linear(*sizes, bias=False),
            Linear(*sizes, bias=False),
            Linear(*sizes[::-1], bias=False),
        )
        self.activation, self.position = config.hidden_act, config.siaf_position
        self.glu, self.series = Operator(ascend_ops.swiglu), Operator(ascend_ops.series_activation)
        self.with_series = config.siaf_terms > 1 and config.siaf_mode != "matrices"
        self.siaf = SeriesScale(config) if self.with_series else None
        self.num_added_gates = config.siaf_terms - 1 if config.siaf_mode == "matrices" else 0
        self.siaf_gates = nn.CellList([Linear(*sizes, bias=False) for _ in range(self.num_added_gates)])
        self.fork_input, self.fork_up = (
            ascend_ops.fork(2 + self.num_added_gates),
            ascend_ops.fork(1 + self.num_added_gates),
        )

    def construct(self, x_BSE):
        scale, shift = None, None
        if self.with_series and self.position == "gate":
            scale, shift = self.siaf.scale, self.siaf.shift
        if self.joined:
            return self.down(self.with_product_series(self.gate(x_BSE, scale, shift)))
        inputs = self.fork_input(x_BSE)
        gate_BSF, ups = self.gate(inputs[0]), self.fork_up(self.up(inputs[1]))
        y_BSF = self.with_product_series(self.glu(gate_BSF, ups[0], None, None, scale, shift, self.activation))
        for i in range(self.num_added_gates):  # phi(gate) * up, term by term
            term_BSF = self.glu(self.siaf_gates[i](inputs[2 + i]), ups[1 + i], None, None, None, None, self.activation)
            y_BSF = ascend_ops.add(y_BSF, term_BSF)
        return self.down(y_BSF)

    def with_product_series(self, y_BSF):
        """The series of the gated product, where it stands there."""
        if self.with_series and self.position == "product":
            return self.series(y_BSF, self.siaf.scale, self.siaf.shift, None, self.activation)
        return y_BSF


class Block(nn.Cell):
    """x + MSA(norm(x)) + shortcuts, then x + FFN(norm(x)) (spec D2)."""

    def __init__(self, config: PiConfig, cache: CacheShape | None):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, cache, config.attention_bias)
        self.aug_shortcut = nn.CellList([AugmentedShortcut(config) for _ in range(config.aug_shortcut_branches)])
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.ffn = self.network(config)
        self.num_branches, self.shortcut_reads_stream = (
            config.aug_shortcut_branches,
            config.aug_shortcut_input == "stream",
        )
        of_stream = self.num_branches if self.shortcut_reads_stream else 0
        self.fork_stream, self.fork_normed = (
            ascend_ops.fork(2 + of_stream),
            ascend_ops.fork(3 + self.num_branches - of_stream),
        )

    def network(self, config: Any) -> nn.Cell:
        """The cell of the feed-forward network."""
        return FeedForward(config)

    def construct(self, x_BSE, segments_BS, places, cos_sin_BSD):
        normed_BSE, x_BSE = self.attend(x_BSE, segments_BS, places, cos_sin_BSD)
        return ascend_ops.add_to_stream(x_BSE, self.ffn(normed_BSE))

    def attend(self, x_BSE, segments_BS, places, cos_sin_BSD):
        """Attention and shortcuts with the residual connection: (what the feed-forward network reads, the stream)."""
        streams = self.fork_stream(x_BSE)
        normed = self.fork_normed(self.attention_norm(streams[0]))
        y_BSE = self.attention(normed[0], normed[1], normed[2], segments_BS, places, None, None, cos_sin_BSD)
        for i in range(self.num_branches):
            y_BSE = ascend_ops.add_to_stream(
                y_BSE, self.aug_shortcut[i](streams[2 + i] if self.shortcut_reads_stream else normed[3 + i])
            )
        return self.ffn_norm.after_sum(y_BSE, streams[1])


class PanguPi(nn.Cell):
    """The language model. `construct` computes all logits of whole sequences; `extend` those of the last token, with a
    cache."""

    def __init__(self, config: PiConfig, cache: CacheShape | None = None):
        super().__init__()
        self.dtype = getattr(ms, config.compute_dtype)
        self.word_embedding = Embedding(config.vocab_size, config.hidden_size)
        repeated_block = lazy_inlined(self.block_class(), cache)
        self.blocks = nn.CellList([repeated_block(config, cache) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.product_with_table = Logits()
        self.cos_sin_SD = Tensor(ascend_ops.rotary_table(config.seq_length, config.head_dim, config.rope_theta))
        self.cast, self.pick = ops.Cast(), ops.Gather()

    def block_class(self) -> type[Block]:
        """The class of the layers."""
        return Block

    def embed(self, ids_BS):
        """The embeddings, which are the input of the first layer: [B, S, E]."""
        return self.cast(self.word_embedding(ids_BS), self.dtype)

    def rotation(self, positions_BS):
        """Cosines and sines of each position: [B, S, D]."""
        return ascend_ops.placed("Gather", ((None, None), ("batch", None)))(self.cos_sin_SD, positions_BS, 0)

    def stream(self, ids_BS, positions_BS, segments_BS, places):
        """Embeddings and all layers: [B, S, E]."""
        x_BSE, cos_sin_BSD = self.embed(ids_BS), self.rotation(positions_BS)
        for block in self.blocks:
            x_BSE = block(x_BSE, segments_BS, places, cos_sin_BSD)
        return x_BSE

    def head_table(self):
        """The table of the head: [V, E] float32."""
        return self.word_embedding.weight if self.head is None else self.head.weight

    def logits(self, x_BSE, table_VE):
        """[B, S, V] in the compute dtype."""
        return self.product_with_table(self.final_norm(x_BSE), table_VE)

    def construct(self, ids_BS, positions_BS, segments_BS, key):
        """Logits [B, S, V] in the compute dtype, of ids, positions and segments, all int32 [B, S]. `key` is not used,
        since there is no dropout."""
        return self.logits(self.stream(ids_BS, positions_BS, segments_BS, None), self.head_table())

    def hidden_states(self, ids_BS, positions_BS, segments_BS):
        """The output of the embeddings and of each layer: num_layers + 1 tensors [B, S, E]."""
        cos_sin_BSD = self.rotation(positions_BS)
        states = (self.embed(ids_BS),)
        for block in self.blocks:
            states += (block(states[-1], segments_BS, None, cos_sin_BSD),)
        return states

    def extend(self, ids_N1, places, last_S):
        """Append N tokens to the cache at `places` (see KVCache); logits [S, V] float32 of the tokens at the indices
        `last` int32 [S]."""
        # A value instead of the parameter: MindSpore copies a parameter that is read before and after cache writes.
        table_VE = ops.stop_gradient(self.head_table())
        x_S1E = self.pick(self.stream(ids_N1, places[0], None, places), last_S, 0)
        return self.cast(self.logits(x_S1E, table_VE), ms.float32).squeeze(1)


MODEL = PanguPi
