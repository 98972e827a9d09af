"""LayerNorm and RMSNorm against formulas in float64 and their numeric gradients."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops.norms import layer_norm, rms_norm
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

EPS = 1e-3  # large enough to be seen when it is left out


def layer(x, weight, bias):
    return layer_norm(x, weight, bias, EPS)


def rms(x, weight):
    return rms_norm(x, weight, EPS)


def add_layer(x, residual, weight, bias):
    return layer_norm(x, weight, bias, EPS, residual)


def add_rms(x, residual, weight):
    return rms_norm(x, weight, EPS, residual)


def layer_reference(x, weight, bias):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + EPS) * weight + bias


def rms_reference(x, weight):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def add_layer_reference(x, residual, weight, bias):
    return layer_reference(x + residual, weight, bias), x + residual


def add_rms_reference(x, residual, weight):
    return rms_reference(x + residual, weight), x + residual


CASES = {  # operator, reference, activations, parameters
    "layer": (layer, layer_reference, 1, 2),
    "rms": (rms, rms_reference, 1, 1),
    "add_layer": (add_layer, add_layer_reference, 2, 2),
    "add_rms": (add_rms, add_rms_reference, 2, 1),
}


def draw(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape)


def make(name, dtype, *shape):
    """Tensors of a case, and what they hold. Activations are multiples of 1/16: their sum is exact in every dtype, as
    the reference's is."""
    _, _, activations, parameters = CASES[name]
    arrays = [np.round(draw(*shape, seed=i) * 16 + 8) / 16 for i in range(activations)]
    tensors = [to_tensor(a, dtype) for a in arrays] + [
        to_tensor(draw(shape[-1], seed=7 + i)) for i in range(parameters)
    ]
    return tensors, [rounded(a, dtype) for a in arrays] + [
        rounded(draw(shape[-1], seed=7 + i), "float32") for i in range(parameters)
    ]


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_norm_and_gradients(backend, name, dtype):
    call, reference, activations, _ = CASES[name]
    tensors, exact = make(name, dtype, 2, 2, 37)
    cotangents = [rounded(draw(2, 2, 37, seed=20 + i), dtype) for i in range(activations)]
    positions, wanted = range(len(tensors)), reference(*exact)
    outputs, found_gradients = forward_and_gradients(call, tensors, cotangents, positions)
    for found, expected in zip(outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert_close(found, expected, dtype)
    expected = numeric_gradients(reference, exact, cotangents, positions)
    for found, wanted in zip(found_gradients, expected, strict=True):
        assert_close(found, wanted, dtype, factor=4)  # composed sums rounded terms


@pytest.mark.thinned(1)
@pytest.mark.parametrize("shape", [(5,), (1, 1), (3, 16), (7, 64), (2, 65), (1, 4099), (1300, 129)])
@pytest.mark.parametrize("name", ["layer", "add_rms"])
def test_any_shape_and_threads(backend, name, shape):
    call, reference, activations, _ = CASES[name]
    tensors, exact = make(name, "float32", *shape)
    wanted = reference(*exact)
    cotangents = [draw(*shape, seed=20 + i) for i in range(activations)]
    (y, *_), (found,) = forward_and_gradients(call, tensors, cotangents, [activations])  # of the weight
    assert_close(y, wanted[0] if isinstance(wanted, tuple) else wanted)
    u = exact[0] + (exact[1] if activations == 2 else 0)
    u = u - u.mean(-1, keepdims=True) if name == "layer" else u
    h = u / np.sqrt((u**2).mean(-1, keepdims=True) + EPS)
    terms = (cotangents[0] * h).reshape(-1, shape[-1])  # the gradient is a sum over all rows
    np.testing.assert_allclose(found, terms.sum(0), atol=1e-6 * np.abs(terms).sum(0).max() + 1e-6)


def test_a_large_mean_keeps_its_digits(backend):
    x = draw(4, 768) + 1000.0  # E[x^2] - E[x]^2 would keep one digit of the variance
    arrays = [x, np.ones(768), np.zeros(768)]
    wanted = layer_reference(*(rounded(a, "float32") for a in arrays))
    # the mean itself is known to half a unit in its last place, 3e-5
    np.testing.assert_allclose(forward(layer, [to_tensor(a) for a in arrays])[0], wanted, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_nan_spoils_its_row_alone(backend, name):
    tensors, _ = make(name, "float32", 3, 21)
    spoilt = tensors[0].asnumpy().copy()
    spoilt[1, 20] = np.nan
    tensors[0] = Tensor(spoilt)
    ones = [np.ones((3, 21))] * CASES[name][2]
    (y, *_), (dx,) = forward_and_gradients(CASES[name][0], tensors, ones, [0])
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
    assert np.isnan(dx[1]).all() and np.isfinite(dx[[0, 2]]).all()


def test_a_sum_is_rounded_once_and_then_normalised(backend):
    x, residual = (rounded(draw(5, 64, seed=s), "bfloat16") for s in (0, 1))
    y, total = forward(
        add_rms, [to_tensor(x, "bfloat16"), to_tensor(residual, "bfloat16"), Tensor(np.ones(64, np.float32))]
    )
    np.testing.assert_array_equal(total, rounded(x + residual, "bfloat16"))
    exact = rms_reference(total, np.ones(64))
    assert np.abs(y - exact).max() <= np.abs(exact).max() * 2**-8  # one rounding to bfloat16, not two


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_eager_and_graph_agree(backend, mode):
    tensors, exact = make("add_layer", "float32", 3, 18)
    ms.set_context(mode=mode)
    try:
        y, total = add_layer(*tensors)
        assert_close(y.asnumpy(), add_layer_reference(*exact)[0])
        assert_close(ms.grad(first_of_add_layer, (0, 1))(*tensors)[1].asnumpy(), numeric_first_gradient(exact))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def first_of_add_layer(x, residual, weight, bias):
    return (add_layer(x, residual, weight, bias)[0] * weight).sum()


def numeric_first_gradient(exact):
    return numeric_gradients(lambda *a: add_layer_reference(*a)[0], exact, [np.broadcast_to(exact[2], (3, 18))], [1])[0]


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("call", "shapes", "dtypes", "message"),
    [
        (layer, [(2, 3), (4,), (3,)], {}, r"layer_norm: weight has shape \(4,\); it must be \(3,\): x has 3 channels"),
        (layer, [(2, 3), (3,), (1,)], {}, r"layer_norm: bias has shape \(1,\); it must be \(3,\)"),
        (
            add_layer,
            [(2, 3), (3, 2), (3,), (3,)],
            {},
            r"layer_norm: residual has shape \(3, 2\); it must be \(2, 3\): the shape of x",
        ),
        (
            add_rms,
            [(2, 3), (2, 3), (3,)],
            {1: "float16"},
            "rms_norm: residual is float16 and x is float32; both must have one dtype",
        ),
        (rms, [(2, 3), (3,)], {0: "int32"}, "rms_norm: x is int32; it must be one of float32"),
        (rms, [(2, 0), (0,)], {}, "rms_norm: x has shape .*no dimension may be 0"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, call, shapes, dtypes, message, mode):
    tensors = [Tensor(np.ones(shape), getattr(ms, dtypes.get(i, "float32"))) for i, shape in enumerate(shapes)]
    assert_refused(call, tensors, message, mode)
