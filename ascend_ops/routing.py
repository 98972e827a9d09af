"""Routing of tokens to experts: look up the expert of each token in a fixed table, sort tokens by expert, and bring the
experts' results back to token order.

A slot is the number of one choice of one token: token * top_k + choice. On a CPU a step raises RuntimeError for an id
or expert out of range, or an order that is not a permutation of the slots; an accelerator cannot raise errors that
depend on values.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr
from mindspore.ops.functional import isconstant

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import device, gradient_of, kernel, zeros_like
from ascend_ops.errors import OperatorError


def rre_route(domain: Tensor, ids: Tensor, table: Tensor) -> Tensor:
    """Expert of each token, table[domain, id]: PanGu-Sigma's random routed experts. No gradient. Source: specification
    C3.

    Args:
        domain: int32 of the shape of ids; or [B] or [B, 1], one domain for each row of ids [B, S].
        ids: int32 [...], tokens.
        table: int32 [domains, V].

    Returns:
        int32 of the shape of ids.
    """
    chosen = select("rre_route", describe(domain), describe(ids), describe(table))
    if domain.ndim < ids.ndim:
        domain = ops.expand_dims(domain, -1)
    domain = domain + ops.zeros_like(ids)
    if chosen == "composed":
        domain, ids = _below(domain, table.shape[0]), _below(ids, table.shape[1])
        return ops.gather(ops.reshape(table, (-1,)), domain * table.shape[1] + ids, 0)
    return kernel("RreRoute")(domain, ids, table)


def moe_dispatch(x: Tensor, expert: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of x sorted by expert, for expert parallelism and grouped products. No token is dropped. Source:
    specification C3.2.

    Args:
        x: [T, E] float32, float16 or bfloat16.
        expert: int32 [T] or [T, top_k], each from 0 to num_experts - 1.
        num_experts: length of counts.

    Returns:
        rows [T * top_k, E], those of one expert in the order of their slots; order int32 [T * top_k], the slot of each
        row; counts int32 [num_experts], the number of rows of each expert.
    """
    chosen = select("moe_dispatch", describe(x), describe(expert))
    expert, experts = ops.reshape(expert, (-1,)), _experts(num_experts)
    if chosen != "composed":
        return kernel("MoeDispatch")(x, expert, experts)
    num_experts = experts.shape[0]  # the value after the check of `num_experts`
    expert = _below(expert, num_experts)
    order = _stable_order(expert, num_experts)
    top_k = expert.shape[0] // x.shape[0]
    rows = ops.cast(ops.gather(ops.cast(x, ms.float32), order // top_k, 0), x.dtype)
    return rows, order, ops.scatter_nd(ops.expand_dims(expert, -1), ops.ones_like(expert), (num_experts,))


def moe_combine(rows: Tensor, order: Tensor, weights: Tensor | None = None, top_k: int = 1) -> Tensor:
    """Rows back in token order: out[t] = sum_c weights[t, c] * (row of slot t * top_k + c), in float32. Source:
    specification C3.2.

    Args:
        rows: [T * top_k, E] float32, float16 or bfloat16, as moe_dispatch sorts them.
        order: int32 [T * top_k], the slot of each row; every slot once.
        weights: [T, top_k]; by default all are 1 (PanGu-Sigma does not multiply by a gate).
        top_k: number of choices of a token, if `weights` is left out.

    Returns:
        [T, E] of the dtype of rows. Rows and weights have gradients.
    """
    chosen = select("moe_combine", describe(rows), describe(order), describe(weights))
    top_k = _choices(top_k, describe(order), None if weights is None else weights.shape[-1])
    if weights is not None:
        weights = ops.cast(ops.reshape(weights, (-1, top_k)), ms.float32)
    if chosen != "composed":
        return kernel("MoeCombine")(rows, order, _unit_weights(order, top_k) if weights is None else weights)
    position = ops.argsort(order)
    position = _stop_unless((ops.gather(order, position, 0) == _slots(order)).all(), position)
    picked = ops.gather(ops.cast(rows, ms.float32), position, 0)
    picked = ops.reshape(picked, (-1, top_k, rows.shape[1]))
    if weights is not None:
        picked = picked * ops.expand_dims(weights, -1)
    return ops.cast(picked.sum(1), rows.dtype)


@gradient_of("MoeDispatch")
def _moe_dispatch_gradient(x, expert, experts, out, dout):
    return (
        kernel("MoeCombine")(dout[0], out[1], _unit_weights(out[1], expert.shape[0] // x.shape[0])),
        zeros_like(expert),
        zeros_like(experts),
    )


@gradient_of("MoeCombine")
def _moe_combine_gradient(rows, order, weights, out, dout):
    drows, dweights = kernel("MoeCombineGrad")(dout, rows, order, weights)
    return drows, zeros_like(order), dweights


def _unit_weights(order, top_k):
    """Weights to pass when there are none: on a CPU [T], from which kernels take only the number of tokens and which
    have no gradient; on Ascend [T, top_k] of ones."""
    if isconstant(order.shape):
        return _ones(order.shape[0] // top_k, top_k)
    ones = ops.cast(ops.ones_like(ops.reshape(order, (-1, top_k))), ms.float32)
    return ones if _on_ascend() else ones[:, 0]


def _slots(order):
    """0, 1, ... with the length of `order`."""
    if isconstant(order.shape):
        return _counted(order.shape[0])
    return ops.cast(ops.cumsum(ops.ones_like(order), 0) - 1, ms.int32)


def _stable_order(expert, num_experts):
    """Slots sorted by expert. Each sort key contains its slot, so that even an unstable sort keeps the order of equal
    experts."""
    slots = expert.shape[0]
    if not _fits_int32(slots if isconstant(expert.shape) else None, num_experts):
        return ops.argsort(ops.cast(expert, ms.int64) * slots + ops.cast(_slots(expert), ms.int64))
    return ops.argsort(expert * slots + _slots(expert))


def _below(values, limit):
    """The values; on a CPU the step stops unless all are in [0, limit)."""
    return _stop_unless(ops.logical_and(values >= 0, values < limit).all(), values)


def _stop_unless(condition, values):
    """The values, made dependent on an Assert that stops the step unless the condition holds. Assert gets only the
    condition to print, since it accepts no dynamic shapes. It exists on CPU and GPU."""
    return values if _on_ascend() else ops.depend(values, ops.Assert()(condition, (condition,)))


@constexpr
def _on_ascend():
    return device() == "Ascend"


@constexpr
def _ones(tokens, top_k):
    return Tensor(np.ones((tokens, top_k) if device() == "Ascend" else tokens, np.float32))


@constexpr
def _counted(length):
    return Tensor(np.arange(length, dtype=np.int32))


@constexpr
def _fits_int32(slots, num_experts):
    return slots is not None and slots * num_experts < 2**31


@constexpr
def _experts(num_experts):
    if not isinstance(num_experts, int) or num_experts < 1:
        raise OperatorError(
            f"ascend_ops.moe_dispatch: num_experts={num_experts!r}: it must be a whole number of at least 1; give the"
            " number of experts"
        )
    return Tensor(np.arange(num_experts, dtype=np.int32))


@constexpr
def _choices(top_k, order, weights):
    """Number of choices of a token: the columns of `weights`, or top_k without weights."""
    slots = None if order[1] is None else order[1][0]
    if not isinstance(top_k, int) or top_k < 1 or (slots is not None and slots % top_k):
        raise OperatorError(
            f"ascend_ops.moe_combine: top_k={top_k!r}: it must be at least 1 and divide the {slots} slots of order;"
            " give each token's choices"
        )
    columns = top_k if weights is None else weights
    if top_k not in (1, columns):
        raise OperatorError(f"ascend_ops.moe_combine: top_k={top_k}: weights have {columns} columns; leave top_k out")
    return columns


@rule("rre_route")
def _check_route(domain: Operand, ids: Operand, table: Operand) -> None:
    for operand in (domain, ids, table):
        operand.int32()
        operand.rank(1)
    table.rank(2, 2)
    if ids.shape is not None:
        lines = (ids.shape[:1], (ids.shape[0], 1)) if len(ids.shape) == 2 else ()
        domain.shaped(f"ids has shape {ids.shape}", ids.shape, *lines)


@rule("moe_dispatch")
def _check_dispatch(x: Operand, expert: Operand) -> None:
    x.floating()
    x.rank(2, 2)
    expert.int32()
    expert.rank(1, 2)
    if x.shape is not None and expert.shape is not None and x.shape[0] != expert.shape[0]:
        raise expert.refuse(
            f"has shape {expert.shape}",
            f"its first dimension must be {x.shape[0]}, the tokens of x; give each token its experts",
        )


@rule("moe_combine")
def _check_combine(rows: Operand, order: Operand, weights: Operand | None) -> None:
    rows.floating()
    rows.rank(2, 2)
    order.int32()
    order.rank(1, 1)
    if rows.shape is not None:
        order.shaped(f"rows has {rows.shape[0]} rows", rows.shape[:1])
    if weights is None:
        return
    weights.floating()
    weights.rank(2, 2)
    if order.shape is not None and weights.shape is not None and weights.shape[0] * weights.shape[1] != order.shape[0]:
        raise weights.refuse(
            f"has shape {weights.shape}",
            f"it must be [T, top_k] of the {order.shape[0]} slots of order; give each slot one weight",
        )
