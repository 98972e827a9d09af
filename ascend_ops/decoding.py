"""Attention of a decoding step, which first writes new keys and values into the slots of a cache.

Shapes: S slots, R rows of a slot, N new rows, Q queries, H query heads, G KV heads, D head size, A = H * D, W = G * D.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.ops import constexpr

from ascend_ops.attention import causal_attention
from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, device, kernel
from ascend_ops.errors import OperatorError
from ascend_ops.table import CACHED


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Parameter,
    values: Parameter,
    positions: Tensor,
    slots: Tensor,
    query_positions: Tensor | None = None,
    query_slots: Tensor | None = None,
    num_heads: int = 1,
    num_slots: int = 1,
) -> Tensor:
    """Write N new keys and values into the caches; then each query attends to the rows 0 to its position of its slot.

    The first S rows are one for each slot, in the order of the slots; further ones are all of one slot: the chunk of a
    prompt. The same holds for the queries. A row of slot -1 is nobody's: it changes at most the last row of a slot,
    which nothing reads, and its result is 0. On a CPU the bits of a result depend on its query and on the keys that it
    sees alone. There is no gradient.

    Args:
        q: [Q, A], or [Q, 1, A]; float32, float16 or bfloat16.
        k, v: [N, W], or [N, 1, W]; of the dtype of q.
        keys, values: [S * R, W], slot after slot; written in place. Of the dtype of q, or float16 or bfloat16 with a q
            of float32: then new rows are rounded as they are written, and all rows are widened as they are read. (On a
            CPU MindSpore's own operators cannot write to bfloat16.)
        positions, slots: int32 [N], or [N, 1]: where the new rows stand. A position is below R - 1.
        query_positions, query_slots: int32 [Q], or [Q, 1], both or neither; default: those of the new rows.
        num_heads: H.
        num_slots: S.

    Returns:
        As q.

    Raises:
        OperatorError: an input breaks these rules.
        RuntimeError: (cpu) a position or a slot does not exist; nothing is written then.

    Source: Agrawal et al. 2024, Sarathi-Serve (steps with a chunk of a prompt); Dao 2023, FlashAttention-2.
    """
    described = [describe(t) for t in (q, k, v, keys, values, positions, slots, query_positions, query_slots)]
    chosen = select("cached_attention", *described)
    scale = _scale(num_heads, q.shape[-1], keys.shape[1])
    _check_slots(num_slots, q.shape, k.shape, keys.shape[0])
    if query_positions is None:
        query_positions, query_slots = positions, slots
    if chosen == "composed":
        _check_composed(keys.dtype, q.dtype)
        return _composed(q, k, v, keys, values, positions, slots, query_positions, query_slots, num_heads, num_slots)
    return kernel("CachedAttention")(
        q, k, v, keys, values, positions, slots, query_positions, query_slots, attribute(scale, num_heads, num_slots)
    )


def _composed(q, k, v, keys, values, positions, slots, query_positions, query_slots, num_heads, num_slots):
    S, R, width = num_slots, keys.shape[0] // num_slots, keys.shape[1]
    rows_N1 = ops.reshape(ops.select(slots < 0, R - 1, slots * R + positions), (-1, 1))
    keys_SRW = ops.reshape(_written(keys, rows_N1, ops.reshape(k, (-1, width))), (S, R, width))
    values_SRW = ops.reshape(_written(values, rows_N1, ops.reshape(v, (-1, width))), (S, R, width))
    query_slots = ops.reshape(query_slots, (-1,))
    index_Q1 = ops.reshape(ops.select(query_slots < 0, -1, ops.reshape(query_positions, (-1,))), (-1, 1))
    q_Q1A = ops.reshape(q, (index_Q1.shape[0], 1, -1))
    y_S1A = causal_attention(q_Q1A[:S], keys_SRW, values_SRW, index_Q1[:S], _row_numbers(S, R), num_heads=num_heads)
    if q_Q1A.shape[0] == S:
        return ops.reshape(y_S1A, q.shape)
    chunk_slot_1 = ops.maximum(query_slots[S : S + 1], 0)
    y_1PA = causal_attention(
        q_Q1A[S:].swapaxes(0, 1),
        ops.gather(keys_SRW, chunk_slot_1, 0),
        ops.gather(values_SRW, chunk_slot_1, 0),
        index_Q1[S:].swapaxes(0, 1),
        _row_numbers(1, R),
        num_heads=num_heads,
    )
    return ops.reshape(ops.concat((y_S1A, y_1PA.swapaxes(0, 1))), q.shape)


def _written(cache, rows_N1, new_NW):
    """The cache with new rows in it, in their dtype."""
    written = ops.ScatterNdUpdate()(cache, rows_N1, ops.cast(new_NW, cache.dtype))
    return ops.cast(written, new_NW.dtype)


@constexpr
def _row_numbers(num_slots, num_rows):
    """0, 1, 2, ... for each slot, as a constant of the graph."""
    return Tensor(np.tile(np.arange(num_rows, dtype=np.int32), (num_slots, 1)))


@constexpr
def _check_composed(cached, computed):
    if cached != computed and cached == ms.bfloat16 and device() == "CPU":
        raise OperatorError(
            "ascend_ops.cached_attention: keys is bfloat16: on a CPU only our kernel can write to it, and MindSpore's"
            " own operators are to be used; make the cache float16 or float32"
        )


@constexpr
def _scale(num_heads, query_width, width):
    where = f"ascend_ops.cached_attention: num_heads={num_heads}"
    if num_heads < 1 or query_width % num_heads:
        raise OperatorError(f"{where}: the last dimension of q is {query_width}; it must hold that many heads")
    head_size = query_width // num_heads
    if width % head_size or num_heads % (width // head_size):
        raise OperatorError(
            f"{where}: the last dimension of keys is {width}; it must hold heads of {head_size}, whose number divides"
            " that of q"
        )
    return head_size**-0.5


@constexpr
def _check_slots(num_slots, q_shape, k_shape, num_rows):
    where = f"ascend_ops.cached_attention: num_slots={num_slots}"
    if num_slots < 1 or num_rows % num_slots:
        raise OperatorError(f"{where}: keys has {num_rows} rows; it must have as many for each slot")
    for name, shape in (("q", q_shape), ("k", k_shape)):
        if shape[0] < num_slots:
            raise OperatorError(f"{where}: {name} has {shape[0]} rows; it must have one for each slot")


@rule("cached_attention")
def _check_cached_attention(
    q: Operand,
    k: Operand,
    v: Operand,
    keys: Operand,
    values: Operand,
    positions: Operand,
    slots: Operand,
    query_positions: Operand | None,
    query_slots: Operand | None,
) -> None:
    q.floating()
    q.rank(2, 3)
    for x in (k, v):
        x.floating(like=q)
    for x in (keys, values):
        if x.dtype not in CACHED[q.dtype]:
            allowed = " or ".join(CACHED[q.dtype])
            raise x.refuse(f"is {x.dtype} and q is {q.dtype}", f"it must be {allowed}; make another cache")
    values.floating(like=keys)
    keys.rank(2, 2)
    if keys.shape is not None:
        values.shaped("the shape of keys", keys.shape)
    if q.shape is not None:
        q.shaped("rows of heads", (q.shape[0], q.shape[-1]), (q.shape[0], 1, q.shape[-1]))
    for x in (k, v):
        if k.shape is not None and keys.shape is not None:
            x.shaped("rows of keys", (k.shape[0], keys.shape[1]), (k.shape[0], 1, keys.shape[1]))
    given = query_positions or query_slots
    if given is not None and None in (query_positions, query_slots):
        raise given.refuse("is given alone", "queries have a position and a slot; give both or neither")
    for rows, places in ((k, (positions, slots)), (q, (query_positions or positions, query_slots or slots))):
        for place in places:
            place.int32()
            if rows.shape is not None:
                place.shaped(f"one for each row of {rows.name}", rows.shape[:1], (rows.shape[0], 1))
