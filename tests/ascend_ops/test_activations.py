"""Activations against formulas in float64 and their numeric gradients."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

import ascend_ops
from tests.ascend_ops.common import assert_close, forward, gradients, numeric_gradients, rounded, to_tensor

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


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", FORMULAS)
def test_activation_and_gradients(backend, name, dtype):
    x, bias, cotangent = draw(3, 37), draw(37, seed=1), draw(3, 37, seed=2)
    tensors = [to_tensor(x, dtype), to_tensor(bias)]

    def reference(x, bias):
        return FORMULAS[name](x + bias)

    exact = [rounded(x, dtype), rounded(bias, "float32")]
    call = getattr(ascend_ops, name)
    assert_close(forward(call, tensors)[0], reference(*exact), dtype)
    wanted = numeric_gradients(reference, exact, [cotangent], (0, 1))
    for found, expected in zip(gradients(call, tensors, [cotangent], (0, 1)), wanted, strict=True):
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
    assert_close(forward(series_of_silu, tensors)[0], reference(*exact))
    wanted = numeric_gradients(reference, exact, [cotangent], range(4))
    for found, expected in zip(gradients(series_of_silu, tensors, [cotangent], range(4)), wanted, strict=True):
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
    assert_close(forward(biased_series_glu, tensors)[0], reference(*exact), dtype)
    wanted = numeric_gradients(reference, exact, [cotangent], range(6))
    for found, expected in zip(gradients(biased_series_glu, tensors, [cotangent], range(6)), wanted, strict=True):
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


def test_nan_stays_and_huge_values_saturate(backend):
    x = np.array([np.nan, 1e4, -1e4, 0.0, 3e38, -3e38] * 5, np.float32)
    for name in FORMULAS:
        y = forward(getattr(ascend_ops, name), [Tensor(x)])[0]
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
def test_wrong_inputs_are_refused_in_one_line(backend, call, shapes, dtype, message):
    with pytest.raises(ascend_ops.OperatorError, match=message) as error:
        forward(call, [Tensor(np.ones(shape), getattr(ms, dtype)) for shape in shapes])
    assert "\n" not in str(error.value)
