"""linear and grouped_matmul against float64 products of the rounded operands."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ascend_ops
from ascend_ops.matmul import grouped_matmul, linear
from tests.ascend_ops.common import (
    MODES,
    assert_close,
    assert_refused,
    compiled,
    differentiated,
    forward_and_gradients,
    numeric_gradients,
    rounded,
    to_float64,
    to_tensor,
)

pytestmark = pytest.mark.thinned

DTYPES = ["float32", "float16", "bfloat16"]


def draw(*shape, seed=0):
    """Normal values; a last dimension of many gets smaller ones, so that sums over it stay near 1."""
    return np.random.RandomState(seed).randn(*shape) / shape[-1] ** 0.25


def reference_linear(x, weight, bias=0.0):
    return x @ weight.T + bias


def reference_grouped(x, weight, counts, bias=None):
    expert = np.repeat(np.arange(len(counts)), counts)
    bias = np.zeros(weight.shape[:2]) if bias is None else bias
    return np.concatenate([x[i : i + 1] @ weight[e].T + bias[e] for i, e in enumerate(expert)])


def exact_linear_gradients(x, weight, cotangent):
    x, cotangent = x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    return cotangent @ weight, cotangent.T @ x, cotangent.sum(0)


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_and_gradients(backend, dtype):
    x, weight, bias, cotangent = (
        draw(2, 3, 7),
        draw(5, 7, seed=1),
        draw(5, seed=2),
        rounded(draw(2, 3, 5, seed=3), dtype),
    )
    tensors = [to_tensor(x, dtype), to_tensor(weight), to_tensor(bias)]
    exact = [rounded(x, dtype), rounded(weight, dtype), rounded(bias, "float32")]
    (y,), found = forward_and_gradients(linear, tensors, [cotangent], range(3))
    assert_close(y, reference_linear(*exact), dtype)
    wanted = numeric_gradients(reference_linear, exact, [cotangent], range(3))
    for f, w, accuracy in zip(
        found, wanted, (dtype, "float32", "float32"), strict=True
    ):  # weights' gradients are never rounded to dtype
        assert_close(f, w, accuracy)


# Rows on either side of the change from dot products to oneDNN (4 and 48), one output, one input, odd tails, shapes
# that use both threads.
@pytest.mark.thinned(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "size", "outputs"),
    [
        (1, 1, 1),
        (1, 33, 5),
        (1, 1024, 300),
        (4, 100, 67),
        (7, 17, 1),
        (48, 64, 16),
        (49, 1, 7),
        (70, 257, 131),
        (600, 96, 200),
    ],
)
def test_linear_of_any_size(backend, dtype, rows, size, outputs):
    x, weight, bias, cotangent = (
        draw(rows, size),
        draw(outputs, size, seed=1),
        draw(outputs, seed=2),
        rounded(draw(rows, outputs, seed=3), dtype),
    )
    tensors = [to_tensor(x, dtype), to_tensor(weight), to_tensor(bias)]
    exact = [rounded(x, dtype), rounded(weight, dtype), rounded(bias, "float32")]
    (y,), found = forward_and_gradients(linear, tensors, [cotangent], range(3))
    assert_close(y, reference_linear(*exact), dtype)
    for f, w, accuracy in zip(
        found,
        exact_linear_gradients(*exact[:2], cotangent),
        (dtype, "float32", "float32"),
        strict=True,
    ):
        assert_close(f, w, accuracy)


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 1, 3, 6)])
@pytest.mark.parametrize("outputs", [1, 4])
def test_no_bias_and_any_rank(backend, shape, outputs):
    x, weight, cotangent = draw(*shape), draw(outputs, 6, seed=1), draw(*shape[:-1], outputs, seed=2)
    tensors = [to_tensor(x), to_tensor(weight)]
    exact = [rounded(x, "float32"), rounded(weight, "float32")]
    (y,), found = forward_and_gradients(linear, tensors, [cotangent], range(2))
    assert_close(y, reference_linear(*exact))
    dx, dweight, _ = exact_linear_gradients(*exact, cotangent)
    assert_close(found[0], dx.reshape(shape))
    assert_close(found[1], dweight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(backend, dtype):
    for rows in (3, 50):
        x, product = draw(rows, 20), compiled(linear)
        x[1, 4] = np.nan
        y = product([to_tensor(x, dtype), to_tensor(draw(9, 20, seed=1))])[0]
        assert np.isnan(y).any(1).tolist() == [row == 1 for row in range(rows)]
        weight = draw(9, 20, seed=1)
        weight[2, 3] = np.nan
        y = product([to_tensor(draw(rows, 20), dtype), to_tensor(weight)])[0]
        assert np.isnan(y).all(0).tolist() == np.isnan(y).any(0).tolist() == [column == 2 for column in range(9)]


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 50])
def test_weight_is_seen_rounded(backend, rows, dtype):
    """1 + 2**-12 is 1 to both types: what is left of it would stand alone where 1 - 1 cancels, forward (columns) and
    backward (rows)."""
    weight = np.array([[1 + 2.0**-12, 1], [1, 1]])
    x = cotangent = np.tile([1.0, -1.0], (rows, 1))
    tensors = [to_tensor(x, dtype), to_tensor(weight)]
    counts = to_tensor(np.array([0, rows], np.int32))
    grouped = [tensors[0], to_tensor(np.stack([weight] * 2)), counts]
    for call, inputs in ((linear, tensors), (grouped_matmul, grouped)):
        (y,), (dx,) = forward_and_gradients(call, inputs, [cotangent], range(1))
        assert (y == 0).all() and (dx == 0).all()


COUNTS = [[[5, 0, 1, 7], [0, 0, 13, 0], [13, 0, 0, 0], [3, 4, 3, 3]], [[1, 0, 2, 0], [0, 0, 0, 3]]]
"""The latter have no more rows than experts, which the composed form computes in another way."""


@pytest.mark.thinned(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("counts", COUNTS)
def test_grouped_and_gradients(backend, counts, dtype, biased):
    """Each list of counts has one number of rows, for which one graph is compiled."""
    counts = np.array(counts, np.int32)
    rows = counts[0].sum()
    x, weight, bias = draw(rows, 6), draw(4, 5, 6, seed=1), draw(4, 5, seed=3)
    cotangent, inputs = rounded(draw(rows, 5, seed=2), dtype), 3 + biased
    positions = (0, 1, 3) if biased else (0, 1)
    run = differentiated(grouped_matmul, positions)
    for of_experts in counts:
        tensors = [to_tensor(x, dtype), to_tensor(weight), to_tensor(of_experts), to_tensor(bias)][:inputs]
        exact = [rounded(x, dtype), rounded(weight, dtype), of_experts, rounded(bias, "float32")][:inputs]
        (y,), found = run(tensors, [cotangent])
        assert_close(y, reference_grouped(*exact), dtype)
        wanted = numeric_gradients(reference_grouped, exact, [cotangent], positions)
        assert_close(found[0], wanted[0], dtype)
        for f, w in zip(found[1:], wanted[1:], strict=True):
            assert_close(f, w)
            assert (f[of_experts == 0] == 0).all()


@pytest.mark.thinned(1)
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])  # float32 on a CPU: the test above
def test_grouped_with_small_and_large_experts(backend, dtype):
    x, weight, cotangent = draw(320, 40), draw(8, 24, 40, seed=1), rounded(draw(320, 24, seed=2), dtype)
    bias, exact = draw(8, 24, seed=3), [rounded(x, dtype), rounded(weight, dtype)]
    run = differentiated(grouped_matmul, (0, 1, 3))
    for counts in ([31, 65, 0, 100, 1, 5, 48, 70], [64, 0, 3, 49, 204, 0, 0, 0]):
        counts = np.array(counts, np.int32)
        tensors = [to_tensor(x, dtype), to_tensor(weight), Tensor(counts), to_tensor(bias)]
        (y,), (dx, dweight, dbias) = run(tensors, [cotangent])
        assert_close(y, reference_grouped(*exact, counts, rounded(bias, "float32")), dtype)
        of_experts, rows = (np.split(a, np.cumsum(counts)[:-1]) for a in (cotangent, exact[0]))
        assert_close(dx, np.concatenate([c @ w for c, w in zip(of_experts, exact[1], strict=True)]), dtype)
        assert_close(dweight, np.stack([c.T @ a for c, a in zip(of_experts, rows, strict=True)]))
        assert_close(dbias, np.stack([c.sum(0) for c in of_experts]), factor=4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_experts_bits_do_not_depend_on_the_others(dtype):
    """Experts 1 to 3 of five, whose last rows stand before those of another, and the same three alone, whose rows end
    with the tensor. 3 rows are computed by dot products, 73 by oneDNN, whose product of 73 rows of this size has other
    bits than that of 96."""
    if why_not := ascend_ops.backend.unavailable("grouped_matmul", "cpu", "float32"):
        pytest.skip(why_not)
    counts = np.array([33, 3, 0, 73, 30], np.int32)
    rows, part, experts = counts.sum(), slice(33, 33 + 76), slice(1, 4)
    x, weight, bias = draw(rows, 640), draw(5, 1536, 640, seed=1), draw(5, 1536, seed=2)
    cotangent = draw(rows, 1536, seed=3)

    def results(x, weight, counts, bias, cotangent):
        tensors = [to_tensor(x, dtype), to_tensor(weight), to_tensor(counts), to_tensor(bias)]
        with ascend_ops.use("cpu"):
            outputs, found = forward_and_gradients(grouped_matmul, tensors, [cotangent], (0, 1, 3))
            return outputs + found

    y, dx, dweight, dbias = results(x, weight, counts, bias, cotangent)
    alone = results(x[part], weight[experts], counts[experts], bias[experts], cotangent[part])
    for found, wanted in zip(alone, (y[part], dx[part], dweight[experts], dbias[experts]), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_grouped_nan_stays_with_its_expert(backend):
    """Of a row in that row, though products may run past an expert's rows; of a weight in its expert's rows."""
    counts = to_tensor(np.array([50, 60, 3], np.int32))
    x, weight = draw(113, 16), draw(3, 8, 16, seed=1)
    run, ones = differentiated(grouped_matmul, range(2)), [np.ones((113, 8))]
    x[65, 2] = np.nan
    (y,), (dx, dweight) = run([to_tensor(x), to_tensor(weight), counts], ones)
    assert np.flatnonzero(np.isnan(y).any(1)).tolist() == [65]
    assert not np.isnan(dx).any() and np.isnan(dweight).any((1, 2)).tolist() == [False, True, False]
    weight[0, 1, 1] = np.nan
    y = run([to_tensor(draw(113, 16)), to_tensor(weight), counts], ones)[0][0]
    assert np.flatnonzero(np.isnan(y).any(1)).tolist() == list(range(50))


def test_few_rows_in_a_package_multiply_their_own_experts(mindspore_cpu, tmp_path):
    """One token of sixteen experts in an exported graph: its product is one of a matrix and a row, not sixteen."""
    x, weight, bias, counts = draw(1, 6), draw(16, 5, 6, seed=1), draw(16, 5, seed=2), np.zeros(16, np.int32)
    counts[11] = 1
    tensors = [to_tensor(a) for a in (x, weight, counts, bias)]
    path = tmp_path / "decoding.mindir"
    with ascend_ops.use(ascend_ops.PORTABLE):
        ms.export(Grouped(), *tensors, file_name=str(path), file_format="MINDIR")
    assert path.read_bytes().count(b"BatchMatMul") and b"Custom" not in path.read_bytes()
    loaded = nn.GraphCell(ms.load(str(path)))
    for own in (11, 0):
        counts[:] = 0
        counts[own] = 1
        found = to_float64(loaded(*tensors[:2], to_tensor(counts), tensors[3]))
        assert_close(found, reference_grouped(x, weight, counts, bias))


class Grouped(nn.Cell):
    def construct(self, x, weight, counts, bias):
        return grouped_matmul(x, weight, counts, bias)


@pytest.mark.parametrize("rows", [3, 9])
def test_grouped_of_a_number_of_rows_that_is_not_known(backend, rows):
    cell, counts = Grouped(), np.array([rows - 2, 0, 1, 1], np.int32)
    x, weight, bias = draw(rows, 6), draw(4, 5, 6, seed=1), draw(4, 5, seed=2)
    others = [to_tensor(weight), to_tensor(counts), to_tensor(bias)]
    cell.set_inputs(Tensor(shape=[None, 6], dtype=ms.float32), *others)
    assert_close(to_float64(cell(to_tensor(x), *others)), reference_grouped(x, weight, counts, bias))


@pytest.mark.parametrize("counts", [[3, 4], [9, -1], [5, 4]])
def test_counts_that_do_not_fit_are_an_error(counts):
    if why_not := ascend_ops.backend.unavailable("grouped_matmul", "cpu", "float32"):
        pytest.skip(why_not)
    with ascend_ops.use("cpu"), pytest.raises(RuntimeError):
        grouped_matmul(to_tensor(draw(8, 3)), to_tensor(draw(2, 4, 3)), to_tensor(np.array(counts, np.int32))).asnumpy()


def test_eagerly_and_with_views(backend):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        x, weight = draw(6, 8), draw(8, 5, seed=1)
        assert_close(
            to_float64(linear(to_tensor(x)[::2], to_tensor(weight).T)),
            rounded(x, "float32")[::2] @ rounded(weight, "float32"),
        )
        gradient = ms.grad(lambda w: linear(to_tensor(x), w).sum())(to_tensor(weight.T.copy()))
        assert_close(to_float64(gradient), np.tile(rounded(x, "float32").sum(0), (5, 1)))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("call", "shapes", "dtypes", "message"),
    [
        (
            linear,
            [(2, 3), (4, 3)],
            ["int32", "float32"],
            "linear: x is int32; it must be one of float32, float16, bfloat16; cast it",
        ),
        (
            linear,
            [(2, 3), (4, 3)],
            ["bfloat16", "bfloat16"],
            "linear: weight is bfloat16; weights are float32 for every dtype of x; cast it",
        ),
        (
            linear,
            [(2, 3), (4, 5)],
            ["float32"] * 2,
            r"linear: weight has shape \(4, 5\); it must be \(4, 3\): x has 3 channels",
        ),
        (
            linear,
            [(2, 3), (4, 3), (1,)],
            ["float32"] * 3,
            r"linear: bias has shape \(1,\); it must be \(4,\): weight makes 4 outputs",
        ),
        (linear, [(0, 3), (4, 3)], ["float32"] * 2, "linear: x has shape .*no dimension may be 0"),
        (
            grouped_matmul,
            [(2, 3), (4, 3), (4,)],
            ["float32", "float32", "int32"],
            "grouped_matmul: weight has shape .*must have 3 dimensions",
        ),
        (
            grouped_matmul,
            [(2, 3), (2, 4, 3), (2,)],
            ["float32", "float32", "int64"],
            "grouped_matmul: counts is int64; it must be int32; cast it",
        ),
        (
            grouped_matmul,
            [(2, 3), (2, 4, 3), (3,)],
            ["float32", "float32", "int32"],
            r"counts has shape \(3,\); it must be \(2,\): weight has 2 experts",
        ),
        (
            grouped_matmul,
            [(2, 3), (2, 4, 3), (2,), (4,)],
            ["float32", "float32", "int32", "float32"],
            r"bias has shape \(4,\); it must be \(2, 4\): weight makes 4 outputs for each of 2 experts",
        ),
        (
            grouped_matmul,
            [(2, 3), (2, 4, 3), (2,), (2, 4)],
            ["float16", "float32", "int32", "float16"],
            "grouped_matmul: bias is float16; weights are float32 for every dtype of x; cast it",
        ),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, call, shapes, dtypes, message, mode):
    tensors = [Tensor(np.ones(shape), getattr(ms, dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)]
    assert_refused(call, tensors, message, mode)
