"""Products with packed weights: each instruction set of this processor against float64, and the operators in graphs."""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ascend_ops
from ascend_ops import library
from ascend_ops.packing import GROUP, INPUTS, PackedWeight, pack, unpack
from tests.ascend_ops.common import MODES, assert_close, assert_refused, compiled, rounded, to_float64, to_tensor
from tests.ascend_ops.kernel_calls import packed_glu, packed_linear, packed_linears

DTYPES = list(INPUTS)
LEVELS = [level for level, (needed, _) in library.LEVELS.items() if needed <= library.cpu_flags()]
SOURCES = ("packed.cc", "parallel.cc", "onednn.cc")
SHAPES = [(1, 1), (16, 4), (15, 7), (67, 37), (130, 300), (200, 1031)]
"""[out, in]: one and several blocks, whole and cut; few and many lines."""


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values of float32; a last dimension of many gets smaller ones, so that sums over it stay near 1."""
    return (np.random.RandomState(seed).randn(*shape) / shape[-1] ** 0.25).astype(np.float32)


def seen(x: np.ndarray, dtype: str) -> np.ndarray:
    """x as a product with a weight of this dtype takes it, in float64."""
    if dtype != "int8":
        return x.astype(np.float64)
    exact = np.zeros(x.shape)
    for first in range(0, x.shape[-1], GROUP):
        group = x[..., first : first + GROUP].astype(np.float32)
        largest = np.abs(group).max(-1, keepdims=True)
        steps = np.rint(group * (np.float32(127) / largest)).astype(np.float64)  # the product is rounded to float32
        exact[..., first : first + GROUP] = steps * (largest / np.float32(127))
    return exact


@pytest.fixture(scope="module", params=LEVELS)
def kernels(request, tmp_path_factory) -> Path:
    """The library of PackedLinear, and of what it stands on, compiled for a level."""
    with pytest.MonkeyPatch.context() as patch:
        sources = tmp_path_factory.mktemp("sources")
        for path in library.SOURCES.iterdir():
            if path.suffix == ".h" or path.name in SOURCES:
                shutil.copy(path, sources)
        patch.setattr(library, "SOURCES", sources)
        patch.setattr(library, "KERNELS", {})
        try:
            return library.build(request.param)
        except ascend_ops.OperatorError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def loaded(kernels) -> ctypes.CDLL:
    return ctypes.CDLL(str(kernels))


@pytest.fixture(scope="module")
def linear(loaded) -> Callable:
    """PackedLinear as a function of arrays."""
    return functools.partial(packed_linear, loaded)


def several(sizes: tuple[int, ...], inputs: int, dtype: str) -> tuple[list[PackedWeight], list[np.ndarray]]:
    """Weights with these outputs, packed; and what they are, in float64."""
    packed = [pack(draw(size, inputs, seed=i), dtype) for i, size in enumerate(sizes, 1)]
    return packed, [unpack(one).astype(np.float64) for one in packed]


def silu(u: np.ndarray) -> np.ndarray:
    return u / (1 + np.exp(-u))


# Packing


@pytest.mark.parametrize("shape", [*SHAPES, (530, 9)])
def test_packed_and_unpacked(shape):
    weight = draw(*shape)
    np.testing.assert_array_equal(unpack(pack(weight)), weight)
    np.testing.assert_array_equal(unpack(pack(weight, "bfloat16")), rounded(weight, "bfloat16"))
    packed = pack(weight, "int8")
    assert packed.nbytes == packed.data.size + 4 * shape[0] and packed.inputs == shape[1]
    np.testing.assert_allclose(packed.scale, np.abs(weight).max(1) / 127, rtol=1e-6)
    steps = unpack(packed) / np.where(packed.scale, packed.scale, 1)[:, None].astype(np.float64)
    assert np.abs(steps - np.rint(steps)).max() < 1e-4 and np.abs(steps).max(1) == pytest.approx(127)
    assert (np.abs(unpack(packed) - weight) <= packed.scale[:, None] * 0.50001).all()


def test_layout():
    """Output 16 b + c, input n i + j stands at [b, i, c, j]."""
    weight = np.arange(40 * 10, dtype=np.float32).reshape(40, 10) % 127 + 1
    weight[:, 0] = 127  # the scale is 1
    for dtype, n in INPUTS.items():
        data = pack(weight, dtype).data
        assert data.shape == (3, -(-10 // n), 16, n)
        values = {"float32": data, "bfloat16": data.astype(np.uint32) << 16, "int8": data.astype(np.int32) - 128}[dtype]
        values = values.view(np.float32) if dtype == "bfloat16" else values
        assert values[2, 5 // n, 3, 5 % n] == weight[35, 5]
        assert (values[2, :, 8:] == 0).all()


def test_bfloat16_ties_go_to_even_and_nan_stays():
    weight = np.array([[1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20, -3e38, np.inf, np.nan]], np.float32)
    found = unpack(pack(weight, "bfloat16"))
    np.testing.assert_array_equal(found, rounded(weight, "bfloat16").astype(np.float32))
    assert found[0, 0] == 1 and found[0, 1] == 1 + 2.0**-6
    np.testing.assert_array_equal(unpack(pack(np.full((1, 3), -np.nan, np.float32), "bfloat16")), np.nan)


@pytest.mark.parametrize(
    ("weight", "dtype", "message"),
    [
        (np.ones((2, 3)), "int8", "weight is float64; it must be float32; cast it"),
        (np.ones((2, 3, 4), np.float32), "int8", r"weight has shape \(2, 3, 4\); it must be \[out, in\]"),
        (np.ones((0, 3), np.float32), "float32", r"weight has shape \(0, 3\)"),
        (np.ones((2, 3), np.float32), "int4", "dtype is 'int4'; it must be one of float32, bfloat16, int8"),
        (np.array([[1, np.nan]], np.float32), "int8", "weight holds nan; int8 needs numbers; pack it as"),
        (np.array([[1, 2], [3, -np.inf]], np.float32), "int8", "weight holds -inf"),
    ],
)
def test_what_cannot_be_packed(weight, dtype, message):
    with pytest.raises(ascend_ops.OperatorError, match=message) as error:
        pack(weight, dtype)
    assert str(error.value).startswith("ascend_ops.pack: ") and "\n" not in str(error.value)


# Kernels


@pytest.mark.parametrize("dtype", DTYPES)
def test_products(linear, dtype):
    for outputs, inputs in SHAPES:
        packed, bias = pack(draw(outputs, inputs, seed=1), dtype), draw(outputs, seed=2)
        exact = unpack(packed).astype(np.float64)
        for rows in (1, 2, 3, 4, 5, 6, 7, 13, 70):
            x = draw(rows, inputs, seed=3)
            assert_close(linear(x, packed, bias), seen(x, dtype) @ exact.T + bias)
        half = x.astype(np.float16)
        assert_close(linear(half, packed).astype(np.float64), seen(half, dtype) @ exact.T, "float16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_a_row_depend_on_it_alone(linear, dtype):
    """However many rows there are, and wherever it stands among them."""
    for outputs, inputs in ((150, 1100), (67, 37)):
        packed, bias, x = pack(draw(outputs, inputs, seed=1), dtype), draw(outputs, seed=2), draw(72, inputs)
        alone = np.concatenate([linear(x[i : i + 1], packed, bias, 0) for i in range(72)])
        for rows in (2, 3, 5, 8, 17, 64, 72):
            for first in {0, 1, 72 - rows} - {72 - rows + 1}:
                part = slice(first, first + rows)
                np.testing.assert_array_equal(linear(x[part], packed, bias, 0), alone[part])


def test_number_of_threads_does_not_change_a_bit(kernels):
    script = "import sys; from tests.ascend_ops.kernel_calls import digest_of_packed as f; print(f(sys.argv[1]))"
    root = Path(ascend_ops.__file__).parents[1]
    found = set()
    for n in ("1", "2", "7"):
        environment = os.environ | {"ASCEND_OPS_NUM_THREADS": n}
        command = [sys.executable, "-c", script, str(kernels)]
        found.add(subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    assert len(found) == 1 and len(found.pop()) == 65


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_is_no_number_and_an_output_of_zeros(linear, dtype):
    weight, bias = draw(40, 300, seed=1), draw(40, seed=2)
    weight[5] = 0
    packed = pack(weight, dtype)
    for value in (np.nan, np.inf):
        x = draw(9, 300)
        x[2] = 0
        clean = linear(x, packed, bias)
        assert (clean[:, 5] == bias[5]).all() and (clean[2] == bias).all()
        x[4, 299] = value
        found = linear(x, packed, bias)
        others = np.arange(9) != 4
        np.testing.assert_array_equal(found[others], clean[others])
        assert not np.isfinite(found[4]).any() and (np.isnan(value) <= np.isnan(found[4])).all()


def test_activations(linear):
    packed, bias, x = pack(draw(70, 20, seed=1)), draw(70, seed=2), draw(3, 20)
    u = x.astype(np.float64) @ unpack(packed).T + bias
    phi = 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
    assert_close(linear(x, packed, bias, 0), u * phi)
    assert_close(linear(x, packed, bias, 2), u / (1 + np.exp(-1.702 * u)))
    assert_close(linear(x, packed, bias, 3), u / (1 + np.exp(-u)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(40, 8), (96, 32, 32), (5, 17, 130), (64, 64, 64)])
def test_several_products_at_once_have_the_bits_of_each_alone(loaded, sizes, dtype):
    packed, exact = several(sizes, 150, dtype)
    bias = draw(sum(sizes), seed=9)
    for rows in (1, 2, 6, 7, 8, 17):
        x = draw(rows, 150)
        first = 0
        for found, own, matrix in zip(packed_linears(loaded, x, packed, bias), packed, exact, strict=True):
            own_bias = np.ascontiguousarray(bias[first : first + len(matrix)])
            np.testing.assert_array_equal(found, packed_linear(loaded, x, own, own_bias))
            assert_close(found, seen(x, dtype) @ matrix.T + own_bias)
            first += len(matrix)
        without = packed_linears(loaded, x, packed)[1]
        np.testing.assert_array_equal(without, packed_linear(loaded, x, packed[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [3, 40, 112])
def test_gated_product(loaded, outputs, dtype):
    packed, (gate, up) = several((outputs, outputs), 150, dtype)
    x = draw(72, 150)
    u, factor = seen(x, dtype) @ gate.T, seen(x, dtype) @ up.T
    alone = np.concatenate([packed_glu(loaded, x[i : i + 1], packed) for i in range(72)])
    assert_close(alone, silu(u) * factor)
    for rows in (2, 6, 7, 8, 17, 72):
        np.testing.assert_array_equal(packed_glu(loaded, x[-rows:], packed), alone[-rows:])
    for width in (1, outputs):
        scale, shift = 1 + draw(2, width, seed=5), draw(2, width, seed=6)
        series = silu(scale[0] * u + shift[0]) + silu(scale[1] * u + shift[1])
        assert_close(packed_glu(loaded, x[:3], packed, (scale, shift)), (series * factor)[:3])
    assert_close(packed_glu(loaded, x[:3], packed, activation=2), (u / (1 + np.exp(-1.702 * u)) * factor)[:3])


# Operators


class Product(nn.Cell):
    def __init__(self, activation=""):
        super().__init__()
        self.activation = activation

    def construct(self, x, weight, scale, bias):
        return ascend_ops.packed_linear(x, weight, scale, bias, self.activation)


def both(x, ids, weight, scale, bias):
    return ascend_ops.packed_linear(x, weight, scale, bias, "silu"), ascend_ops.packed_rows(ids, weight, scale, 37)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_and_rows_in_a_graph(backend, dtype):
    packed, bias = pack(draw(67, 37, seed=1), dtype), draw(67, seed=2)
    exact, run, of = unpack(packed).astype(np.float64), compiled(both), ascend_ops.packed_tensors(packed)
    x, ids = draw(2, 3, 37), np.array([[0, 66], [15, 16]], np.int32)
    y, rows = run([Tensor(x), Tensor(ids), *of, Tensor(bias)])
    u = seen(x, dtype) @ exact.T + bias
    assert_close(y, u / (1 + np.exp(-u)))
    np.testing.assert_array_equal(rows, exact[ids])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_product_of_narrow_rows_without_bias(backend, dtype):
    packed, x = pack(draw(67, 37, seed=1), "bfloat16"), draw(3, 37)
    (y,) = compiled(ascend_ops.packed_linear)([to_tensor(x, dtype), *ascend_ops.packed_tensors(packed)])
    assert_close(y, rounded(x, dtype) @ unpack(packed).T.astype(np.float64), dtype)


def joined(x, weight, scale, bias, pair, pair_scale, series_scale, series_shift):
    first, second, third = ascend_ops.packed_linears(x, weight, scale, (40, 8, 19), bias)
    plain = ascend_ops.packed_glu(x, pair, pair_scale)
    return first, second, third, plain, ascend_ops.packed_glu(x, pair, pair_scale, series_scale, series_shift)


@pytest.mark.parametrize("dtype", DTYPES)
def test_joined_products_in_a_graph(backend, dtype):
    packed, exact = several((40, 8, 19), 37, dtype)
    pair, (gate, up) = several((21, 21), 37, dtype)
    x, bias = draw(2, 3, 37), draw(67, seed=5)
    weight, scale = ascend_ops.packed_tensors(*pair)
    series = 1 + draw(2, 21, seed=7), draw(2, 21, seed=8)
    tensors = [Tensor(x), *ascend_ops.packed_tensors(*packed), Tensor(bias)]
    found = compiled(joined)([*tensors, weight, scale.reshape(2, 21), *map(Tensor, series)])
    products = [seen(x, dtype) @ matrix.T for matrix in exact]
    expected = [value + own for value, own in zip(products, np.split(bias, (40, 48)), strict=True)]
    u, factor = seen(x, dtype) @ gate.T, seen(x, dtype) @ up.T
    phi = sum(silu(scale * u + shift) for scale, shift in zip(*series, strict=True))
    for one, value in zip(found, [*expected, silu(u) * factor, phi * factor], strict=True):
        assert_close(one, value)


def test_sizes_that_are_not_those_of_the_weights(backend):
    tensors = ascend_ops.packed_tensors(pack(draw(40, 10)), pack(draw(8, 10)))
    for sizes in ((48,), (4, 4, 40), (24, 16)):
        with pytest.raises(
            ascend_ops.OperatorError, match="packed_linears: sizes=.* with 48 scales and 4 blocks of 16"
        ):
            ascend_ops.packed_linears(Tensor(draw(3, 10)), *tensors, sizes)


def test_a_package_has_it_composed(mindspore_cpu, tmp_path):
    packed, x, bias = pack(draw(20, 150, seed=1), "int8"), draw(3, 150), draw(20, seed=2)
    tensors = [Tensor(x), *ascend_ops.packed_tensors(packed), Tensor(bias)]
    with ascend_ops.use(ascend_ops.PORTABLE):
        ms.export(Product(), *tensors, file_name=str(tmp_path / "product"), file_format="MINDIR")
    written = (tmp_path / "product.mindir").read_bytes()
    assert b"Custom" not in written and b"InsertGradientOf" not in written
    found = nn.GraphCell(ms.load(str(tmp_path / "product.mindir")))(*tensors)
    assert_close(to_float64(found), seen(x, "int8") @ unpack(packed).T + bias)


def test_it_is_not_differentiated(backend):
    packed = pack(draw(20, 10, seed=1))
    tensors = [Tensor(draw(3, 10)), *ascend_ops.packed_tensors(packed), Tensor(draw(20))]
    with pytest.raises(ascend_ops.OperatorError, match="packed_linear: its gradient is asked for; packed weights are"):
        ms.grad(Product())(*tensors)


def test_an_id_that_is_no_row_is_an_error(mindspore_cpu):
    if why_not := ascend_ops.backend.unavailable("packed_rows", "cpu", "float32"):
        pytest.skip(why_not)
    tensors = ascend_ops.packed_tensors(pack(draw(20, 10)))
    with ascend_ops.use("cpu"), pytest.raises(RuntimeError):
        ascend_ops.packed_rows(Tensor(np.array([20], np.int32)), *tensors, 10).asnumpy()


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        (
            [(2, 10), (2, 10, 16, 1), (20,), (20,)],
            ["int32", *["float32"] * 3],
            "packed_linear: x is int32; it must be one",
        ),
        (
            [(2, 10), (2, 10, 16, 1), (20,), (20,)],
            ["float32", "int8", "float32", "float32"],
            "packed_linear: weight is int8; it must be one of float32, bfloat16, uint8; make it by ascend_ops.pack",
        ),
        (
            [(2, 10), (2, 9, 16, 1), (20,), (20,)],
            ["float32"] * 4,
            r"weight has shape \(2, 9, 16, 1\); it must be \(2, 10, 16, 1\): packed from float32 \[20, 10\]",
        ),
        (
            [(2, 10), (2, 3, 16, 4), (40,), (40,)],
            ["float32", "uint8", "float32", "float32"],
            r"packed_linear: weight has shape \(2, 3, 16, 4\); it must be \(3, 3, 16, 4\): packed from int8 \[40, 10\]",
        ),
        (
            [(2, 10), (2, 10, 16, 1), (20,), (20,)],
            ["float32", "float32", "float16", "float32"],
            "packed_linear: scale is float16; it must be float32 for every dtype of x; cast it",
        ),
        (
            [(2, 10), (2, 10, 16, 1), (20,), (1,)],
            ["float32"] * 4,
            r"packed_linear: bias has shape \(1,\); it must be \(20,\): scale has 20 outputs",
        ),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, shapes, dtypes, message, mode):
    tensors = [Tensor(np.ones(shape), getattr(ms, dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)]
    assert_refused(ascend_ops.packed_linear, tensors, message, mode)


def test_an_activation_that_does_not_exist(backend):
    tensors = [Tensor(draw(3, 10)), *ascend_ops.packed_tensors(pack(draw(20, 10)))]
    with pytest.raises(
        ascend_ops.OperatorError, match="packed_linear: activation='relu': no such activation; use one of"
    ):
        ascend_ops.packed_linear(*tensors, activation="relu")
