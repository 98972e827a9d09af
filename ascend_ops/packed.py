"""Products of inference with weights that were packed once at load (packing.py), and rows of the same weights.

Their bits for a row of x depend on that row alone: not on how many rows there are, nor on its position among them, so
that a batch cannot change what a sequence continues with. They have no gradient.
"""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.common import np_dtype
from mindspore.ops import constexpr

from ascend_ops.activations import activation_code, plain_activation
from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import attribute, filled, kernel
from ascend_ops.errors import OperatorError
from ascend_ops.packing import GROUP, INPUTS, OUTPUTS, PackedWeight, packed_shape
from ascend_ops.table import PACKED


def packed_tensors(packed: PackedWeight) -> tuple[Tensor, Tensor]:
    """Make the tensors `weight` and `scale` of the operators."""
    data = packed.data.view(np_dtype.bfloat16) if packed.dtype == "bfloat16" else packed.data
    return Tensor(data), Tensor(packed.scale)


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
    chosen = select("packed_linear", describe(x), describe(weight), describe(scale), describe(bias))
    code = activation_code("packed_linear", activation) if activation else -1
    if chosen == "composed":
        y = _composed(x, weight, scale, bias, activation)
    else:
        y = kernel("PackedLinear")(x, weight, scale, filled(0.0, 1) if bias is None else bias, attribute(code))
    return _inference_only("packed_linear")(y)


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


def _composed(x, weight, scale, bias, activation):
    """The product with the unpacked weight: for MindIR packages and other devices, which unpack it at every call."""
    outputs, inputs = scale.shape[0], x.shape[-1]
    wide = ops.reshape(ops.transpose(_values(weight), (0, 2, 1, 3)), (weight.shape[0] * OUTPUTS, -1))
    rows = ops.reshape(ops.cast(x, ms.float32), (-1, inputs))
    rows = _rounded(rows) if weight.dtype == ms.uint8 else rows
    y = ops.MatMul(transpose_b=True)(rows, wide[:outputs, :inputs]) * scale
    y = y if bias is None else y + bias
    y = plain_activation(activation, y) if activation else y
    return ops.cast(ops.reshape(y, x.shape[:-1] + (outputs,)), x.dtype)


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


def _refuse_packed_rows(dout):
    return _refuse_gradient("packed_rows")


_refusals = {"packed_linear": _refuse_packed_linear, "packed_rows": _refuse_packed_rows}


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
    if bias is not None:
        _float32(bias)
        if scale.shape is not None:
            bias.shaped(f"scale has {scale.shape[0]} outputs", scale.shape)


@rule("packed_rows")
def _check_packed_rows(ids: Operand, weight: Operand, scale: Operand) -> None:
    ids.int32()
    ids.rank(1)
    _check_weight(weight, scale, None)


def _check_weight(weight: Operand, scale: Operand, inputs: int | None) -> None:
    if weight.dtype not in PACKED:
        raise weight.refuse(f"is {weight.dtype}", f"it must be one of {', '.join(PACKED)}; make it by ascend_ops.pack")
    _float32(scale)
    scale.rank(1, 1)
    weight.rank(4, 4)
    if weight.shape is None or scale.shape is None:
        return
    dtype = "int8" if weight.dtype == "uint8" else weight.dtype
    if inputs is None:
        inputs = weight.shape[1] * INPUTS[dtype]
    why = f"packed from {dtype} [{scale.shape[0]}, {inputs}]"
    weight.shaped(why, packed_shape(scale.shape[0], inputs, dtype))


def _float32(parameter: Operand) -> None:
    if parameter.dtype != "float32":
        raise parameter.refuse(f"is {parameter.dtype}", "it must be float32 for every dtype of x; cast it")
