"""Attention with a mask from indices and segments: causal, packed, chunked or cached, with as many KV heads as query
heads or fewer.

Shapes: B batch, Q queries, K keys, H query heads, G KV heads (H a multiple of G; query head h uses KV head h // (H /
G)), D head size.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr
from mindspore.ops.functional import isconstant

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, device, gradient_of, kernel, zeros_like
from ascend_ops.errors import OperatorError
from ascend_ops.layout import laid_out, placed
from ascend_ops.random_masks import by_mindspore, dropout_mask, float32_rate

_PER_HEAD = (
    "batch",
    "heads",
    None,
    None,
)  # the plan's names of the dimensions; query heads are sharded as KV heads are


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_index: Tensor | None = None,
    k_index: Tensor | None = None,
    q_segment: Tensor | None = None,
    k_segment: Tensor | None = None,
    scale: float | None = None,
    num_heads: int | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v, with the softmax over the keys that a query sees. Softmax and sums are float32; q, k
    and v have gradients.

    Query i sees key j if k_index[j] <= q_index[i] and k_segment[j] == q_segment[i]. A query that sees no key has the
    result 0 and gradients 0. Empty slots of a cache must have a huge index (2**30). All values of k and v must be
    finite: a NaN also reaches queries of the same batch row that do not see its key; which ones depends on the backend.

    Args:
        q: [B, Q, H, D], or [B, Q, H * D] with num_heads; float32, float16 or bfloat16.
        k, v: [B, K, G, D], or [B, K, G * D] like q; of the dtype of q.
        q_index, k_index: [B, Q] and [B, K] int32, positions in any order; default: 0, 1, 2, ...
        q_segment, k_segment: [B, Q] and [B, K] int32, both or neither; default: one segment.
        scale: default D ** -0.5.
        num_heads: H, if q is [B, Q, H * D].
        dropout_rate, dropout_seed: dropout of the probabilities, by their index in [B, H, Q, K]; see `dropout`.

    Returns:
        As q.

    Raises:
        OperatorError: an input breaks these rules.

    Source: Dao 2023, FlashAttention-2; specification A1.3.
    """
    chosen = select(
        "causal_attention", *(describe(t) for t in (q, k, v, q_index, k_index, q_segment, k_segment, dropout_seed))
    )
    dropout_rate = _rate(dropout_rate, describe(dropout_seed))
    heads = _heads(num_heads, q.ndim, q.shape[2], k.shape[2])
    scale = _scale(scale, q.shape[-1] if q.ndim == 4 else q.shape[-1] // heads.shape[0])
    q_index, k_index = _or_arange(q_index, q), _or_arange(k_index, k)
    q_segment, k_segment = _or_zeros(q_segment, q_index), _or_zeros(k_segment, k_index)
    if chosen == "composed" or chosen == "builtin":
        visible = _visible(q_index, k_index, q_segment, k_segment)
        out = _with_heads(
            chosen,
            _split(q, heads),
            _split_like(k, q, heads),
            _split_like(v, q, heads),
            visible,
            scale,
            dropout_rate,
            dropout_seed,
        )
        return ops.cast(out if q.ndim == 4 else ops.reshape(out, q.shape), q.dtype)
    seed = _or_seed(dropout_seed)
    return kernel("CausalAttention")(
        q, k, v, q_index, k_index, q_segment, k_segment, heads, seed, attribute(scale, dropout_rate)
    )[0]


def _with_heads(chosen, q, k, v, visible, scale, dropout_rate, dropout_seed):
    if chosen == "builtin" and dropout_rate == 0.0 and _builtin_computes(q.dtype, q.shape[-1]):
        return _builtin(q, k, v, visible, scale)
    return _composed(q, k, v, visible, scale, dropout_rate, dropout_seed)


def _or_seed(seed):
    return ops.zeros((1,), ms.int32) if seed is None else seed.reshape(1)


def _split(x, heads):
    """[B, S, H * D] -> [B, S, H, D]; through float32 for a dtype that MindSpore's CPU backend cannot reshape."""
    x = _reshapeable(x)
    return x if x.ndim == 4 else ops.reshape(x, (x.shape[0], x.shape[1], heads.shape[0], -1))


def _split_like(x, q, heads):
    x = _reshapeable(x)
    return x if x.ndim == 4 else ops.reshape(x, (x.shape[0], x.shape[1], -1, q.shape[-1] // heads.shape[0]))


def _reshapeable(x):
    return ops.cast(x, _product_dtype(x.dtype))


@gradient_of("CausalAttention")
def _causal_attention_gradient(q, k, v, q_index, k_index, q_segment, k_segment, heads, seed, attributes, out, dout):
    gradients = kernel("CausalAttentionGrad")(
        dout[0], q, k, v, q_index, k_index, q_segment, k_segment, heads, seed, out[0], out[1], attributes
    )
    return *gradients, *(zeros_like(x) for x in (q_index, k_index, q_segment, k_segment, heads, seed, attributes))


def _visible(q_index, k_index, q_segment, k_segment):
    """[B, Q, K] bool."""
    return ops.logical_and(
        k_index.expand_dims(1) <= q_index.expand_dims(2), k_segment.expand_dims(1) == q_segment.expand_dims(2)
    )


def _builtin(q, k, v, visible_BQK, scale):
    """MindSpore's flash attention on Ascend. Written from its documentation, untested."""
    hidden = ops.logical_not(visible_BQK).expand_dims(1)
    out = ops.flash_attention_score(
        q, k, v, q.shape[2], attn_mask=hidden, keep_prob=1.0, scalar_value=scale, input_layout="BSND"
    )
    return out * ops.cast(_sees_any(visible_BQK), q.dtype)


def _composed(q, k, v, visible_BQK, scale, dropout_rate, dropout_seed):
    # On a CPU MindSpore's float16 products take twice the time of float32 ones, and there are no bfloat16 ones.
    product = _product_dtype(q.dtype)
    scaled = ops.cast(ops.cast(q, ms.float32) * scale, product)
    # Adding -1e30, in which any score vanishes, takes half the time of a select.
    hidden_BQK = ops.cast(ops.logical_not(visible_BQK), ms.float32) * -1e30
    k, v = ops.cast(k, product), ops.cast(v, product)
    if dropout_rate > 0.0 or laid_out() or not _is_short(q):
        out = _head_by_head(scaled, k, v, hidden_BQK, dropout_rate, dropout_seed)
    else:
        out = _all_heads_at_once(scaled, k, v, hidden_BQK)
    return ops.cast(out, ms.float32) * _sees_any(visible_BQK)


def _head_by_head(q, k, v, hidden_BQK, dropout_rate, dropout_seed):
    """One product for each KV head, for which q, k and v are transposed. The query heads of a KV head are stacked along
    the rows."""
    B, Q, H, D = q.shape
    G = k.shape[2]
    q_BGRD = ops.transpose(q, (0, 2, 1, 3)).reshape(B, G, (H // G) * Q, D)
    k_BGKD, v_BGKD = ops.transpose(k, (0, 2, 1, 3)), ops.transpose(v, (0, 2, 1, 3))
    scores = placed("BatchMatMul", (_PER_HEAD, _PER_HEAD), "transpose_b")(q_BGRD, k_BGKD).reshape(B, H, Q, -1)
    p_BHQK = ops.softmax(ops.cast(scores, ms.float32) + hidden_BQK.expand_dims(1), -1)
    if dropout_rate > 0.0 and laid_out():
        p_BHQK = by_mindspore(dropout_rate)(p_BHQK)[0]
    elif dropout_rate > 0.0:
        p_BHQK = p_BHQK * dropout_mask(p_BHQK.shape, dropout_seed, dropout_rate)
    out_BGRD = placed("BatchMatMul", (_PER_HEAD, _PER_HEAD))(
        ops.cast(p_BHQK, v.dtype).reshape(B, G, (H // G) * Q, -1), v_BGKD
    )
    return ops.transpose(out_BGRD.reshape(B, H, Q, D), (0, 2, 1, 3))


def _all_heads_at_once(q, k, v, hidden_BQK):
    """For few queries: one product over all heads, with queries that are 0 in the other heads, so that a cache is read
    without a transpose.

    This takes G times the multiplications, but a quarter to a sixth of the time of transposing the cache (B 1, K 256, H
    8, D 64: 0.19 ms against 0.49).
    """
    B, Q, H, D = q.shape
    K, G = k.shape[1], k.shape[2]
    own = ops.cast(_own_heads(H, G), q.dtype)
    q_BRE = (q.reshape(B, Q, H, 1, D) * own).reshape(B, Q * H, G * D)
    scores = ops.BatchMatMul(transpose_b=True)(q_BRE, k.reshape(B, K, G * D)).reshape(B, Q, H, K)
    p_BQHK = ops.softmax(ops.cast(scores, ms.float32) + hidden_BQK.expand_dims(2), -1)
    out_BRE = ops.BatchMatMul()(ops.cast(p_BQHK, v.dtype).reshape(B, Q * H, K), v.reshape(B, K, G * D))
    return (out_BRE.reshape(B, Q, H, G, D) * own).sum(3)


def _is_short(q):
    # 64 is about where the additional multiplications cost as much as the transposes.
    return isconstant(q.shape) and q.shape[1] * q.shape[2] <= 64


def _sees_any(visible_BQK):
    """[B, Q, 1, 1] float32: 1 for queries that see a key."""
    return ops.cast(visible_BQK.any(-1), ms.float32).expand_dims(-1).expand_dims(-1)


def _or_arange(index, x):
    if index is not None:
        return index
    if isconstant(x.shape):
        return _arange(
            1 if laid_out() else x.shape[0], x.shape[1]
        )  # MindSpore does not always shard a constant as it shards the batch
    return ops.cumsum(ops.cast(ops.ones_like(x[:, :, 0, 0] if x.ndim == 4 else x[:, :, 0]), ms.int32), 1) - 1


def _or_zeros(segment, index):
    return ops.zeros_like(index) if segment is None else segment


@constexpr
def _arange(batch, length):
    """0, 1, 2, ... in each row of [batch, length], as a constant of the graph."""
    return Tensor(np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length)).copy())


@constexpr
def _own_heads(num_heads, num_kv_heads):
    """[H, G, 1] float32: 1 where a query head uses a KV head."""
    return Tensor(np.repeat(np.eye(num_kv_heads, dtype=np.float32), num_heads // num_kv_heads, axis=0)[:, :, None])


@constexpr
def _product_dtype(dtype):
    return ms.float32 if device() == "CPU" else dtype


@constexpr
def _builtin_computes(dtype, head_size):
    """Whether flash_attention_score is documented for it."""
    return dtype in (ms.float16, ms.bfloat16) and head_size % 16 == 0 and head_size <= 512


@constexpr
def _rate(rate, seed):
    if float32_rate("causal_attention", rate) and seed is None:
        raise OperatorError(
            f"ascend_ops.causal_attention: dropout_rate={rate} without dropout_seed; ascend_ops.dropout_seed makes one"
            " of a step's key"
        )
    return float32_rate("causal_attention", rate)


@constexpr
def _scale(scale, head_size):
    if scale is None:
        return head_size**-0.5
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not (math.isfinite(scale) and scale > 0):
        raise OperatorError(
            f"ascend_ops.causal_attention: scale={scale!r}: it must be a finite number above 0; leave it out for D **"
            " -0.5"
        )
    return float(scale)


@constexpr
def _heads(num_heads, rank, q_dim, k_dim):
    """int32 [H], whose length gives a kernel the number of heads. `q_dim` and `k_dim` are the sizes of the third
    dimension: heads, or heads times head size."""
    where = f"ascend_ops.causal_attention: num_heads={num_heads}"
    if rank == 4:
        if num_heads not in (None, q_dim):
            raise OperatorError(f"{where}: q has {q_dim} heads; leave it out")
        return Tensor(np.arange(q_dim, dtype=np.int32))
    if num_heads is None or num_heads < 1 or q_dim % num_heads:
        raise OperatorError(
            f"{where}: the last dimension of q is {q_dim}; it must hold that many heads; name their number"
        )
    head_size = q_dim // num_heads
    if k_dim % head_size or num_heads % (k_dim // head_size):
        raise OperatorError(
            f"{where}: the last dimension of k is {k_dim}; it must hold heads of {head_size}, whose number divides that"
            " of q"
        )
    return Tensor(np.arange(num_heads, dtype=np.int32))


@rule("causal_attention")
def _check_attention(
    q: Operand,
    k: Operand,
    v: Operand,
    q_index: Operand | None,
    k_index: Operand | None,
    q_segment: Operand | None,
    k_segment: Operand | None,
    dropout_seed: Operand | None,
) -> None:
    q.floating()
    q.rank(3, 4)
    for x in (k, v):
        x.floating(like=q)
        x.rank(3 if q.shape is None else len(q.shape), 4 if q.shape is None else len(q.shape))
    if k.shape is not None:
        v.shaped("the shape of k", k.shape)
    if q.shape is not None and k.shape is not None:
        k.shaped("the batch of q, and its head size", (q.shape[0], *k.shape[1:3], *q.shape[3:]))
        if len(q.shape) == 4 and q.shape[2] % k.shape[2]:
            raise k.refuse(
                f"has {k.shape[2]} heads and q {q.shape[2]}", "they must divide those of q; repeat or split heads"
            )
    given = q_segment or k_segment
    if given is not None and None in (q_segment, k_segment):
        missing = "k_segment" if given is q_segment else "q_segment"
        raise given.refuse(f"is given without {missing}", "a query sees keys of its own segment; give both or neither")
    if dropout_seed is not None:
        dropout_seed.int32()
        dropout_seed.shaped("one number", (), (1,))
    for stream, positions in ((q, (q_index, q_segment)), (k, (k_index, k_segment))):
        for position in positions:
            if position is not None:
                position.int32()
                if stream.shape is not None:
                    position.shaped(f"the batch and length of {stream.name}", stream.shape[:2])
