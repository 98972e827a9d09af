"""Dropout: the same mask on every backend and when repeated, the right share, and its gradient."""

import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.random_masks import dropout, dropout_seed
from tests.ascend_ops.common import (
    MODES,
    assert_refused,
    compiled,
    forward,
    forward_and_gradients,
    hash_reference,
    to_tensor,
)

pytestmark = pytest.mark.thinned


def third(x, seed):
    return dropout(x, seed, 0.3)


def seed_of_site_two(key):
    return dropout_seed(key, 2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_mask_is_the_hash_of_index_and_seed(backend, dtype):
    x, seed = np.ones((37, 29)), np.array([1234567], np.int32)
    kept = [hash_reference(i, seed[0]) >= int(float(np.float32(0.3)) * 2**31) for i in range(x.size)]
    y = forward(third, [to_tensor(x, dtype), Tensor(seed)])[0]
    np.testing.assert_array_equal(y != 0, np.reshape(kept, x.shape))
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-2 if dtype == "bfloat16" else 1e-3)


def test_share_and_gradient(backend):
    x, seed = np.random.RandomState(0).randn(300, 100) + 10, Tensor(np.array([99], np.int32))
    cotangent = np.random.RandomState(1).randn(*x.shape)
    (y,), (gradient,) = forward_and_gradients(third, [to_tensor(x), seed], [cotangent], [0])
    assert abs((y == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(gradient, cotangent * (y != 0) / 0.7, rtol=1e-5, atol=1e-6)


def test_seeds_differ_by_key():
    seed = compiled(seed_of_site_two)
    seeds = {int(seed([Tensor(np.int32(key))])[0]) for key in range(12)}
    assert len(seeds) == 12


def too_much(x, seed):
    return dropout(x, seed, 1.0)


def less_than_nothing(x, seed):
    return dropout(x, seed, -0.5)


def rounds_to_one(x, seed):
    return dropout(x, seed, 0.99999999)


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", [too_much, less_than_nothing, rounds_to_one])
def test_rates_outside_0_and_1_are_refused(backend, call, mode):
    tensors = [to_tensor(np.ones(3)), Tensor(np.array([1], np.int32))]
    assert_refused(call, tensors, r"dropout: dropout rate .*: it must be a number in \[0, 1\)", mode)


def test_masks_of_two_seeds_are_no_permutation_by_xor(backend):
    x, seeds, masked = to_tensor(np.ones(1 << 12)), (5, 5 ^ 0x3F0), compiled(third)
    first, second = (masked([x, Tensor(np.array([s], np.int32))])[0] for s in seeds)
    assert (first[np.arange(1 << 12) ^ 0x3F0] != second).any()
