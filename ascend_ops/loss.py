"""Cross-entropy of tokens over a vocabulary (source: specification A1.6), and their log-probabilities."""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from ascend_ops.backend import select
from ascend_ops.checks import Operand, describe, rule
from ascend_ops.custom import device, filled, gradient_of, kernel, zeros_like
from ascend_ops.layout import laid_out, placed


def softmax_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """logsumexp(logits[t]) - logits[t, labels[t]] for each token that counts, 0 for the others. The caller applies
    weights to the result.

    Args:
        logits: [..., V] float32, float16 or bfloat16; arithmetic is float32. It is the only input with a gradient,
            which is exactly 0 in rows that do not count.
        labels: [...] int32 in [0, V); any value for a token that does not count.
        mask: [...] float32; 0 leaves a token out, anything else counts it.

    Returns:
        [...] float32.

    Raises:
        RuntimeError, ValueError: on a CPU, a token that counts has a label outside [0, V) (cpu: RuntimeError; composed:
            ValueError). An accelerator cannot raise errors that depend on values.
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


def token_logprobs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of a token over each row of logits, and the likeliest token of the row; for inference.

    Args:
        logits: [..., V] float32, float16 or bfloat16; arithmetic is float32.
        targets: [...] int32 below V; a negative one leaves its row out.

    Returns:
        logits[t, targets[t]] - logsumexp(logits[t]), [...] float32, NaN if the row holds NaN; and the first index of
        the largest logit, [...] int32. They are 0 and -1 in rows that are left out.

    Raises:
        RuntimeError: (cpu) a target is V or more.
    """
    chosen = select("token_logprobs", describe(logits), describe(targets))
    if chosen == "composed":
        rows = ops.reshape(ops.cast(logits, ms.float32), (-1, logits.shape[-1]))
        logprob, best = _composed_logprobs(rows, ops.reshape(targets, (-1,)))
        return ops.reshape(logprob, targets.shape), ops.reshape(best, targets.shape)
    return kernel("TokenLogprobs")(logits, targets)


def _composed_logprobs(logits, targets):
    counts = targets >= 0
    top = ops.ReduceMax(keep_dims=True)(logits, -1)
    total = ops.log(ops.exp(logits - top).sum(-1, keepdims=True)) + top
    own = ops.gather_elements(logits, 1, ops.reshape(ops.maximum(targets, 0), (-1, 1)))
    logprob = ops.reshape(own - total, targets.shape)
    logprob = ops.select(ops.isnan(logits).any(-1), ops.ones_like(logprob) * float("nan"), logprob)
    best = ops.cast(ops.Argmax(-1)(logits), ms.int32)
    return ops.select(counts, logprob, ops.zeros_like(logprob)), ops.select(counts, best, -ops.ones_like(best))


def _composed(logits, labels, mask):
    if laid_out():
        return _over_sharded_vocabulary(logits, labels, ops.cast(mask != 0, ms.float32))
    counts = mask != 0
    # NLLLoss refuses labels that are out of range, except its ignore_index -100. Therefore negative labels are replaced
    # by another invalid one.
    labels = ops.select(counts, ops.maximum(labels, -1), ops.zeros_like(labels))
    ones = ops.ones(logits.shape[-1:], ms.float32)
    loss = ops.NLLLoss(reduction="none")(ops.LogSoftmax(-1)(logits), labels, ones)[0]
    if _loses_nan():
        loss = ops.select(ops.isnan(logits).any(-1), ops.ones_like(loss) * float("nan"), loss)
    return ops.select(counts, loss, ops.zeros_like(loss))


def _over_sharded_vocabulary(logits, labels, counts):
    """The loss from operators that MindSpore can shard along the vocabulary: each device has its own classes, and sums
    over classes are all-reduced."""
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
    """Whether MindSpore's LogSoftmax loses NaN, as on a CPU: it turns NaN into infinity in 2.9, and into finite numbers
    in 2.7."""
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


@rule("token_logprobs")
def _check_logprobs(logits: Operand, targets: Operand) -> None:
    logits.floating()
    logits.rank(2)
    targets.int32()
    if logits.shape is not None:
        targets.shaped(f"the shape of logits {logits.shape} without the vocabulary", logits.shape[:-1])
