"""Layers that the PanGu models share: single-device mathematics, every primitive a named attribute that a layout may be attached to.

Shapes: B batch, S sequence, Q query positions, K key positions, T = B * Q tokens, E hidden, H heads, D head size, F feed-forward, V vocabulary,
C cache positions per sequence.
"""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from pangu_ms.config.base import ModelConfig

MASKED = -1e4  # added to the score of a key that may not be seen; exp underflows to 0 in float32 (spec A1.3)


def zeros(name: str, *shape: int) -> Parameter:
    """A float32 parameter, filled later by `initialize` or from a checkpoint."""
    return Parameter(initializer("zeros", shape, ms.float32), name=name)


def compiled_once(block_class: type) -> type:
    """The class whose instances share one compiled graph where the device allows it: MindSpore's lazy_inline, Ascend alone.

    On a CPU it fails while compiling, so there the class is returned as it is. Untested on hardware.
    """
    if ms.get_context("device_target") != "Ascend":
        return block_class
    return type(block_class.__name__, (block_class,), {"__init__": ms.lazy_inline(block_class.__init__)})


class Linear(nn.Cell):
    """y = x W^T + b with W [out, in] and b [out], computed in `dtype`; x [T, in] -> [T, out]."""

    def __init__(self, in_size: int, out_size: int, dtype: ms.Type):
        super().__init__()
        self.weight, self.bias = zeros("weight", out_size, in_size), zeros("bias", out_size)
        self.matmul, self.add_bias, self.cast = ops.MatMul(transpose_b=True), ops.Add(), ops.Cast()
        self.dtype = dtype

    def construct(self, x_TE):
        return self.add_bias(self.matmul(x_TE, self.cast(self.weight, self.dtype)), self.cast(self.bias, self.dtype))


