"""Matrix products with weights: linear, and grouped_matmul for rows that are grouped by expert. Sources:
MindSpore's Dense and grouped_matmul, which they replace.

Weights are stored in float32, and so are their gradients, whatever the dtype T of the activations. A product uses the
weight rounded to T, accumulates in float32 and rounds once, after the bias (the builtin backend also before the bias).
Most CPUs have no float16 products, so that float16 is as slow as float32 there.
"""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import filled, gradient_of, kernel, zeros_like
from ascend_ops.layout import Axes, placed, placed_bias, placed_product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, axes: Axes | None = None) -> Tensor:
    """x W^T + bias.

    Args:
        x: [..., in] float32, float16 or bfloat16.
        weight: [out, in] float32.
        bias: [out] float32; None for none.
        axes: the plan's names of the dimensions of the weight, such as ("ffn", "embed"); None leaves the product to
            sharding propagation. See layout.py.

    Returns:
        [..., out] in the dtype of x. Gradients of weight and bias are float32, never rounded to the dtype of x.
    """
    chosen = select("linear", describe(x), describe(weight), describe(bias))
    if chosen == "composed":
        return ops.cast(_over_rows(ops.cast(x, ms.float32), weight, bias, x.dtype, axes), x.dtype)
    if chosen == "builtin":
        y = placed_product(axes)(ops.reshape(x, (-1, x.shape[-1])), ops.cast(weight, x.dtype))
        y = y if bias is None else placed_bias(axes)(y, ops.cast(bias, x.dtype))
        return ops.reshape(y, x.shape[:-1] + weight.shape[:1])
    return kernel("Linear")(
        x, weight, filled(0.0, 1) if bias is None else bias
    )  # a bias of one value with several outputs means no bias


def logits(x: Tensor, table: Tensor) -> Tensor:
    """x W^T with the table of a vocabulary: `linear` with axes ("vocab", "embed").

    Args:
        x: [..., E] float32, float16 or bfloat16.
        table: [V, E] float32.

    Returns:
        [..., V] in the dtype of x.
    """
    chosen = select("linear", describe(x), describe(table), None)
    if chosen == "cpu" or chosen == "ascendc":
        return kernel("Linear")(x, table, filled(0.0, 1))
    # This does not call `linear`, because in a pipeline MindSpore gives nodes that were parsed from the same line of
    # code the same layout.
    product = placed("MatMul", (("batch", "embed"), ("vocab", "embed")), "transpose_b")
    if chosen == "composed":
        y = product(ops.reshape(ops.cast(x, ms.float32), (-1, x.shape[-1])), _rounded_table(table, x.dtype))
    else:
        y = product(ops.reshape(x, (-1, x.shape[-1])), ops.cast(table, x.dtype))
    return ops.cast(ops.reshape(y, x.shape[:-1] + table.shape[:1]), x.dtype)


