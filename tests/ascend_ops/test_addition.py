"""Sums and forks."""

import numpy as np
import pytest
from mindspore import Tensor

import ascend_ops
from tests.ascend_ops.common import assert_close, forward, forward_and_gradients, gradients, rounded, to_tensor

pytestmark = pytest.mark.thinned

three = ascend_ops.fork(3)


def forked(x):
    a, b, c = three(x)
    return a, b, c


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1,), (17,), (3, 5, 1021)])
def test_sum_and_gradients(backend, dtype, shape):
    random = np.random.RandomState(0)
    x, y, cotangent = (np.asarray(random.randn(*shape)) for _ in range(3))
    tensors = [to_tensor(x, dtype), to_tensor(y, dtype)]
    (total,), both = forward_and_gradients(ascend_ops.add, tensors, [cotangent], (0, 1))
    assert_close(total, rounded(x, dtype) + rounded(y, dtype), dtype)
    for found in both:
        assert_close(found, cotangent, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_fork_are_added(backend, dtype):
    random = np.random.RandomState(0)
    x, cotangents = random.randn(4, 33), [random.randn(4, 33) for _ in range(3)]
    found = gradients(forked, [to_tensor(x, dtype)], cotangents, (0,))[0]
    assert_close(found, sum(cotangents), dtype, factor=3)


def test_shapes_must_agree(backend):
    with pytest.raises(ascend_ops.OperatorError, match=r"add: y has shape \(3,\); it must be \(2, 3\): the shape of x"):
        forward(ascend_ops.add, [Tensor(np.ones((2, 3), np.float32)), Tensor(np.ones(3, np.float32))])
