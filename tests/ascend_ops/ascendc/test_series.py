"""SeriesActivation, SeriesGlu and their gradients: tiling and kernel together, on simulated cores of both chips,
against float64."""

import numpy as np
import pytest

from tests.ascend_ops.ascendc import reference as ref
from tests.ascend_ops.ascendc.ascendc_host import CHIPS, Typed, chip_dtypes

ULP = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TYPES = [(chip, dtype) for chip in CHIPS for dtype in chip_dtypes("SeriesActivation", chip)]

# shape of x, terms, activation, cores, which parameters have a value per channel (bias, scale, shift)
CASES = {
    "aligned": ((64, 256), 2, "gelu", 8, (1, 1, 1)),
    "aligned, one core": ((40, 64), 1, "silu", 1, (0, 0, 0)),
    "ragged rows and channels": ((37, 100), 3, "gelu_erf", 3, (1, 1, 1)),
    "three dimensions": ((3, 5, 33), 2, "fast_gelu", 8, (1, 0, 0)),
    "two ragged tiles": ((19, 1030), 2, "gelu", 3, (1, 1, 0)),
    "tiles over cores": ((2, 3088), 2, "silu", 8, (0, 1, 1)),
    "last tile would be short": ((50, 2056), 1, "gelu", 8, (1, 1, 1)),
    "half a block of float16": ((33, 24), 2, "silu", 8, (1, 1, 1)),
    "shorter than a block": ((23, 5), 2, "gelu", 3, (1, 1, 1)),
    "one element": ((1, 1), 2, "silu", 8, (1, 1, 1)),
    "one row": ((100,), 4, "gelu_erf", 3, (0, 0, 0)),
    "many rows": ((700, 40), 1, "gelu", 8, (1, 0, 1)),
    "nine terms": ((21, 48), 9, "silu", 3, (1, 1, 1)),
}


def parameters(rng, channels, terms, channelwise, biases):
    """Biases, scale and shift, of the forms that `channelwise` (bias, scale, shift) names; the second bias has the
    other form."""
    width = [channels if c else 1 for c in channelwise]
    bias = [rng.normal(size=channels if (channelwise[0] + i) % 2 else 1) for i in range(biases)]
    scale = 1 + 0.3 * rng.normal(size=(terms, width[1]))
    shift = 0.5 * rng.normal(size=(terms, width[2]))
    return [p.astype(np.float32) for p in (*bias, scale, shift)]


def matrices(rng, shape, dtype, count, spread=1.5):
    """Random matrices, as the device sees them and as float64."""
    typed = [Typed.of(spread * rng.normal(size=shape), dtype) for _ in range(count)]
    return typed, [t.numpy().astype(np.float64) for t in typed]


def assert_close(found, expected, dtype, bound=0.0):
    """Half a unit of the output type and 1e-5 beside it; for sums 3e-6 of the sum of absolute values (float32 additions
    in blocks)."""
    tolerance = 1.01 * ULP[dtype] * np.abs(expected) + 1e-5 * np.maximum(1, np.abs(expected)) + 3e-6 * bound
    error = np.abs(found - expected)
    assert (error <= tolerance).all(), (
        f"largest excess {np.nanmax(error - tolerance)}, NaN: {int(np.isnan(error).sum())}"
    )


