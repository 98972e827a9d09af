"""Products of inference with weights that were packed once at load (packing.py), and rows of the same weights.

Their bits for a row of x depend on that row alone: not on how many rows there are, nor on its position among them, so
that a batch cannot change what a sequence continues with. They have no gradient.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.common import np_dtype
from mindspore.ops import constexpr

from ascend_ops.activations import activation_code, plain_activation, swiglu
from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, filled, kernel
from ascend_ops.errors import OperatorError
from ascend_ops.packing import GROUP, INPUTS, OUTPUTS, PackedWeight, packed_shape
from ascend_ops.table import PACKED


def packed_tensors(*packed: PackedWeight) -> tuple[Tensor, Tensor]:
    """Make the tensors `weight` and `scale` of the operators. Several weights of the same inputs become one, for
    `packed_linears` and `packed_glu`."""
    data, scale = packed[0].data, packed[0].scale
    if len(packed) > 1:
        data, scale = np.concatenate([one.data for one in packed]), np.concatenate([one.scale for one in packed])
    return Tensor(data.view(np_dtype.bfloat16) if packed[0].dtype == "bfloat16" else data), Tensor(scale)


def packed_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, activation: str = "") -> Tensor:
    """activation(x W^T + bias) with a packed weight, summed in float32.

    With a weight of int8 x is rounded to int8, too: each group of 128 inputs of a row to multiples of its largest
    magnitude over 127. The products of a group are summed as integers, which are the same on every processor.

    Args:
        x: [..., in] float32, float16 or bfloat16.
        weight, scale: of `packed_tensors`; float32 [out] the latter.
        bias: [out] float32; None for none.
        activation: gelu, gelu_erf, fast_gelu or silu; empty for none.

    Returns:
        [..., out] in the dtype of x. A row of x that holds NaN gives NaN in its row alone.

    Raises:
        RuntimeError: (cpu) the weight was packed from another number of inputs.
    """
    chosen = select("packed_linear", *(describe(t) for t in (x, weight, scale, bias)))
    code = activation_code("packed_linear", activation) if activation else -1
    if chosen == "composed":
        y = _product(_rows(x, weight), _matrix(weight, x.shape[-1])[: scale.shape[0]], scale, bias)
        y = _shaped(plain_activation(activation, y) if activation else y, x)
    else:
        y = kernel("PackedLinear")(x, weight, scale, _or_zero(bias), attribute(code))
    return _inference_only("packed_linear")(y)


def packed_linears(
    x: Tensor, weight: Tensor, scale: Tensor, sizes: tuple[int, ...], bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The products of x with two or three weights, in one operator; see `packed_linear`.

    Args:
        x: [..., in] float32, float16 or bfloat16.
        weight, scale: of `packed_tensors` with these weights.
        sizes: the outputs of each weight.
        bias: [sum of sizes] float32; None for none.

    Returns:
        [..., size] for each of `sizes`.
    """
    chosen = select("packed_linears", *(describe(t) for t in (x, weight, scale, bias)))
    _check_sizes(sizes, weight.shape, scale.shape)
    if chosen == "composed":
        products = _composed_products(x, weight, scale, sizes, bias)
    else:
        products = kernel(f"PackedLinear{len(sizes)}")(x, weight, scale, _or_zero(bias), *_of_sizes(sizes))
    return _all_inference_only(products)


