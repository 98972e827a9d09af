"""Cross-entropy of tokens over a vocabulary. Source: specification A1.6."""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import device, filled, gradient_of, kernel, zeros_like
from ascend_ops.layout import laid_out, placed


def softmax_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """logsumexp(logits[t]) - logits[t, labels[t]] of each token that counts, 0 of the others. Weights are the caller's,
    outside.

    Args:
        logits: [..., V] float32, float16 or bfloat16; arithmetic is float32. The only input with a gradient: exactly 0
            in rows that do not count.
        labels: [...] int32 in [0, V); may be anything where the token does not count.
        mask: [...] float32; 0 leaves a token out, anything else counts it.

    Returns:
        [...] float32.

    Raises:
        RuntimeError, ValueError: on a CPU, a token that counts has a label outside [0, V) (cpu: RuntimeError; composed:
            ValueError). An accelerator cannot stop for values.
    """
    chosen = select("softmax_cross_entropy", describe(logits), describe(labels), describe(mask))
    if chosen == "composed":
        loss = _composed(
            ops.reshape(ops.cast(logits, ms.float32), (-1, logits.shape[-1])),
            ops.reshape(labels, (-1,)),
            ops.reshape(mask, (-1,)),
        )
        return ops.reshape(loss, labels.shape)
    return kernel("SoftmaxCrossEntropy")(logits, labels, mask)[0]


def _composed(logits, labels, mask):
    if laid_out():
        return _over_cut_vocabulary(logits, labels, ops.cast(mask != 0, ms.float32))
    counts = mask != 0
    # NLLLoss refuses labels that are out of range, except -100, its ignore_index: a negative one must be another.
    labels = ops.select(counts, ops.maximum(labels, -1), ops.zeros_like(labels))
    ones = ops.ones(logits.shape[-1:], ms.float32)
    loss = ops.NLLLoss(reduction="none")(ops.LogSoftmax(-1)(logits), labels, ones)[0]
    if _loses_nan():
        loss = ops.select(ops.isnan(logits).any(-1), ops.ones_like(loss) * float("nan"), loss)
    return ops.select(counts, loss, ops.zeros_like(loss))


def _over_cut_vocabulary(logits, labels, counts):
    """Of operators that MindSpore can cut along the vocabulary: each device sees its own classes, and sums over them
    are all-reduced."""
    of_token, by_class = ("batch", None), ("batch", "vocab")
    shifted = placed("Sub", (by_class, of_token))(
        logits, ops.stop_gradient(placed("ReduceMax", (by_class,), "keep_dims")(logits, -1))
    )
    exponentials = placed("Exp", (by_class,))(shifted)
    own = placed("OneHot", (by_class, (), ()))(
        ops.cast(ops.cast(labels, ms.float32) * counts, ms.int32), logits.shape[-1], filled(1.0), filled(0.0)
    )
    of_label = placed("ReduceSum", (by_class,))(placed("Mul", (by_class, by_class))(own, shifted), -1)
    return (ops.log(placed("ReduceSum", (by_class,))(exponentials, -1)) - of_label) * counts


@constexpr
def _loses_nan():
    """On a CPU MindSpore's LogSoftmax makes numbers of NaN: infinity in 2.9, finite ones in 2.7."""
    return device() == "CPU"


@gradient_of("SoftmaxCrossEntropy")
def _gradient(logits, labels, mask, out, dout):
    dlogits = kernel("SoftmaxCrossEntropyGrad")(dout[0], logits, labels, mask, out[1])
    return dlogits, zeros_like(labels), zeros_like(mask)


@rule("softmax_cross_entropy")
def _check(logits: Operand, labels: Operand, mask: Operand) -> None:
    logits.floating()
    logits.rank(2)
    labels.int32()
    if mask.dtype != "float32":
        raise mask.refuse(f"is {mask.dtype}", "it must be float32; cast it")
    for operand in (labels, mask):
        if logits.shape is not None:
            operand.shaped(f"the shape of logits {logits.shape} without the vocabulary", logits.shape[:-1])