@pytest.mark.parametrize("chip, dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_activation(host, chip, dtype, case):
    shape, terms, name, cores, channelwise = CASES[case]
    rng = np.random.default_rng(1)
    (x,), (x64,) = matrices(rng, shape, dtype, 1)
    params = parameters(rng, shape[-1], terms, channelwise, 1)
    (y,) = host.run("SeriesActivation", chip, cores, [x, *params], ref.CODES[name])
    assert_close(y, ref.series(name, x64, *(p.astype(np.float64) for p in params)), dtype)


@pytest.mark.parametrize("chip, dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_activation_grad(host, chip, dtype, case):
    shape, terms, name, cores, channelwise = CASES[case]
    rng = np.random.default_rng(2)
    (dy, x), (dy64, x64) = matrices(rng, shape, dtype, 2)
    params = parameters(rng, shape[-1], terms, channelwise, 1)
    dx, *sums = host.run("SeriesActivationGrad", chip, cores, [dy, x, *params], ref.CODES[name])
    dx64, sums64, bounds = ref.series_grad(name, dy64, x64, *(p.astype(np.float64) for p in params))
    assert_close(dx, dx64, dtype)
    for found, expected, bound, parameter in zip(sums, sums64, bounds, params):
        assert found.shape == parameter.shape
        assert_close(found, expected, "float32", bound)


@pytest.mark.parametrize("chip, dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_glu(host, chip, dtype, case):
    shape, terms, name, cores, channelwise = CASES[case]
    rng = np.random.default_rng(3)
    (gate, up), (gate64, up64) = matrices(rng, shape, dtype, 2)
    params = parameters(rng, shape[-1], terms, channelwise, 2)
    (y,) = host.run("SeriesGlu", chip, cores, [gate, up, *params], ref.CODES[name])
    gate_bias, up_bias, scale, shift = (p.astype(np.float64) for p in params)
    assert_close(y, ref.series(name, gate64, gate_bias, scale, shift) * (up64 + up_bias), dtype)


@pytest.mark.parametrize("chip, dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_glu_grad(host, chip, dtype, case):
    shape, terms, name, cores, channelwise = CASES[case]
    rng = np.random.default_rng(4)
    (dy, gate, up), (dy64, gate64, up64) = matrices(rng, shape, dtype, 3)
    params = parameters(rng, shape[-1], terms, channelwise, 2)
    dgate, dup, *sums = host.run("SeriesGluGrad", chip, cores, [dy, gate, up, *params], ref.CODES[name])
    gate_bias, up_bias, scale, shift = (p.astype(np.float64) for p in params)
    dgate64, (dbias, dscale, dshift), (b0, b2, b3) = ref.series_grad(
        name, dy64 * (up64 + up_bias), gate64, gate_bias, scale, shift
    )
    dup64 = dy64 * ref.series(name, gate64, gate_bias, scale, shift)
    assert_close(dgate, dgate64, dtype)
    assert_close(dup, dup64, dtype)
    expected = [dbias, ref.reduce_like(dup64, up_bias), dscale, dshift]
    bounds = [b0, ref.reduce_like(np.abs(dup64), up_bias), b2, b3]
    for found, value, bound, parameter in zip(sums, expected, bounds, params):
        assert found.shape == parameter.shape
        assert_close(found, value, "float32", bound)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ref.CODES)
def test_activations_far_from_zero(host, chip, name):
    """No overflow and no cancellation from -60 to 60; gelu_erf keeps 1e-5 where its polynomial is worst."""
    x = np.linspace(-60, 60, 4803, dtype=np.float32).reshape(-1, 3).copy()
    one, zero = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    params = [zero[0], one, zero]
    (y,) = host.run("SeriesActivation", chip, 3, [x, *params], ref.CODES[name])
    assert_close(y, ref.act(name, x.astype(np.float64)), "float32")
    dx, *_ = host.run("SeriesActivationGrad", chip, 3, [np.ones_like(x), x, *params], ref.CODES[name])
    assert_close(dx, ref.slope(name, x.astype(np.float64)), "float32")


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ref.CODES)
def test_activations_at_zero_and_around_it(host, chip, name):
    """0, -0, denormal and small numbers: gelu_erf divides by |v|, which no chip may do at 0."""
    sizes = np.array([0.0, 1e-45, 1e-38, 1e-30, 1e-20, 1e-10, 1e-5, 1e-3, 0.1], np.float32)
    x = np.stack([sizes, -sizes])
    params = [np.zeros(1, np.float32), np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)]
    (y,) = host.run("SeriesActivation", chip, 1, [x, *params], ref.CODES[name])
    assert_close(y, ref.act(name, x.astype(np.float64)), "float32")
    dx, *_ = host.run("SeriesActivationGrad", chip, 1, [np.ones_like(x), x, *params], ref.CODES[name])
    assert_close(dx, ref.slope(name, x.astype(np.float64)), "float32")


@pytest.mark.parametrize("chip", CHIPS)
def test_parameter_gradients_repeat_bit_for_bit(host, chip):
    """The sums do not depend on which core is faster."""
    rng = np.random.default_rng(5)
    (dy, x), _ = matrices(rng, (96, 80), "float32", 2)
    params = parameters(rng, 80, 2, (1, 0, 1), 1)
    runs = [host.run("SeriesActivationGrad", chip, 8, [dy, x, *params]) for _ in range(3)]
    for other in runs[1:]:
        assert all((a == b).all() for a, b in zip(runs[0], other))


@pytest.mark.parametrize("chip", CHIPS)
def test_no_rows_give_zero_gradients(host, chip):
    x = np.zeros((0, 48), np.float32)
    params = parameters(np.random.default_rng(6), 48, 2, (1, 1, 0), 1)
    dx, *sums = host.run("SeriesActivationGrad", chip, 3, [x, x, *params])
    assert dx.size == 0 and all((s == 0).all() for s in sums)


@pytest.mark.parametrize("chip", CHIPS)
def test_infinity_and_nan_stay_where_they_are(host, chip):
    """One bad value spoils its own output and, as a sum must, the gradients of its channel only."""
    x = np.zeros((40, 48), np.float32)
    x[7, 11] = np.nan
    params = parameters(np.random.default_rng(7), 48, 2, (1, 1, 1), 1)
    dx, *sums = host.run("SeriesActivationGrad", chip, 3, [np.ones_like(x), x, *params])
    assert np.isnan(dx[7, 11]) and np.isnan(dx).sum() == 1
    assert all(np.isnan(s.reshape(-1, 48)[:, 11]).all() and np.isnan(s).sum() == s.size // 48 for s in sums)


def test_the_unified_buffer_is_used(host):
    """Tiles fill most of the buffer for a large matrix, or each would pay the start of its copies for little work."""
    rng = np.random.default_rng(8)
    (x,), _ = matrices(rng, (256, 1024), "float16", 1)
    host.run("SeriesActivation", "ascend910b", 2, [x, *parameters(rng, 1024, 2, (1, 1, 1), 1)])
    assert host.ub_peak > 0.7 * 192 * 1024


@pytest.mark.parametrize("channels, terms", [(64513, 1), (3841, 50), (897, 100), (33, 300), (2056, 1)])
def test_last_tile_on_910_is_no_shorter_than_a_block(host, channels, terms):
    """It is stored from its end, so one that is shorter would need scalar stores, which many cores cannot do side by
    side."""
    shapes = [(64, channels), (64, channels), (channels,), (terms, channels), (terms, channels)]
    width = host.tile("SeriesActivationGrad", "ascend910", 8, shapes, ["float32"] * 5).field("tileColumns")
    assert channels <= width or channels % width >= 16


@pytest.mark.parametrize("chip", CHIPS)
def test_the_unified_buffer_is_never_exceeded(host, chip):
    """Tiling leaves room for what is not a block: parameters, sums, staging, flags. With 720 channels on ascend910
    blocks alone fill all but 64 bytes."""
    peak = 0
    for channels in (96, 200, 720):
        rng = np.random.default_rng(channels)
        (dy, x), _ = matrices(rng, (512, channels), "float32", 2)
        host.run("SeriesActivationGrad", chip, 8, [dy, x, *parameters(rng, channels, 1, (1, 1, 1), 1)])
        peak = max(peak, host.ub_peak)
    assert peak > 0.97 * 1024 * (192 if chip == "ascend910b" else 256)


@pytest.mark.parametrize(
    "shapes, attr, reason",
    [
        ([(4, 8), (8,), (2, 8), (2, 8)], 4, "activation must be 0"),
        ([(4, 8), (7,), (2, 8), (2, 8)], 0, "a bias must be [C] or [1]"),
        ([(4, 8), (8,), (2, 8), (3, 8)], 0, "scale and shift [n, C] or [n, 1]"),
        ([(4, 8), (8,), (16,), (16,)], 0, "must be [n, C] or [n, 1] with n >= 1"),
        ([(4, 0), (1,), (1, 1), (1, 1)], 0, "needs channels"),
        ([(4, 64), (1,), (5000, 1), (5000, 1)], 0, "do not fit the unified buffer"),
    ],
)
def test_tiling_refuses_with_a_reason(host, capfd, shapes, attr, reason):
    assert host.tile("SeriesActivation", "ascend910b", 8, shapes, ["float32"] * 4, attr) is None
    said = capfd.readouterr().err
    assert said.startswith("SeriesActivation: ") and reason in said


def test_gradients_refuse_matrices_of_two_shapes(host, capfd):
    shapes = [(4, 8), (4, 16), (8,), (1, 8), (1, 8)]
    assert host.tile("SeriesActivationGrad", "ascend910b", 8, shapes, ["float32"] * 5) is None
    assert "one shape" in capfd.readouterr().err