def grouped_matmul(x: Tensor, weight: Tensor, counts: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the rows of each expert by its weight: y[i] = x[i] W[e]^T + bias[e] for the expert e of row i.

    On a CPU the result of an expert's rows, and its gradients, have the same bits whatever other experts and rows there
    are.

    Args:
        x: [N, in] float32, float16 or bfloat16, rows sorted by expert.
        weight: [E, out, in] float32.
        counts: [E] int32, number of rows of each expert, known only at run time. They must add up to N, which the CPU
            kernel checks.
        bias: [E, out] float32; None for none.

    Returns:
        [N, out] in the dtype of x. An expert without rows gets a zero gradient.

    Raises:
        RuntimeError: (cpu) counts are negative or do not add up to N.
    """
    described = describe(x), describe(weight)
    chosen = select("grouped_matmul", *described, describe(counts), describe(bias))
    if chosen == "composed":
        if _has_few_rows(*described):
            return _composed_rows(x, weight, counts, bias)
        return _composed_groups(x, weight, counts, bias)
    if chosen == "builtin":
        y = _builtin_groups(x, ops.transpose(ops.cast(weight, x.dtype), (0, 2, 1)), ops.cast(counts, ms.int64))
        # The operator has a bias, but then no gradient.
        return y if bias is None else y + ops.cast(ops.gather(bias, _expert_of_rows(y, counts), 0), y.dtype)
    return kernel("GroupedMatmul")(x, weight, counts, filled(0.0, 1) if bias is None else bias)


def _over_rows(x, weight, bias, dtype, axes):
    rows = x if x.ndim == 2 else ops.reshape(x, (-1, x.shape[-1]))
    y = _composed(rows, weight, dtype, axes)
    y = y if bias is None else placed_bias(axes)(y, bias)
    return y if x.ndim == 2 else ops.reshape(y, x.shape[:-1] + weight.shape[:1])


def _composed(x, weight, dtype, axes=None):
    """x W^T in float32, with the weight rounded to `dtype`: MindSpore's CPU backend has no MatMul of bfloat16, and sums
    in float16 are too coarse."""
    return placed_product(axes)(x, _rounded(weight, dtype, axes))


def _rounded(weight, dtype, axes):
    """The weight with the values of `dtype`, in float32."""
    if dtype == ms.float32:
        return weight
    # w + (rounded - w) equals the rounded weight exactly; unlike two casts it does not round the gradient of w. Both
    # operators are placed: a parameter has the layout of the operators that read it, and not that of the product.
    add, subtract = placed("Add", (axes, axes)), placed("Sub", (axes, axes))
    return add(weight, ops.stop_gradient(subtract(ops.cast(ops.cast(weight, dtype), ms.float32), weight)))


def _rounded_table(table, dtype):
    """`_rounded` of the table of a vocabulary, on lines of its own; see `logits`."""
    if dtype == ms.float32:
        return table
    axes = ("vocab", "embed")
    add, subtract = placed("Add", (axes, axes)), placed("Sub", (axes, axes))
    return add(table, ops.stop_gradient(subtract(ops.cast(ops.cast(table, dtype), ms.float32), table)))


def _composed_groups(x, weight, counts, bias):
    """One product of all rows for each expert, of which only its own rows are kept. This is E times the work, but has
    static shapes for any counts."""
    wide = ops.cast(x, ms.float32)
    row = ops.reshape(ops.arange(x.shape[0]), (-1, 1))
    ends = ops.cumsum(counts, 0)
    y = ops.zeros((x.shape[0], weight.shape[1]), ms.float32)
    for e in range(weight.shape[0]):
        own = ops.logical_and(row >= ends[e] - counts[e], row < ends[e])
        # rows are also masked before the product: a NaN in another expert's row must not reach this expert's gradient
        product = _composed(ops.where(own, wide, ops.zeros_like(wide)), weight[e], x.dtype)
        y = ops.where(own, product if bias is None else product + bias[e], y)
    return ops.cast(y, x.dtype)


@constexpr
def _has_few_rows(x, weight):
    """Whether there are no more rows than experts, from what `describe` says: then `_composed_rows` reads less."""
    (_, rows), (_, experts) = x, weight
    return rows is not None and experts is not None and rows[0] <= experts[0]


def _composed_rows(x, weight, counts, bias):
    """A product of each row with the weight of its expert, which is copied first: for the few rows of decoding, where
    `_composed_groups` would read every expert."""
    expert = _expert_of_rows(x, counts)
    own = ops.gather(weight, expert, 0)
    if x.dtype != ms.float32:  # as in `_composed`
        own = own + ops.stop_gradient(ops.cast(ops.cast(own, x.dtype), ms.float32) - own)
    columns = ops.expand_dims(ops.cast(x, ms.float32), 2)
    y = ops.reshape(ops.BatchMatMul()(own, columns), (x.shape[0], weight.shape[1]))
    return ops.cast(y if bias is None else y + ops.gather(bias, expert, 0), x.dtype)


def _expert_of_rows(x, counts):
    """[N] int32: the number of experts whose rows end at or before each row of x."""
    row = ops.reshape(ops.arange(x.shape[0]), (-1, 1))
    return ops.cast(row >= ops.cumsum(counts, 0), ms.int32).sum(1)


@constexpr
def _grouped_matmul_v4():
    from mindspore.ops.auto_generate import GroupedMatmulV4

    return GroupedMatmulV4()


def _builtin_groups(x, weight, counts):
    """MindSpore's operator, called as in MindFormers (parallel_core/inference/tensor_parallel/grouped_layers.py):
    weight [E, in, out], int64 counts. Untested on hardware."""
    return _grouped_matmul_v4()(
        [x], [weight], None, None, None, None, None, None, counts, split_item=3, group_type=0, group_list_type=1
    )[0]


@gradient_of("Linear")
def _linear_gradient(x, weight, bias, out, dout):
    return kernel("LinearGrad")(dout, x, weight, bias)


@gradient_of("GroupedMatmul")
def _grouped_matmul_gradient(x, weight, counts, bias, out, dout):
    dx, dweight, dbias = kernel("GroupedMatmulGrad")(dout, x, weight, counts, bias)
    return dx, dweight, zeros_like(counts), dbias


@rule("linear")
def _check_linear(x: Operand, weight: Operand, bias: Operand | None) -> None:
    x.floating()
    x.rank(1)
    _float32(weight)
    weight.rank(2, 2)
    if x.shape is not None and weight.shape is not None:
        weight.shaped(f"x has {x.shape[-1]} channels", (weight.shape[0], x.shape[-1]))
    if bias is not None:
        _float32(bias)
        if weight.shape is not None:
            bias.shaped(f"weight makes {weight.shape[0]} outputs", weight.shape[:1])


@rule("grouped_matmul")
def _check_grouped(x: Operand, weight: Operand, counts: Operand, bias: Operand | None) -> None:
    x.floating()
    x.rank(2, 2)
    _float32(weight)
    weight.rank(3, 3)
    if x.shape is not None and weight.shape is not None:
        weight.shaped(f"x has {x.shape[-1]} channels", (*weight.shape[:2], x.shape[-1]))
    counts.int32()
    if weight.shape is not None:
        counts.shaped(f"weight has {weight.shape[0]} experts", weight.shape[:1])
    if bias is not None:
        _float32(bias)
        if weight.shape is not None:
            experts, outputs = weight.shape[:2]
            bias.shaped(f"weight makes {outputs} outputs for each of {experts} experts", (experts, outputs))


def _float32(parameter: Operand) -> None:
    if parameter.dtype != "float32":
        raise parameter.refuse(f"is {parameter.dtype}", "weights are float32 for every dtype of x; cast it")
