"""Rotary embedding against complex multiplication in float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from ascend_ops import rotary
from ascend_ops.errors import OperatorError
from ascend_ops.rotary import rotary_embedding, rotary_table
from tests.ascend_ops.common import (
    MODES,
    assert_close,
    assert_refused,
    compiled,
    forward_and_gradients,
    gradients,
    rounded,
    to_float64,
    to_tensor,
)

pytestmark = pytest.mark.thinned


def draw(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape)


def draw_angles(*shape):
    """Angles [B, S, D/2] that differ in every place, and cos_sin [B, S, D]."""
    angles = draw(*shape, seed=9) * 3
    return angles, np.concatenate([np.cos(angles), np.sin(angles)], -1)


def turned(x, angles):
    """[B, S, H, D] float64: x1 + i x2 times e^(i angle)."""
    x1, x2 = np.split(x, 2, axis=-1)
    z = (x1 + 1j * x2) * np.exp(1j * angles[:, :, None])
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("flat", [True, False])
def test_pairs_turn_by_the_angle_and_gradients_turn_back(backend, dtype, flat):
    B, S, H, D = 2, 3, 3, 36
    angles, cos_sin = draw_angles(B, S, D // 2)
    shape = (B, S, H * D) if flat else (B, S, H, D)
    x, dy = draw(B, S, H, D), draw(B, S, H, D, seed=1)
    tensors = [to_tensor(x.reshape(shape), dtype), to_tensor(cos_sin)]
    assert rotary_embedding(*tensors).dtype == tensors[0].dtype
    (y,), (dx, dcos_sin) = forward_and_gradients(rotary_embedding, tensors, [dy.reshape(shape)], [0, 1])
    assert_close(y, turned(rounded(x, dtype), angles).reshape(shape), dtype)
    assert_close(dx, turned(dy, -angles).reshape(shape), dtype)
    assert dcos_sin.shape == cos_sin.shape and not dcos_sin.any()


@pytest.mark.parametrize(
    "B, S, H, D", [(1, 1, 1, 2), (1, 1, 4, 64), (2, 3, 5, 16), (1, 2, 2, 130), (3, 300, 2, 32), (2, 2, 1, 20000)]
)
def test_any_shape_and_threads(backend, B, S, H, D):
    angles, cos_sin = draw_angles(B, S, D // 2)
    x, dy = draw(B, S, H, D), draw(B, S, H, D, seed=1)
    tensors = [to_tensor(x.reshape(B, S, -1)), to_tensor(cos_sin)]
    (y,), (dx,) = forward_and_gradients(rotary_embedding, tensors, [dy.reshape(B, S, -1)], [0])
    assert_close(y, turned(x, angles).reshape(B, S, -1))
    assert_close(dx, turned(dy, -angles).reshape(B, S, -1))


def sum_of_cubes(x, cos_sin):
    return (rotary_embedding(x, cos_sin) ** 3).sum()


def slope(x, cos_sin):
    return ms.grad(sum_of_cubes)(x, cos_sin)


def test_gradients_of_gradients(backend):
    """d/dx <g, a> for g = R^T 3 (R x)^2 is R^T 6 (R x) (R a)."""
    angles, cos_sin = draw_angles(1, 2, 4)
    x, a = draw(1, 2, 1, 8), draw(1, 2, 1, 8, seed=1)
    found = gradients(slope, [to_tensor(x), to_tensor(cos_sin)], [a], [0])[0]
    assert_close(found, turned(6 * turned(x, angles) * turned(a, angles), -angles))


def scores(q, k, q_angles, k_angles):
    """q and k after rotation, multiplied head by head."""
    return (rotary_embedding(q, q_angles) * rotary_embedding(k, k_angles)).sum(-1)


def test_scores_depend_on_the_distance_alone(backend):
    """The property that the embedding is for, through the table, far from the start too."""
    table = rotary_table(5000, 32, 1e4)
    q, k = (np.tile(draw(1, 1, 2, 32, seed=s), (1, 3, 1, 1)) for s in (0, 1))
    positions = np.array([10, 700, 4990])
    at = [Tensor(table[positions + offset][None]) for offset in (7, 0)]
    run = compiled(scores)
    found = run([to_tensor(q), to_tensor(k), *at])[0]
    np.testing.assert_allclose(found[0, 1:], found[0, :2], atol=2e-5)
    other = run([to_tensor(q), to_tensor(k), at[1], at[1]])[0]
    assert np.abs(other - found).max() > 0.1


@pytest.mark.parametrize("theta", [10000, 16e6])
def test_table_keeps_its_digits_at_large_positions(theta):
    table = rotary_table(32768, 128, theta)
    assert table.shape == (32768, 128) and table.dtype == np.float32
    for position, i in ((0, 0), (1, 1), (32767, 0), (32767, 3), (20001, 63)):
        angle = position / float(theta) ** (2 * i / 128)
        np.testing.assert_allclose(
            table[position, [i, 64 + i]], [np.cos(angle), np.sin(angle)], atol=1e-7
        )  # in float32 angles: 1e-3


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 8, 1e4), "length=0: it must be a whole number above 0"),
        ((4, 7, 1e4), "head_size=7: it must be an even whole number above 0"),
        ((4, 8.0, 1e4), "head_size=8.0: it must be an even whole number above 0"),
        ((4, 8, 0.0), "theta=0.0: it must be a finite number above 0"),
        ((4, 8, float("nan")), "theta=nan: it must be a finite number above 0"),
    ],
)
def test_a_table_of_wrong_numbers_is_refused(numbers, message):
    with pytest.raises(OperatorError) as error:
        rotary_table(*numbers)
    assert str(error.value).startswith(f"ascend_ops.rotary_table: {message}")


class _Rotary(nn.Cell):
    def construct(self, x, cos_sin):
        return rotary_embedding(x, cos_sin)


def weighted(x, cos_sin, dy):
    return (rotary_embedding(x, cos_sin) * dy).sum()


class _Gradient(nn.Cell):
    def construct(self, x, cos_sin, dy):
        return ms.grad(weighted)(x, cos_sin, dy)


@pytest.mark.parametrize("tail", [(24,), (3, 8)])
def test_dynamic_shapes(backend, tail):
    net, gradient = _Rotary(), _Gradient()
    x_shape, table_shape = (Tensor(shape=[None, None, *dims], dtype=ms.float32) for dims in (tail, (8,)))
    net.set_inputs(x_shape, table_shape)
    gradient.set_inputs(x_shape, table_shape, x_shape)
    for B, S in ((1, 3), (2, 40)):
        angles, cos_sin = draw_angles(B, S, 4)
        x, dy = draw(B, S, 3, 8), draw(B, S, 3, 8, seed=1)
        tensors = [to_tensor(x.reshape(B, S, *tail)), to_tensor(cos_sin)]
        assert_close(to_float64(net(*tensors)), turned(x, angles).reshape(B, S, *tail))
        found = gradient(*tensors, to_tensor(dy.reshape(B, S, *tail)))
        assert_close(to_float64(found), turned(dy, -angles).reshape(B, S, *tail))


def test_eager_views_are_computed_as_they_look(backend):
    angles, cos_sin = draw_angles(2, 6, 4)
    x = draw(2, 6, 3, 8)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        found = rotary_embedding(to_tensor(x)[:, ::2], to_tensor(cos_sin)[:, ::2])
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert_close(to_float64(found), turned(x, angles)[:, ::2])


def documented(x, cos, sin, mode):
    """ops.rotary_position_embedding by its documentation: mode 0, layout BSND with cos and sin B S 1 D, of one
    dtype."""
    assert mode == 0 and x.dtype == cos.dtype == sin.dtype and cos.shape == sin.shape == (*x.shape[:2], 1, x.shape[3])
    x, cos, sin = (t.asnumpy() for t in (x, cos, sin))
    x1, x2 = np.split(x, 2, axis=-1)
    return Tensor(x * cos + np.concatenate([-x2, x1], -1) * sin)


def test_the_builtin_is_called_as_documented(mindspore_cpu, monkeypatch):
    monkeypatch.setattr(rotary, "select", lambda *_: "builtin")
    monkeypatch.setattr(ops, "rotary_position_embedding", documented)
    angles, cos_sin = draw_angles(2, 3, 4)
    x = draw(2, 3, 5, 8)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        found = rotary_embedding(to_tensor(x.reshape(2, 3, 40), "bfloat16"), to_tensor(cos_sin))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert found.dtype == ms.bfloat16
    assert_close(to_float64(found), turned(rounded(x, "bfloat16"), angles).reshape(2, 3, 40), "bfloat16")


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("x", "cos_sin", "dtypes", "message"),
    [
        ((2, 3), (2, 3, 4), (), r"x has shape \(2, 3\); it must have 3 to 4 dimensions"),
        ((2, 3, 0), (2, 3, 4), (), r"x has shape \(2, 3, 0\); no dimension may be 0"),
        ((2, 3, 8), (3, 4), (), r"cos_sin has shape \(3, 4\); it must have 3 dimensions"),
        ((2, 3, 8), (2, 3, 4), ("int32",), "x is int32; it must be one of float32, float16, bfloat16; cast it"),
        ((2, 3, 8), (2, 3, 4), ("float16", "float16"), "cos_sin is float16; it must be float32; cast it"),
        ((2, 3, 9), (2, 3, 3), (), r"cos_sin has shape \(2, 3, 3\); its last dimension must be even"),
        ((2, 3, 8), (1, 3, 4), (), r"cos_sin has shape \(1, 3, 4\); it must be \(2, 3, 4\): the batch and length of x"),
        ((2, 3, 8), (2, 1, 4), (), r"cos_sin has shape \(2, 1, 4\); it must be \(2, 3, 4\)"),
        (
            (2, 3, 10),
            (2, 3, 4),
            (),
            r"x has shape \(2, 3, 10\); its last dimension must be a multiple of 4, the head size",
        ),
        ((2, 3, 2, 8), (2, 3, 4), (), r"x has shape \(2, 3, 2, 8\); its last dimension must be 4, the head size"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, x, cos_sin, dtypes, message, mode):
    dtypes = (*dtypes, "float32", "float32")
    tensors = [Tensor(np.ones(shape), getattr(ms, dtypes[i])) for i, shape in enumerate((x, cos_sin))]
    assert_refused(rotary_embedding, tensors, "^ascend_ops.rotary_embedding: " + message, mode)
