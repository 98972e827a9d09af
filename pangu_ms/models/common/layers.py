"""Layers that the PanGu models share: single-device mathematics over ascend_ops.

Shapes: B batch, S sequence, Q query positions, K key positions, T = B * Q tokens, E hidden, H heads, G heads of keys
and values, D head size, A = H * D, F feed-forward, V vocabulary. With a cache: S slots, C rows of each, N new rows.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

import ascend_ops
from pangu_ms.models.common.config import ModelConfig


def zeros(name: str, *shape: int) -> Parameter:
    """A float32 parameter, filled later by `initialize` or from a checkpoint."""
    return Parameter(initializer("zeros", shape, ms.float32), name=name)


def lazy_inlined(block_class: type, cache: "CacheShape | None" = None) -> type:
    """A subclass whose instances share one compiled graph (MindSpore's lazy_inline), on Ascend without a plan and
    without a cache; elsewhere the class itself, because sharing does not work there. Untested on hardware.

    On a CPU lazy_inline fails while compiling. Under a plan MindSpore's propagation confuses the operators of the
    shared graph with those of other layers. With a cache a graph holds blocks of two lengths, for prompts and for
    single tokens, and the shared graph keeps the sizes of the first.
    """
    if ms.get_context("device_target") != "Ascend" or ascend_ops.is_laid_out() or cache:
        return block_class
    constructor = inspect.getattr_static(block_class, "__init__")  # perhaps that of a parent
    return type(block_class.__name__, (block_class,), {"__init__": ms.lazy_inline(constructor)})


class Operator(nn.Cell):
    """An operator as a cell, for results that are cheap to recompute and large to keep: MindSpore applies recomputation
    to cells."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def construct(self, *inputs):
        return self.function(*inputs)


class ShardedWeight(nn.Cell):
    """A cell with one float32 matrix or table, which a parallel plan may shard over devices."""

    def __init__(self, num_rows: int, num_columns: int):
        super().__init__()
        self.weight = zeros("weight", num_rows, num_columns)
        self.axes: tuple[str, ...] | None = None
        """Logical axes of the weight's dimensions (`ParameterSpec.axes`), set by a plan; None without one."""


class Linear(ShardedWeight):
    """y = x W^T + b with float32 W [out, in] and b [out], if any, computed in the dtype of x: [..., in] -> [...,
    out]."""

    def __init__(self, in_size: int, out_size: int, bias: bool = True):
        super().__init__(out_size, in_size)
        self.bias = zeros("bias", out_size) if bias else None

    def construct(self, x):
        return ascend_ops.linear(x, self.weight, self.bias, self.axes)

    def activated(self, x, activation, channels="ffn"):
        """activation(x W^T + b) by an Operator, which adds the bias itself; `channels` is the plan's name of the last
        dimension of the result."""
        return activation(ascend_ops.linear(x, self.weight, None, self.axes), self.bias, channels)


class StackedLinear(nn.Cell):
    """A linear layer for each expert: rows sorted by expert [N, in] -> [N, out], with float32 W [K, out, in] and b [K,
    out], if any."""

    def __init__(self, num_experts: int, in_size: int, out_size: int, bias: bool = True):
        super().__init__()
        self.weight = zeros("weight", num_experts, out_size, in_size)
        self.bias = zeros("bias", num_experts, out_size) if bias else None

    def construct(self, rows, counts_K):
        """`counts` int32 [K] is the number of rows of each expert."""
        return ascend_ops.grouped_matmul(rows, self.weight, counts_K, self.bias)


class TokenDispatcher(nn.Cell):
    """Sorts rows by expert, and brings the experts' results back in the order of the rows. All experts are here; a plan
    replaces it by one that also exchanges rows between devices (parallel/token_exchange.py)."""

    share = 1.0
    """1 / n for n devices that each add the same bias to a part of a sum."""

    def __init__(self, num_experts: int):
        super().__init__()
        self.num_experts = num_experts

    def dispatch(self, x_NE, expert_N):
        """-> rows sorted by expert, their number for each expert here [K], and what `combine` needs."""
        rows, order, counts_K = ascend_ops.moe_dispatch(x_NE, expert_N, self.num_experts)
        return rows, counts_K, (order,)

    def combine(self, rows, way, weights=None):
        """-> [N, E], from the experts' results; `way` is the last result of `dispatch`. With several experts for a
        token, [N, C], the sum by `weights` [N, C]."""
        return ascend_ops.moe_combine(rows, way[0], weights)


class OnOwnSlices:
    """A cell's part: `compute`, which every device of a plan computes on its own slices of the operands."""

    axes: tuple[ascend_ops.Axes, ...]
    """The plan's names of the dimensions of the operands of `compute`."""
    result_axes: ascend_ops.Axes | None = None
    """Those of the result; None means those of the first operand, whose shape it then has, too."""
    on_devices: Callable[..., Tensor] | None = None
    """`compute` as one operator, under a plan."""

    def distribute(self) -> None:
        """Make the operator for the current plan."""
        self.on_devices = ascend_ops.on_own_slices(self.compute, self.axes, self.result_axes, self.result_shape)

    def compute(self, *operands):
        """The result on one device, or of one device."""
        raise NotImplementedError

    @staticmethod
    def result_shape(*shapes):
        """Shape of the whole result, from those of the whole operands."""
        return shapes[0]


class RoutedExperts(nn.Cell, OnOwnSlices):
    """The experts of a layer. A plan shards them over devices, between which `dispatcher` exchanges rows."""

    def __init__(self, num_experts: int):
        super().__init__()
        self.dispatcher = TokenDispatcher(num_experts)


class Embedding(ShardedWeight):
    """Rows of a float32 table [num_rows, E]: ids [B, S] -> [B, S, E]."""

    def construct(self, ids_BS):
        return ascend_ops.placed("Gather", (self.axes, ("batch", None)))(self.weight, ids_BS, 0)


class Logits(nn.Cell):
    """x W^T with a table [V, E] that another cell owns: [B, S, E] -> [B, S, V].

    It is a cell because MindSpore assigns pipeline stages to cells, and the product belongs on the last stage.
    """

    def construct(self, x_BSE, table_VE):
        return ascend_ops.logits(x_BSE, table_VE)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis in float32, returned in the dtype of the input."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight, self.bias = (
            Parameter(initializer("ones", (hidden_size,)), name="weight"),
            zeros("bias", hidden_size),
        )
        self.eps = eps

    def construct(self, x_BSE):
        return ascend_ops.layer_norm(x_BSE, self.weight, self.bias, self.eps)

    def after_sum(self, x_BSE, residual_BSE):
        """(norm of the sum, the sum)."""
        return ascend_ops.layer_norm(x_BSE, self.weight, self.bias, self.eps, residual_BSE)


