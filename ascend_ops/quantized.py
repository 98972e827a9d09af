"""Products with int8 weights as files hold them (packing.QuantizedWeight), by MindSpore's own operator for Ascend.

On a CPU `packed_linear` is used instead, whose layout suits its kernels.
"""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr
from mindspore.ops.auto_generate import WeightQuantBatchMatmul

from ascend_ops.backend import forced, soc
from ascend_ops.custom import device

_SOCS = ("ascend910b", "ascend910_93")
_LARGEST = 65535
"""Of either dimension of a weight. Source: CANN's documentation of aclnnWeightQuantBatchMatmulV2, constraints."""


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (weight * scale)^T + bias, for inference. Written from documentation, untested on hardware.

    MindSpore's WeightQuantBatchMatmul reads int8, and rounds no activations: results differ from those of
    `packed_linear`, which does. It takes float16 and bfloat16, and is documented for ascend910b and ascend910_93, for
    dimensions of at most 65,535. In any other case the weight is widened in each call.

    Args:
        x: [..., in] float32, float16 or bfloat16.
        weight: [out, in] int8.
        scale: [out] float32, rounded to the dtype of x by the built-in.
        bias: [out] float32; None for none.

    Returns:
        [..., out] in the dtype of x.
    """
    rows = ops.reshape(x, (-1, x.shape[-1]))
    if _has_builtin(x.dtype, weight.shape):
        # The documentation asks for a float32 bias with bfloat16, and for a float16 one with float16.
        own_bias = bias if bias is None or x.dtype == ms.bfloat16 else ops.cast(bias, x.dtype)
        product = WeightQuantBatchMatmul(transpose_weight=True)
        y = product(rows, weight, ops.cast(scale, x.dtype), None, None, None, own_bias)
    else:
        y = ops.MatMul(transpose_b=True)(rows, ops.cast(weight, x.dtype)) * scale
        y = ops.cast(y if bias is None else y + bias, x.dtype)
    return ops.reshape(y, x.shape[:-1] + weight.shape[:1])


def quantized_embedding(ids: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Rows of an int8 weight [out, in], widened to float32: [..., in] for int32 ids of any shape."""
    rows = ops.cast(ops.gather(weight, ids, 0), ms.float32)
    return rows * ops.expand_dims(ops.gather(scale, ids, 0), -1)


@constexpr
def _has_builtin(dtype, shape):
    return has_builtin(dtype, shape)


def has_builtin(dtype: ms.Type, shape: tuple[int, int]) -> bool:
    """Whether MindSpore's operator is taken for x of a dtype and a weight of a shape."""
    if device() != "Ascend" or forced() == "composed" or soc() not in _SOCS:
        return False
    return dtype in (ms.float16, ms.bfloat16) and max(shape) <= _LARGEST
