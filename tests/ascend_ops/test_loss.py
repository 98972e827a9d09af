"""Cross-entropy and log-probabilities against float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.loss import softmax_cross_entropy, token_logprobs
from tests.ascend_ops.common import (
    MODES,
    assert_close,
    assert_refused,
    compiled,
    forward_and_gradients,
    numeric_gradients,
    rounded,
    to_tensor,
)

pytestmark = pytest.mark.thinned


def reference(logits, labels, mask):
    top = logits.max(-1, keepdims=True)
    logsumexp = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    counts = mask != 0
    return np.where(counts, logsumexp - logits[np.arange(len(labels)), np.where(counts, labels, 0)], 0.0)


def gradient_reference(logits, labels, mask, cotangent):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p[np.arange(len(labels)), np.where(mask != 0, labels, 0)] -= 1
    return p * ((mask != 0) * cotangent)[:, None]


def make(tokens, vocab, seed=0, scale=3.0):
    random = np.random.RandomState(seed)
    labels, mask = random.randint(0, vocab, tokens).astype(np.int32), random.randint(0, 3, tokens).astype(np.float32)
    mask[0] = 1.0
    return random.randn(tokens, vocab) * scale, labels, mask


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_loss_and_gradient(backend, dtype):
    logits, labels, mask = make(5, 23)
    mask[1:4] = 0.0, -0.5, 0.25
    labels[1] = -7  # out of range, but masked
    exact, cotangent = rounded(logits, dtype), np.random.RandomState(1).randn(5)
    tensors = [to_tensor(logits, dtype), Tensor(labels), Tensor(mask)]
    (loss,), (found,) = forward_and_gradients(softmax_cross_entropy, tensors, [cotangent], [0])
    assert_close(loss, reference(exact, labels, mask))  # the loss is float32 whatever the logits are
    assert_close(found, numeric_gradients(reference, [exact, labels, mask], [cotangent], [0])[0], dtype)
    assert (found[1] == 0).all()


@pytest.mark.parametrize(("tokens", "vocab"), [(1, 1), (1, 40003), (3, 2048), (3, 2049), (517, 65), (40, 5000)])
def test_any_size_and_threads(backend, tokens, vocab):
    logits, labels, mask = make(tokens, vocab, seed=tokens)
    labels[-1] = vocab - 1
    tensors = [to_tensor(logits), Tensor(labels), Tensor(mask)]
    exact, cotangent = rounded(logits, "float32"), np.random.RandomState(1).randn(tokens)
    (loss,), (found,) = forward_and_gradients(softmax_cross_entropy, tensors, [cotangent], [0])
    assert_close(loss, reference(exact, labels, mask))
    assert_close(found, gradient_reference(exact, labels, mask, cotangent.astype(np.float32)))


def test_huge_and_infinite_logits(backend):
    """Logits far from 0, growing along the row (each block has a new maximum), or -inf as a sampling mask leaves
    them."""
    logits = np.random.RandomState(0).randn(4, 5000)
    logits[0] += 1e4
    logits[1] = np.linspace(-9e3, 9e3, 5000)
    logits[2, :3000] = -np.inf
    logits[3] -= 1e4
    labels, mask = np.array([7, 4990, 4000, 0], np.int32), np.ones(4, np.float32)
    tensors = [Tensor(logits.astype(np.float32)), Tensor(labels), Tensor(mask)]
    exact = logits.astype(np.float32).astype(np.float64)
    (loss,), (found,) = forward_and_gradients(softmax_cross_entropy, tensors, [np.ones(4)], [0])
    # logsumexp near 1e4 is known to half a unit in its last place, 5e-4
    np.testing.assert_allclose(loss, reference(exact, labels, mask), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found, gradient_reference(exact, labels, mask, np.ones(4)), atol=1e-3)
    assert (found[2, :3000] == 0).all()


def test_nan_stays_where_it_counts_and_vanishes_where_it_does_not(backend):
    logits, labels, _ = make(3, 50)
    logits[:2, 33] = np.nan
    mask = np.array([1, 0, 1], np.float32)
    tensors = [to_tensor(logits), Tensor(labels), Tensor(mask)]
    (loss,), (found,) = forward_and_gradients(softmax_cross_entropy, tensors, [np.ones(3)], [0])
    assert loss[1] == 0 and np.isfinite(loss[2]) and np.isfinite(found[2]).all()
    assert np.isnan(loss[0])
    if backend == "cpu":  # gradients of such rows are what MindSpore makes of them otherwise
        assert np.isnan(found[0]).all() and (found[1] == 0).all()


@pytest.mark.parametrize("label", [23, -100])  # MindSpore takes 3 s to report an error
def test_a_label_out_of_range_is_an_error_where_it_counts(backend, label):
    logits, labels, mask = make(5, 23)
    labels[2] = label
    mask[2] = 0.0
    tensors = [to_tensor(logits), Tensor(labels), Tensor(mask)]
    losses = compiled(softmax_cross_entropy)
    assert np.isfinite(losses(tensors)[0]).all()
    mask[2] = 2.0
    with pytest.raises((RuntimeError, ValueError)):
        losses([tensors[0], tensors[1], Tensor(mask)])


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        ([(2, 3), (3,), (2,)], {}, r"labels has shape \(3,\); it must be \(2,\): the shape of logits"),
        ([(2, 3), (2,), (2, 1)], {}, r"mask has shape \(2, 1\); it must be \(2,\): the shape of logits"),
        ([(2, 2, 3), (2,), (2,)], {}, r"labels has shape \(2,\); it must be \(2, 2\): the shape of logits"),
        ([(2, 3), (2,), (2,)], {1: "int64"}, "labels is int64; it must be int32; cast it"),
        ([(2, 3), (2,), (2,)], {2: "float16"}, "mask is float16; it must be float32; cast it"),
        ([(2, 3), (2,), (2,)], {0: "int32"}, "logits is int32; it must be one of float32"),
        ([(0, 3), (0,), (0,)], {}, "logits has shape .*no dimension may be 0"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, shapes, dtypes, message, mode):
    usual = ("float32", "int32", "float32")
    tensors = [Tensor(np.ones(shape), getattr(ms, dtypes.get(i, usual[i]))) for i, shape in enumerate(shapes)]
    assert_refused(softmax_cross_entropy, tensors, "softmax_cross_entropy: " + message, mode)


def logprobs(tensors):
    """(log-probabilities, likeliest tokens) as arrays."""
    return compiled(token_logprobs)(tensors)


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("tokens", "vocab"), [(1, 1), (5, 23), (3, 2049), (40, 5000)])
def test_logprobs(backend, tokens, vocab, dtype):
    """Among equal logits the first one is the likeliest, as in numpy; rows with a negative target are left out."""
    logits, targets, _ = make(tokens, vocab, seed=tokens)
    logits[-1, vocab // 2 :] = logits[-1].max() + 1
    exact = rounded(logits, dtype)
    targets[1:2] = -3
    found, best = logprobs([to_tensor(logits, dtype), Tensor(targets)])
    counts = targets >= 0
    assert_close(found, -reference(exact, targets, counts))
    assert (best == np.where(counts, exact.argmax(-1), -1)).all() and (found[~counts] == 0).all()


def test_logprobs_of_huge_infinite_and_missing_numbers(backend):
    logits = np.random.RandomState(0).randn(5, 5000).astype(np.float32)
    logits[0] += 1e4
    logits[1] = np.linspace(-9e3, 9e3, 5000)
    logits[2, :3000] = -np.inf
    logits[3:, 33] = np.nan
    targets = np.array([7, 4990, 4000, 7, -1], np.int32)
    found, best = logprobs([Tensor(logits), Tensor(targets)])
    exact = -reference(logits[:3].astype(np.float64), targets[:3], np.ones(3))
    np.testing.assert_allclose(found[:3], exact, rtol=1e-5, atol=1e-3)
    assert (best[:3] == logits[:3].argmax(-1)).all()
    assert np.isnan(found[3]) and found[4] == 0


def test_a_row_s_logprob_has_the_same_bits_among_any_others(backend):
    if backend == "composed":
        pytest.skip("the kernel's promise")
    logits, targets, _ = make(9, 3001)
    whole, _ = logprobs([to_tensor(logits), Tensor(targets)])
    alone, _ = logprobs([to_tensor(logits[4:5]), Tensor(targets[4:5])])
    assert whole[4] == alone[0]


def test_a_target_out_of_range_is_refused(backend):
    if backend == "composed":
        pytest.skip("as gather_elements does")
    logits, targets, _ = make(5, 23)
    targets[2] = 23
    with pytest.raises(RuntimeError):
        logprobs([to_tensor(logits), Tensor(targets)])


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
def test_wrong_inputs_of_logprobs_are_refused(backend, mode):
    tensors = [Tensor(np.ones((2, 3), np.float32)), Tensor(np.ones(3, np.int32))]
    message = r"token_logprobs: targets has shape \(3,\); it must be \(2,\): the shape of logits"
    assert_refused(token_logprobs, tensors, message, mode)