def packed_glu(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    series_scale: Tensor | None = None,
    series_shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """phi(x G^T) * (x U^T) in one operator, where phi is the activation or its series: `swiglu` of two products.

    Args:
        x: [..., in] float32, float16 or bfloat16.
        weight: of `packed_tensors` with G and U, both [out, in].
        scale: that of `packed_tensors` as [2, out].
        series_scale, series_shift: float32 [n, out] or [n, 1], both or neither; see `series_activation`.
        activation: gelu, gelu_erf, fast_gelu or silu.

    Returns:
        [..., out] in the dtype of x.
    """
    chosen = select("packed_glu", *(describe(t) for t in (x, weight, scale, series_scale, series_shift)))
    code = activation_code("packed_glu", activation)
    if chosen == "composed":
        outputs = scale.shape[1]
        gate, up = _composed_products(x, weight, ops.reshape(scale, (-1,)), (outputs, outputs), None, ms.float32)
        # The product is rounded to the dtype of x once, as in the kernel.
        y = ops.cast(swiglu(gate, up, None, None, series_scale, series_shift, activation), x.dtype)
    else:
        series_scale = filled(1.0, 1, 1) if series_scale is None else series_scale
        series_shift = filled(0.0, 1, 1) if series_shift is None else series_shift
        y = kernel("PackedGlu")(x, weight, scale, series_scale, series_shift, attribute(code))
    return _inference_only("packed_glu")(y)


def packed_rows(ids: Tensor, weight: Tensor, scale: Tensor, inputs: int) -> Tensor:
    """Rows of a packed weight: the embedding of tokens by the table that also makes the logits.

    Args:
        ids: int32 numbers of rows, 0 to out - 1, of any shape.
        weight, scale: of `packed_tensors`.
        inputs: the second dimension of the weight, which the packed one may exceed.

    Returns:
        [..., inputs] float32.

    Raises:
        RuntimeError: (cpu) an id is no row of the weight.
    """
    chosen = select("packed_rows", describe(ids), describe(weight), describe(scale))
    rows = (
        _composed_rows(ids, weight, scale, inputs)
        if chosen == "composed"
        else kernel("PackedRows")(ids, weight, scale, filled(0.0, inputs))
    )
    return _inference_only("packed_rows")(rows)


# Composed: the product with the unpacked weight, for MindIR packages and other devices, which unpack it at every call.


def _of_sizes(sizes):
    """Tensors that tell the kernel the sizes of its outputs."""
    tensors = ()
    for size in sizes:
        tensors += (filled(0.0, size),)
    return tensors


def _all_inference_only(products):
    own = ()
    for one in products:
        own += (_inference_only("packed_linears")(one),)
    return own


def _or_zero(bias):
    return filled(0.0, 1) if bias is None else bias


def _rows(x, weight):
    """The rows of x in float32 as a product with this weight takes them."""
    rows = ops.reshape(ops.cast(x, ms.float32), (-1, x.shape[-1]))
    return _rounded(rows) if weight.dtype == ms.uint8 else rows


def _matrix(weight, inputs):
    """The numbers of a packed weight as a matrix [16 * blocks, inputs], before their scale."""
    wide = ops.reshape(ops.transpose(_values(weight), (0, 2, 1, 3)), (weight.shape[0] * OUTPUTS, -1))
    return wide[:, :inputs]


def _product(rows, matrix, scale, bias):
    y = ops.MatMul(transpose_b=True)(rows, matrix) * scale
    return y if bias is None else y + bias


def _shaped(y, x):
    """Rows y in float32 as the result of an operator, in the shape and dtype of x."""
    y = ops.reshape(y, x.shape[:-1] + (y.shape[-1],))
    return ops.cast(y, x.dtype)


def _composed_products(x, weight, scale, sizes, bias, dtype=None):
    rows, matrix, products, first, row = _rows(x, weight), _matrix(weight, x.shape[-1]), (), 0, 0
    x = x if dtype is None else ops.cast(x, dtype)
    for size in sizes:
        own_bias = None if bias is None else bias[first : first + size]
        y = _product(rows, matrix[row : row + size], scale[first : first + size], own_bias)
        products += (_shaped(y, x),)
        first, row = first + size, row + -(-size // OUTPUTS) * OUTPUTS
    return products


def _rounded(x):
    """x [rows, inputs] rounded as for int8: each GROUP of a row to multiples of its largest magnitude over 127."""
    rows, inputs = x.shape
    missing = -inputs % GROUP
    whole = x if missing == 0 else ops.concat((x, ops.zeros((rows, missing), ms.float32)), 1)
    groups = ops.reshape(whole, (rows, -1, GROUP))
    largest = ops.ReduceMax(keep_dims=True)(ops.abs(groups), -1)
    # The kernels take a group below 1e-35 for 0: 127 over the largest would be infinite.
    inverse = ops.where(largest < 1e-35, 0.0, 127.0 / ops.maximum(largest, 1e-35))
    rounded = ops.Rint()(groups * inverse) * (largest / 127.0)
    return ops.reshape(rounded, (rows, -1))[:, :inputs]


def _composed_rows(ids, weight, scale, inputs):
    row = ops.reshape(ids, (-1,))
    # MindSpore's CPU backend gathers no bfloat16.
    table = _values(weight) if weight.dtype == ms.bfloat16 else weight
    blocks = _values(ops.gather(table, row // OUTPUTS, 0))  # [rows, lines, 16, inputs of a line]
    is_own = ops.reshape(row % OUTPUTS, (-1, 1, 1, 1)) == ops.reshape(ops.arange(OUTPUTS), (-1, 1))
    own = ops.reshape(ops.where(is_own, blocks, 0.0).sum(2), (row.shape[0], -1))[:, :inputs]
    return ops.reshape(own * ops.expand_dims(ops.gather(scale, row, 0), 1), ids.shape + (inputs,))


def _values(weight):
    """The numbers of a packed weight in float32, before its scale."""
    wide = ops.cast(weight, ms.float32)
    return wide - 128.0 if weight.dtype == ms.uint8 else wide


@constexpr
def _inference_only(operator):
    """The identity, which refuses to be differentiated."""
    return ops.InsertGradientOf(_refusals[operator])


def _refuse_packed_linear(dout):
    return _refuse_gradient("packed_linear")


def _refuse_packed_linears(dout):
    return _refuse_gradient("packed_linears")


def _refuse_packed_glu(dout):
    return _refuse_gradient("packed_glu")


def _refuse_packed_rows(dout):
    return _refuse_gradient("packed_rows")


_refusals = {
    "packed_linear": _refuse_packed_linear,
    "packed_linears": _refuse_packed_linears,
    "packed_glu": _refuse_packed_glu,
    "packed_rows": _refuse_packed_rows,
}


@constexpr
def _refuse_gradient(operator):
    raise OperatorError(
        f"ascend_ops.{operator}: its gradient is asked for; packed weights are for inference; train with linear"
    )


@rule("packed_linear")
def _check_packed_linear(x: Operand, weight: Operand, scale: Operand, bias: Operand | None) -> None:
    x.floating()
    x.rank(1)
    _check_weight(weight, scale, x.shape[-1] if x.shape is not None else None)
    _check_bias(bias, scale)


@rule("packed_linears")
def _check_packed_linears(x: Operand, weight: Operand, scale: Operand, bias: Operand | None) -> None:
    x.floating()
    x.rank(1)
    _check_dtypes(weight, scale)
    scale.rank(1, 1)
    _check_bias(bias, scale)


@rule("packed_glu")
def _check_packed_glu(
    x: Operand, weight: Operand, scale: Operand, series_scale: Operand | None, series_shift: Operand | None
) -> None:
    x.floating()
    x.rank(1)
    _check_dtypes(weight, scale)
    scale.rank(2, 2)
    if scale.shape is not None and x.shape is not None and weight.shape is not None:
        blocks, *line = packed_shape(scale.shape[1], x.shape[-1], _packed_dtype(weight))
        weight.shaped(
            f"packed from two of {_packed_dtype(weight)} [{scale.shape[1]}, {x.shape[-1]}]", (2 * blocks, *line)
        )
    for series in (series_scale, series_shift):
        if series is not None:
            _float32(series)
            series.rank(2, 2)


def _check_bias(bias: Operand | None, scale: Operand) -> None:
    if bias is not None:
        _float32(bias)
        if scale.shape is not None:
            bias.shaped(f"scale has {scale.shape[0]} outputs", scale.shape)


@constexpr
def _check_sizes(sizes, weight, scale):
    blocks = sum(-(-size // OUTPUTS) for size in sizes)
    if len(sizes) not in (2, 3) or sum(sizes) != scale[0] or blocks != weight[0]:
        found = f"sizes={sizes} with {scale[0]} scales and {weight[0]} blocks of {OUTPUTS} outputs"
        raise OperatorError(
            f"ascend_ops.packed_linears: {found}; they must be the outputs of two or three weights packed together"
        )


@rule("packed_rows")
def _check_packed_rows(ids: Operand, weight: Operand, scale: Operand) -> None:
    ids.int32()
    ids.rank(1)
    _check_weight(weight, scale, None)


def _check_dtypes(weight: Operand, scale: Operand) -> None:
    if weight.dtype not in PACKED:
        raise weight.refuse(f"is {weight.dtype}", f"it must be one of {', '.join(PACKED)}; make it by ascend_ops.pack")
    _float32(scale)
    weight.rank(4, 4)


def _packed_dtype(weight: Operand) -> str:
    return "int8" if weight.dtype == "uint8" else weight.dtype


def _check_weight(weight: Operand, scale: Operand, inputs: int | None) -> None:
    _check_dtypes(weight, scale)
    scale.rank(1, 1)
    if weight.shape is None or scale.shape is None:
        return
    dtype = _packed_dtype(weight)
    if inputs is None:
        inputs = weight.shape[1] * INPUTS[dtype]
    why = f"packed from {dtype} [{scale.shape[0]}, {inputs}]"
    weight.shaped(why, packed_shape(scale.shape[0], inputs, dtype))


def _float32(parameter: Operand) -> None:
    if parameter.dtype != "float32":
        raise parameter.refuse(f"is {parameter.dtype}", "it must be float32 for every dtype of x; cast it")