class RMSNorm(nn.Cell):
    """RMSNorm over the last axis in float32, returned in the dtype of the input."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight, self.eps = Parameter(initializer("ones", (hidden_size,)), name="weight"), eps

    def construct(self, x_BSE):
        return ascend_ops.rms_norm(x_BSE, self.weight, self.eps)

    def after_sum(self, x_BSE, residual_BSE):
        """(norm of the sum, the sum)."""
        return ascend_ops.rms_norm(x_BSE, self.weight, self.eps, residual_BSE)


class Dropout(nn.Cell):
    """Dropout whose masks are the same in a resumed run; the identity at rate 0 or outside training.

    `key` is an int32 scalar tensor, new for every micro-batch; `site` is a number that differs between the dropouts of
    one layer.
    """

    def __init__(self, rate: float, site: int):
        super().__init__()
        self.rate, self.site = rate, site

    def construct(self, x, key):
        if self.rate == 0.0 or not self.training:
            return x
        return ascend_ops.dropout(x, ascend_ops.dropout_seed(key, self.site), self.rate)


class LayerKey(nn.Cell):
    """The dropout key of one layer. It is an input of the layer, not part of it, so that equal layers can share a
    compiled graph."""

    def __init__(self, num_layers: int):
        super().__init__()
        # 0x85EBCA6B is a multiplier of MurmurHash3: the keys of neighbouring layers differ in many bits.
        self.offsets = tuple(
            Tensor(np.uint32((i + 1) * 0x85EBCA6B & 0xFFFFFFFF).astype(np.int32)) for i in range(num_layers)
        )
        self.add = ops.Add()

    def construct(self, key, layer):
        if key is None:
            return None
        return self.add(key, self.offsets[layer])  # int32 overflow wraps around, as intended


@dataclass(frozen=True)
class CacheShape:
    """A static key/value cache.

    Attributes:
        num_slots: slots, each for one sequence.
        capacity: positions of each slot.
        dtype: of keys and values; empty: the compute dtype.
    """

    num_slots: int
    capacity: int
    dtype: str = ""


class KVCache(nn.Cell):
    """Keys and values of one attention layer for sequences in slots, which are at positions of their own.

    A call appends one token to each of the S slots, and perhaps a chunk of P tokens to one of them: N = S or S + P new
    rows. A slot has one row more than its capacity, which nothing reads: there composed operators write the rows that
    belong to no sequence. The heads of a row are contiguous: [G * D].
    """

    def __init__(self, shape: CacheShape, width: int, compute_dtype: str, num_heads: int):
        super().__init__()
        dtype = getattr(ms, shape.dtype or compute_dtype)
        self.num_slots, self.num_heads = shape.num_slots, num_heads
        rows = shape.num_slots * (shape.capacity + 1)
        self.keys, self.values = (
            Parameter(initializer("zeros", (rows, width), dtype), name=n, requires_grad=False)
            for n in ("keys", "values")
        )

    def construct(self, q_Q1A, k_N1W, v_N1W, places, query_places):
        """Write the new rows, then attend to what each query's slot holds up to the query's own position.

        Args:
            q_Q1A: queries: those of the N rows, or one for each slot.
            k_N1W, v_N1W: keys and values of the N rows.
            places: where the N rows are: positions in their sequences, int32 [N, 1], and slots, int32 [N, 1]; -1 is the
                slot of a row that belongs to no sequence.
            query_places: those of the queries.

        Returns:
            [Q, 1, A].
        """
        return ascend_ops.cached_attention(
            q_Q1A,
            k_N1W,
            v_N1W,
            self.keys,
            self.values,
            places[0],
            places[1],
            query_places[0],
            query_places[1],
            self.num_heads,
            self.num_slots,
        )


class Attention(nn.Cell):
    """Multi-head attention. Queries may come from another stream than keys and values (spec A1.3), and several query
    heads may share a key/value head (spec F1).

    A query attends to the keys of its segment at or before its own position; with a cache, to those of its slot.
    """

    def __init__(self, config: ModelConfig, cache: CacheShape | None = None, bias: bool = True):
        super().__init__()
        self.num_heads, self.dropout_rate = config.num_heads, config.dropout
        query_width, width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.hidden_size, query_width, bias)
        self.key, self.value = (Linear(config.hidden_size, width, bias) for _ in range(2))
        self.output = Linear(query_width, config.hidden_size, bias)
        self.reads_one_input, self.joined = True, 0
        """Whether queries, keys and values have one input; and how many of them packed weights give at once."""
        self.mix = Operator(ascend_ops.causal_attention)
        self.cache = KVCache(cache, width, config.compute_dtype, self.num_heads) if cache else None

    def construct(
        self, query_BQE, for_key_BKE, for_value_BKE, segments_BK, places, query_places, key, cos_sin_BKD=None
    ):
        """-> [B, Q, E]. With a cache, B are new rows and Q is 1; for `places` and `query_places` see KVCache.
        With `cos_sin` (see ascend_ops.rotary_embedding) queries and keys are rotated; both must then have the same
        positions."""
        q_BQA, k_BKW, v_BKW = self.project(query_BQE, for_key_BKE, for_value_BKE)
        if cos_sin_BKD is not None:
            q_BQA, k_BKW = (
                ascend_ops.rotary_embedding(q_BQA, cos_sin_BKD),
                ascend_ops.rotary_embedding(k_BKW, cos_sin_BKD),
            )
        if self.cache is not None:
            y_BQA = self.cache(q_BQA, k_BKW, v_BKW, places, places if query_places is None else query_places)
        else:
            rate = self.dropout_rate if self.training else 0.0
            seed = ascend_ops.dropout_seed(key, 0) if rate > 0.0 else None
            y_BQA = self.mix(
                q_BQA, k_BKW, v_BKW, None, None, segments_BK, segments_BK, None, self.num_heads, rate, seed
            )
        return self.output(y_BQA)

    def project(self, query_BQE, for_key_BKE, for_value_BKE):
        """Queries, keys and values. With packed weights (infer/packed_model.py) those of one input are one product."""
        if self.joined == 3:
            return self.query(query_BQE)
        if self.joined == 2:
            k_BKW, v_BKW = self.key(for_key_BKE)
            return self.query(query_BQE), k_BKW, v_BKW
        return self.query(query_BQE), self.key(for_key_BKE), self.value(for_value_BKE)


class GatedNetwork(nn.Cell):
    """A feed-forward network with phi(W_gate x) * (W_up x), of Linear cells `gate` and `up`."""

    def __init__(self, is_one_product: bool):
        super().__init__()
        self.is_one_product, self.joined = is_one_product, False
        """Whether there is no other product with them; and whether the cell `gate` is the whole of it, with packed
        weights (infer/packed_model.py)."""


class FeedForward(nn.Cell):
    """W2 act(W1 x + b1) + b2: [B, S, E] -> [B, S, E]; `activation` is a name in ascend_ops."""

    def __init__(self, config: ModelConfig, activation: str):
        super().__init__()
        self.up = Linear(config.hidden_size, config.ffn_hidden_size)
        self.down = Linear(config.ffn_hidden_size, config.hidden_size)
        self.activation = Operator(getattr(ascend_ops, activation))

    def construct(self, x_BSE):
        return self.down(self.up.activated(x_BSE, self.activation))