class Embedding(nn.Cell):
    """Rows of a float32 table [num_rows, E]: ids [B, S] -> [B, S, E]."""

    def __init__(self, num_rows: int, hidden_size: int):
        super().__init__()
        self.weight = zeros("weight", num_rows, hidden_size)
        self.lookup = ops.Gather()

    def construct(self, ids_BS):
        return self.lookup(self.weight, ids_BS, 0)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis in float32, returned in the dtype of the input.

    Composed of elementary operators: on a CPU they take 6 ms forward and backward on (1024, 768) where ops.LayerNorm takes 17.
    """

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight, self.bias = Parameter(initializer("ones", (hidden_size,)), name="weight"), zeros("bias", hidden_size)
        self.mean, self.center, self.square, self.variance = ops.ReduceMean(True), ops.Sub(), ops.Mul(), ops.ReduceMean(True)
        self.add_eps, self.rsqrt, self.normalize = ops.Add(), ops.Rsqrt(), ops.Mul()
        self.scale, self.shift, self.cast = ops.Mul(), ops.Add(), ops.Cast()
        self.eps = eps

    def construct(self, x_BSE):
        x = self.cast(x_BSE, ms.float32)
        x = self.center(x, self.mean(x, -1))
        inverse_std = self.rsqrt(self.add_eps(self.variance(self.square(x, x), -1), self.eps))
        return self.cast(self.shift(self.scale(self.normalize(x, inverse_std), self.weight), self.bias), x_BSE.dtype)


class GeluTanh(nn.Cell):
    """GELU, tanh form. Composed: a fifth of the time of ops.GeLU on a CPU."""

    def __init__(self):
        super().__init__()
        self.tanh = ops.Tanh()

    def construct(self, x):
        return 0.5 * x * (1.0 + self.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))  # sqrt(2 / pi)


class GeluErf(nn.Cell):
    """GELU, exact: x * Phi(x)."""

    def __init__(self):
        super().__init__()
        self.erf = ops.Erf()

    def construct(self, x):
        return 0.5 * x * (1.0 + self.erf(x * 0.7071067811865476))  # 1 / sqrt(2)


class FastGelu(nn.Cell):
    """x * sigmoid(1.702 x), which MindSpore's FastGeLU equals (spec A1.4). Composed: a fifth of ops.FastGeLU's time on a CPU."""

    def __init__(self):
        super().__init__()
        self.sigmoid = ops.Sigmoid()

    def construct(self, x):
        return x * self.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": GeluTanh, "gelu_erf": GeluErf, "fast_gelu": FastGelu}


class Dropout(nn.Cell):
    """Dropout whose mask is a function of (key, site in the layer, element index) alone, so that a resumed run repeats it; nothing at rate 0.

    The mask compares a 31-bit integer hash with the rate (MindSpore's own dropout differs from run to run on a CPU).
    `key` is an int32 scalar tensor, new for every micro-batch.
    """

    def __init__(self, rate: float, site: int):
        super().__init__()
        self.rate, self.keep_scale = rate, 1.0 / (1.0 - rate)
        self.threshold = Tensor(int(rate * 2**31), ms.int32)
        self.site = Tensor(np.uint32(site * 0x9E3779B1 & 0xFFFFFFFF).astype(np.int32))  # golden-ratio constant spreads the sites
        self.first, self.second, self.sign = (Tensor(np.int32(c)) for c in (0x7FEB352D, 0x2C1B3C6D, 0x7FFFFFFF))
        self.xor, self.shift_right, self.mul, self.bit_and = ops.BitwiseXor(), ops.RightShift(), ops.Mul(), ops.BitwiseAnd()

    def mix(self, h):
        h = self.mul(self.xor(h, self.bit_and(self.shift_right(h, Tensor(16, ms.int32)), Tensor(0xFFFF, ms.int32))), self.first)
        h = self.mul(self.xor(h, self.bit_and(self.shift_right(h, Tensor(15, ms.int32)), Tensor(0x1FFFF, ms.int32))), self.second)
        return self.bit_and(self.xor(h, self.bit_and(self.shift_right(h, Tensor(16, ms.int32)), Tensor(0xFFFF, ms.int32))), self.sign)

    def construct(self, x, key):
        if self.rate == 0.0 or not self.training:
            return x
        index = ops.arange(0, x.size).astype(ms.int32).reshape(x.shape)
        keep = self.mix(self.xor(index, self.mix(self.xor(key, self.site)))) >= self.threshold
        return x * (keep.astype(x.dtype) * self.keep_scale)


class LayerKey(nn.Cell):
    """The dropout key of one layer. It is an input of the layer, not part of it, so that equal layers can share a compiled graph."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.offsets = tuple(Tensor(np.uint32((i + 1) * 0x85EBCA6B & 0xFFFFFFFF).astype(np.int32)) for i in range(num_layers))
        self.add = ops.Add()

    def construct(self, key, layer):
        if key is None:
            return None
        return self.add(key, self.offsets[layer])  # wraps around


@dataclass(frozen=True)
class CacheShape:
    """Room of a static key/value cache: sequences in a batch, and positions of each."""

    batch_size: int
    capacity: int


class KVCache(nn.Cell):
    """Keys and values of all past positions of one attention, kept in the layout that attention reads: [B, H, C, D]."""

    def __init__(self, shape: CacheShape, num_heads: int, head_dim: int, dtype: ms.Type):
        super().__init__()
        self.shape_BHCD = (shape.batch_size, num_heads, shape.capacity, head_dim)
        rows = (shape.batch_size * num_heads * shape.capacity, head_dim)
        self.keys, self.values = (Parameter(initializer("zeros", rows, dtype), name=n, requires_grad=False) for n in ("keys", "values"))
        first_rows = np.arange(0, rows[0], shape.capacity, dtype=np.int32)
        self.first_row_BH1 = Tensor(first_rows.reshape(shape.batch_size, num_heads, 1))
        self.write_key, self.write_value = ops.ScatterNdUpdate(), ops.ScatterNdUpdate()

    def construct(self, k_BHQD, v_BHQD, slots_BQ):
        """Write Q new positions at `slots` (cache positions, int32); returns all keys and values [B, H, C, D]."""
        head_dim = self.shape_BHCD[3]
        rows_N1 = (self.first_row_BH1 + slots_BQ.expand_dims(1)).reshape(-1, 1)  # of the flat cache, N = B * H * Q
        keys = self.write_key(self.keys, rows_N1, k_BHQD.reshape(-1, head_dim))
        values = self.write_value(self.values, rows_N1, v_BHQD.reshape(-1, head_dim))
        return keys.reshape(self.shape_BHCD), values.reshape(self.shape_BHCD)


class Attention(nn.Cell):
    """Multi-head attention with biases; queries may come from another stream than keys and values (spec A1.3).

    With a cache the new keys and values are written to it and all its positions are attended; `bias` masks the unused ones.
    """

    def __init__(self, config: ModelConfig, cache: CacheShape | None = None):
        super().__init__()
        hidden_size, dtype = config.hidden_size, getattr(ms, config.compute_dtype)
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.query, self.key, self.value, self.output = (Linear(hidden_size, hidden_size, dtype) for _ in range(4))
        self.split_heads, self.merge_heads = ops.Transpose(), ops.Transpose()
        self.scale, self.scores, self.add_bias = ops.Mul(), ops.BatchMatMul(transpose_b=True), ops.Add()
        self.softmax, self.context, self.cast = ops.Softmax(-1), ops.BatchMatMul(), ops.Cast()
        self.softmax_dtype = getattr(ms, config.softmax_dtype)
        self.probability_dropout = Dropout(config.dropout, 0)
        self.cache = KVCache(cache, config.num_heads, config.head_dim, dtype) if cache else None

    def heads(self, x_TE, batch_size):
        return self.split_heads(x_TE.reshape(batch_size, -1, self.num_heads, self.head_dim), (0, 2, 1, 3))

    def construct(self, query_BQE, memory_BKE, bias_B1QK, slots_BQ, key):
        B, Q, E = query_BQE.shape
        memory_TE = memory_BKE.reshape(-1, E)
        # The scale goes to the queries, before the product, as a guard against float16 overflow (spec A1.3 splits it over q and k).
        q_BHQD = self.heads(self.scale(self.query(query_BQE.reshape(-1, E)), self.head_dim**-0.5), B)
        k_BHKD, v_BHKD = self.heads(self.key(memory_TE), B), self.heads(self.value(memory_TE), B)
        if self.cache is not None:
            k_BHKD, v_BHKD = self.cache(k_BHKD, v_BHKD, slots_BQ)
        scores = self.add_bias(self.cast(self.scores(q_BHQD, k_BHKD), self.softmax_dtype), self.cast(bias_B1QK, self.softmax_dtype))
        p_BHQK = self.probability_dropout(self.cast(self.softmax(scores), q_BHQD.dtype), key)
        y_TE = self.merge_heads(self.context(p_BHQK, v_BHKD), (0, 2, 1, 3)).reshape(-1, E)
        return self.output(y_TE).reshape(B, Q, E)


class FeedForward(nn.Cell):
    """W2 act(W1 x + b1) + b2: [B, S, E] -> [B, S, E]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dtype = getattr(ms, config.compute_dtype)
        self.up = Linear(config.hidden_size, config.ffn_hidden_size, dtype)
        self.down = Linear(config.ffn_hidden_size, config.hidden_size, dtype)
        self.activation = ACTIVATIONS[config.hidden_act]()

    def construct(self, x_BSE):
        return self.down(self.activation(self.up(x_BSE.reshape(-1, x_BSE.shape[-1])))).reshape(x_BSE.shape)


def causal_bias(segments_BS, S: int):
    """Additive attention bias [B, 1, S, S] float32: 0 where a key is not later than the query and of its segment, else MASKED."""
    later_SS = Tensor(np.triu(np.ones((S, S), np.bool_), 1))
    other_BSS = segments_BS.expand_dims(2) != segments_BS.expand_dims(1)
    return ops.logical_or(later_SS, other_BSS).astype(ms.float32).expand_dims(1) * MASKED
