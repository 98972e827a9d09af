"""Activations against formulas in float64 and their numeric gradients."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ascend_ops
from tests.ascend_ops.common import (
    MODES,
    assert_close,
    assert_refused,
    forward,
    forward_and_gradients,
    numeric_gradients,
    rounded,
    to_tensor,
)

pytestmark = pytest.mark.thinned

erf = np.vectorize(math.erf)
FORMULAS = {
    "gelu": lambda u: 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))),
    "gelu_erf": lambda u: 0.5 * u * (1 + erf(u / math.sqrt(2))),
    "fast_gelu": lambda u: u / (1 + np.exp(-1.702 * u)),
    "silu": lambda u: u / (1 + np.exp(-u)),
}


def draw(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape) * 2


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", FORMULAS)
def test_activation_and_gradients(backend, name, dtype):
    x, bias, cotangent = draw(3, 37), draw(37, seed=1), draw(3, 37, seed=2)
    tensors = [to_tensor(x, dtype), to_tensor(bias)]

    def reference(x, bias):
        return FORMULAS[name](x + bias)

    exact = [rounded(x, dtype), rounded(bias, "float32")]
    call = getattr(ascend_ops, name)
    (y,), both = forward_and_gradients(call, tensors, [cotangent], (0, 1))
    assert_close(y, reference(*exact), dtype)
    wanted = numeric_gradients(reference, exact, [cotangent], (0, 1))
    for found, expected in zip(both, wanted, strict=True):
        assert_close(found, expected, dtype, factor=4)  # a column's sum rounds each of its terms


def series_of_silu(x, scale, shift, bias):
    return ascend_ops.series_activation(x, scale, shift, bias, "silu")


@pytest.mark.parametrize(("terms", "channels"), [(1, 1), (2, 21), (5, 1), (3, 21)])
def test_series_with_channel_and_scalar_parameters(backend, terms, channels):
    arrays = [
        draw(2, 4, 21),
        draw(terms, channels, seed=1),
        draw(terms, channels, seed=2),
        draw(1 if terms == 2 else 21, seed=3),
    ]
    cotangent = draw(2, 4, 21, seed=4)

    def reference(x, scale, shift, bias):
        return sum(FORMULAS["silu"](scale[i] * (x + bias) + shift[i]) for i in range(terms))

    exact = [rounded(a, "float32") for a in arrays]
    tensors = [to_tensor(a) for a in arrays]
    (y,), all_four = forward_and_gradients(series_of_silu, tensors, [cotangent], range(4))
    assert_close(y, reference(*exact))
    wanted = numeric_gradients(reference, exact, [cotangent], range(4))
    for found, expected in zip(all_four, wanted, strict=True):
        assert_close(found, expected)


def biased_series_glu(gate, up, gate_bias, up_bias, scale, shift):
    return ascend_ops.swiglu(gate, up, gate_bias, up_bias, scale, shift)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swiglu_with_series_and_biases(backend, dtype):
    arrays = [
        draw(3, 18),
        draw(3, 18, seed=1),
        draw(18, seed=2),
        draw(18, seed=3),
        draw(2, 18, seed=4),
        draw(2, 18, seed=5),
    ]
    cotangent = draw(3, 18, seed=6)

    def reference(gate, up, gate_bias, up_bias, scale, shift):
        return sum(FORMULAS["silu"](scale[i] * (gate + gate_bias) + shift[i]) for i in range(2)) * (up + up_bias)

    dtypes = [dtype, dtype, *["float32"] * 4]
    exact = [rounded(a, d) for a, d in zip(arrays, dtypes, strict=True)]
    tensors = [to_tensor(a, d) for a, d in zip(arrays, dtypes, strict=True)]
    (y,), all_six = forward_and_gradients(biased_series_glu, tensors, [cotangent], range(6))
    assert_close(y, reference(*exact), dtype)
    wanted = numeric_gradients(reference, exact, [cotangent], range(6))
    for found, expected in zip(all_six, wanted, strict=True):
        assert_close(found, expected, dtype, factor=4)


def test_plain_swiglu_is_silu_times_up(backend):
    gate, up = draw(4, 5), draw(4, 5, seed=1)
    assert_close(
        forward(ascend_ops.swiglu, [to_tensor(gate), to_tensor(up)])[0],
        FORMULAS["silu"](rounded(gate, "float32")) * rounded(up, "float32"),
    )


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4096 * 16 + 3, 100003])
def test_any_length_and_threads(backend, size):
    x = draw(size)
    assert_close(forward(ascend_ops.silu, [to_tensor(x)])[0], FORMULAS["silu"](rounded(x, "float32")))


def all_activations(x):
    return ascend_ops.gelu(x), ascend_ops.gelu_erf(x), ascend_ops.fast_gelu(x), ascend_ops.silu(x)


def test_nan_stays_and_huge_values_saturate(backend):
    x = np.array([np.nan, 1e4, -1e4, 0.0, 3e38, -3e38] * 5, np.float32)
    found = forward(all_activations, [Tensor(x)])
    assert len(found) == len(FORMULAS)
    for y in found:
        assert np.isnan(y[::6]).all()
        np.testing.assert_allclose(y.reshape(5, 6)[:, 1:], [[1e4, 0, 0, np.float32(3e38), 0]] * 5, atol=1e-3)


def test_eager_views_are_computed_as_they_look(backend):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        x = draw(6, 8)
        tensor = to_tensor(x)
        for view, wanted in ((tensor.T, x.T), (tensor[::2], x[::2]), (tensor[:, 3:5], x[:, 3:5])):
            assert_close(ascend_ops.silu(view).asnumpy(), FORMULAS["silu"](wanted.astype(np.float32)))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def silu_series_without_bias(x, scale, shift):
    return ascend_ops.series_activation(x, scale, shift)


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("call", "shapes", "dtype", "message"),
    [
        (
            ascend_ops.gelu,
            [(2, 3), (4,)],
            "float32",
            r"gelu: bias has shape \(4,\); it must be \(3,\) or \(1,\): x has 3 channels",
        ),
        (
            ascend_ops.gelu,
            [(2, 3), (3,)],
            "int32",
            "gelu: x is int32; it must be one of float32, float16, bfloat16; cast it",
        ),
        (ascend_ops.silu, [(2, 0)], "float32", "silu: x has shape .*no dimension may be 0"),
        (
            ascend_ops.swiglu,
            [(2, 3), (3, 2)],
            "float32",
            r"swiglu: up has shape \(3, 2\); it must be \(2, 3\): the shape of gate",
        ),
        (
            silu_series_without_bias,
            [(2, 3), (3,), (3,)],
            "float32",
            "series_activation: scale has shape .*it must have 2 dimensions",
        ),
        (
            silu_series_without_bias,
            [(2, 3), (2, 4), (2, 4)],
            "float32",
            r"scale has shape \(2, 4\); it must be \(2, 3\) or \(2, 1\)",
        ),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, call, shapes, dtype, message, mode):
    assert_refused(call, [Tensor(np.ones(shape), getattr(ms, dtype)) for shape in shapes], message, mode)
