"""AdamW and the squared norm against float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

import ascend_ops
from ascend_ops.optimizer import adamw, squared_norm, squared_norms
from tests.ascend_ops.common import MODES, assert_refused, compiled, forward, gradients, rounded, to_tensor

pytestmark = pytest.mark.thinned

BETA1, BETA2, EPS, DECAY = (float(np.float32(value)) for value in (0.9, 0.95, 1e-3, 0.1))  # as the kernels know them


def reference(p, m, v, gradient, lr, factor, decay):
    g = gradient * factor
    m, v = m + (1 - BETA1) * (g - m), v + (1 - BETA2) * (g * g - v)
    return p - lr * (m / (np.sqrt(v) + EPS) + decay * p), m, v


def draw(*shape, seed=0):
    return np.array(np.random.RandomState(seed).randn(*shape), np.float32)


class OneParameter(nn.Cell):
    def __init__(self, p, m, v):
        super().__init__()
        self.p, self.m, self.v = (Parameter(Tensor(a), name=n) for a, n in ((p, "p"), (m, "m"), (v, "v")))

    def construct(self, gradient, lr, factor):
        return adamw(self.p, self.m, self.v, gradient, lr, factor, BETA1, BETA2, EPS, DECAY)

    def state(self):
        return [x.asnumpy() for x in (self.p, self.m, self.v)]


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "float32"), ((1,), "float16"), ((3, 37), "bfloat16"), ((4, 16), "float32"), ((70001,), "float32")],
)
def test_one_update(backend, shape, dtype, mode):
    p, m, v = (draw(*shape, seed=s) for s in range(3))
    v, gradient = np.abs(v), draw(*shape, seed=3) * 64
    ms.set_context(mode=mode)
    try:
        cell = OneParameter(p, m, v)
        done = cell(to_tensor(gradient, dtype), Tensor(0.25, ms.float32), Tensor([1 / 64], ms.float32))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert done.shape == (1,) and done.dtype == ms.float32
    exact = [a.astype(np.float64) for a in (p, m, v)]
    for found, wanted in zip(
        cell.state(), reference(*exact, rounded(gradient, dtype), 0.25, 1 / 64, DECAY), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)


def test_agrees_with_mindspore_to_rounding():
    """The kernel and ops.AdamWeightDecay, which the composed form is: five steps, all three tensors."""
    states = {}
    for name in ("cpu", "composed"):
        with ascend_ops.use(name):
            cell = OneParameter(draw(999), np.zeros(999, np.float32), np.zeros(999, np.float32))
            for step in range(5):
                cell(to_tensor(draw(999, seed=step)), Tensor(0.1, ms.float32), Tensor(1.0, ms.float32))
            states[name] = cell.state()
    for a, b in zip(states["cpu"], states["composed"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


_step = ops.MultitypeFuncGraph("step")


@_step.register("Tensor", "Tensor", "Number", "Tensor", "Tensor", "Tensor", "Tensor")
def _step_parameter(lr, factor, decay, parameter, m, v, gradient):
    return adamw(parameter, m, v, gradient, lr, factor, BETA1, BETA2, EPS, decay)


class TrainStep(nn.Cell):
    """A step as the training loop builds it: gradients, their norm, and if that is finite a clipped update of all
    parameters."""

    def __init__(self, arrays):
        super().__init__()
        self.parameters = ParameterTuple([Parameter(Tensor(a), name=f"p{i}") for i, a in enumerate(arrays)])
        self.m = ParameterTuple(
            [Parameter(Tensor(np.zeros_like(a)), name=f"m{i}", requires_grad=False) for i, a in enumerate(arrays)]
        )
        self.v = ParameterTuple(
            [Parameter(Tensor(np.zeros_like(a)), name=f"v{i}", requires_grad=False) for i, a in enumerate(arrays)]
        )
        self.decay = (DECAY, 0.0, DECAY)
        self.hyper_map = ops.HyperMap()
        self.value_and_grad = ops.value_and_grad(self.loss, None, self.parameters)

    def loss(self, x):
        a, b, c = self.parameters
        return ops.square(ops.tanh(x * a + b) * c).sum()

    def construct(self, x, lr):
        loss, gradients = self.value_and_grad(x)
        norm = ops.sqrt(squared_norm(gradients[0]) + squared_norm(gradients[1]) + squared_norm(gradients[2]))
        applied = ops.isfinite(norm)
        if applied:
            factor = 1.0 / ops.maximum(norm, 1.0)
            loss = ops.depend(
                loss,
                self.hyper_map(ops.partial(_step, lr, factor), self.decay, self.parameters, self.m, self.v, gradients),
            )
        return loss, norm, applied


def loss_and_gradients(x, a, b, c):
    t = np.tanh(x * a + b)
    slope = 2 * t * c * c * (1 - t * t)
    return ((t * c) ** 2).sum(), [slope * x, slope, 2 * t * t * c]


def test_training_in_a_branch_of_a_graph(backend):
    arrays = [draw(3, 21, seed=s) for s in range(3)]
    cell, x = TrainStep(arrays), draw(3, 21, seed=9)
    state = [(a.astype(np.float64), np.zeros(a.shape), np.zeros(a.shape)) for a in arrays]
    for step in range(5):
        lr = 0.1 / (step + 1)
        loss, norm, applied = cell(Tensor(x), Tensor(lr, ms.float32))
        wanted, gradients = loss_and_gradients(
            x.astype(np.float64), *(p for p, _, _ in state)
        )  # of the values before the step
        wanted_norm = np.sqrt(sum((g * g).sum() for g in gradients))
        np.testing.assert_allclose([float(loss), float(norm)], [wanted, wanted_norm], rtol=1e-5)
        assert bool(applied)
        factor = 1 / max(wanted_norm, 1)
        state = [reference(*s, g, lr, factor, d) for s, g, d in zip(state, gradients, cell.decay, strict=True)]
        for i, values in enumerate(state):
            for found, exact in zip((cell.parameters[i], cell.m[i], cell.v[i]), values, strict=True):
                np.testing.assert_allclose(found.asnumpy(), exact, atol=1e-5)
    before = [p.asnumpy().copy() for p in (*cell.parameters, *cell.m, *cell.v)]
    x[0, 0] = np.inf
    assert not bool(cell(Tensor(x), Tensor(0.1, ms.float32))[2])
    for p, kept in zip((*cell.parameters, *cell.m, *cell.v), before, strict=True):
        np.testing.assert_array_equal(p.asnumpy(), kept)


def test_nan_stays_nan(backend):
    gradient = draw(40)
    gradient[17] = np.nan
    cell = OneParameter(draw(40), np.zeros(40, np.float32), np.zeros(40, np.float32))
    cell(Tensor(gradient), Tensor(0.1, ms.float32), Tensor(1.0, ms.float32))
    for found in cell.state():
        np.testing.assert_array_equal(np.isnan(found), np.isnan(gradient))


@pytest.mark.thinned(1)
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])  # float32 on a CPU: the next test
@pytest.mark.parametrize("shape", [(), (1,), (5, 13), (4097,), (300, 301)])
def test_squared_norm(backend, shape, dtype):
    x = draw(*shape)
    found = forward(squared_norm, [to_tensor(x, dtype)])[0]
    assert found.shape == ()
    np.testing.assert_allclose(found, (rounded(x, dtype) ** 2).sum(), rtol=1e-6)


def test_squared_norm_of_many_elements():
    """A float32 sum of 1.6e7 equal terms stops growing; float32 blocks into float64 are right. Of the kernel alone."""
    x = np.full(1 << 24, 1 / 3, np.float32)
    np.testing.assert_allclose(forward(squared_norm, [Tensor(x)])[0], float(x[0]) ** 2 * x.size, rtol=1e-6)


def test_squared_norm_has_a_gradient_and_keeps_nan(backend):
    x = draw(5, 7)
    np.testing.assert_allclose(gradients(squared_norm, [Tensor(x)], [np.array(3.0)], [0])[0], 6 * x, rtol=1e-6)
    x[4, 6] = np.nan
    assert np.isnan(forward(squared_norm, [Tensor(x)])[0])


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 70001), (3, 5, 13), (64, 3300), (5,), (3, 40000)])
def test_squared_norms_are_those_of_each_line(backend, shape, dtype):
    """Bit for bit, whatever stands beside a line; 40,000 elements are cut for two threads. NaN stays in its line."""
    x, norms, norm = draw(*shape), compiled(squared_norms), compiled(squared_norm)
    found = norms([to_tensor(x, dtype)])[0]
    assert found.shape == shape[:1]
    np.testing.assert_allclose(found, (rounded(x, dtype) ** 2).sum(tuple(range(1, len(shape)))), rtol=2e-6)
    for k in {0, shape[0] // 2, shape[0] - 1}:
        assert found[k] == norm([to_tensor(x[k], dtype)])[0]
    x[0] = np.nan
    np.testing.assert_array_equal(norms([to_tensor(x, dtype)])[0][1:], found[1:])


class Lazy(OneParameter):
    """An update of the lines whose gradient is not zero; `eps` of PanGu-Sigma's experts."""

    def construct(self, gradient, lr, factor):
        norms = squared_norms(gradient)
        return adamw(self.p, self.m, self.v, gradient, lr, factor, BETA1, BETA2, 1e-20, DECAY, norms)


class Alone(OneParameter):
    def construct(self, gradient, lr, factor):
        return adamw(self.p, self.m, self.v, gradient, lr, factor, BETA1, BETA2, 1e-20, DECAY)


CONTROLS = (Tensor(0.25, ms.float32), Tensor(0.5, ms.float32))


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(
    ("shape", "touched", "dtype"),
    [
        ((5, 7, 3), [1, 4], "float32"),
        ((4, 9001), [0, 2, 3], "bfloat16"),
        ((6,), [5], "float32"),
        ((3, 8), [], "float32"),
        ((1, 5), [], "float32"),
        ((1, 5), [0], "float16"),
    ],
)
def test_lazy_update(backend, shape, touched, dtype, mode):
    """Lines with a gradient get the bits of an update of their own, twice; the others keep theirs, NaN and -0 too."""
    p, m, v = (draw(*shape, seed=s) for s in range(3))
    v, gradient = np.abs(v), draw(*shape, seed=3)
    rest = [k for k in range(shape[0]) if k not in touched]
    gradient[rest] = 0
    p[rest[:1]], v[rest[:1]], m[rest[:1]] = -0.0, np.nan, np.inf
    ms.set_context(mode=mode)
    try:
        cell = Lazy(p, m, v)
        for _ in range(2):
            done = cell(to_tensor(gradient, dtype), *CONTROLS)
        assert done.asnumpy() == [1]
        found = cell.state()
        if touched:
            alone = Alone(p[touched], m[touched], v[touched])
            for _ in range(2):
                alone(to_tensor(gradient[touched], dtype), *CONTROLS)
            for a, b in zip(found, alone.state(), strict=True):
                np.testing.assert_array_equal(a[touched].view(np.int32), b.view(np.int32))
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    for a, before in zip(found, (p, m, v), strict=True):
        np.testing.assert_array_equal(a[rest].view(np.int32), before[rest].view(np.int32))


class GivenNorms(OneParameter):
    def construct(self, gradient, lr, factor, norms):
        return adamw(self.p, self.m, self.v, gradient, lr, factor, BETA1, BETA2, EPS, DECAY, norms)


def test_only_a_norm_of_zero_leaves_a_line_out(backend):
    """NaN must reach the weights as it does without norms."""
    arrays = [np.ones((4, 3), np.float32)] * 3
    cell = GivenNorms(*arrays)
    cell(Tensor(arrays[0]), *CONTROLS, Tensor(np.array([0, np.nan, 1e-37, -0.0], np.float32)))
    assert [bool((row != 1).all()) for row in cell.state()[0]] == [False, True, True, False]


def test_eps_of_1e_20_moves_nothing_where_nothing_was_learned(backend):
    """0 / (0 + 1e-20) is 0, and a gradient whose square vanishes in float32 makes a finite step."""
    zeros = np.zeros((2, 20), np.float32)
    p, gradient = draw(2, 20), np.repeat(np.float32([[0], [1e-24]]), 20, 1)
    cell = Alone(p, zeros, zeros)
    cell(Tensor(gradient), Tensor(1e-3, ms.float32), Tensor(1.0, ms.float32))
    found = cell.state()[0]
    np.testing.assert_allclose(found[0], p[0] * (1 - 1e-3 * DECAY), rtol=1e-6)
    assert np.isfinite(found).all()


def lazy_update(p, m, v, gradient, norms):
    one = ops.ones((), ms.float32)
    return adamw(p, m, v, gradient, one, one, BETA1, BETA2, EPS, DECAY, norms)


def update(p, m, v, gradient):
    return adamw(p, m, v, gradient, ops.ones((), ms.float32), ops.ones((), ms.float32), BETA1, BETA2, EPS, DECAY)


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("call", "shapes", "dtypes", "message"),
    [
        (
            update,
            [(2, 3)] * 3 + [(3, 2)],
            {},
            r"adamw: gradient has shape \(3, 2\); it must be \(2, 3\): the shape of parameter",
        ),
        (update, [(2, 3), (3,), (2, 3), (2, 3)], {}, r"adamw: m has shape \(3,\); it must be \(2, 3\)"),
        (update, [(2, 3)] * 4, {2: "float16"}, "adamw: v is float16; it must be float32"),
        (update, [(2, 3)] * 4, {3: "int32"}, "adamw: gradient is int32; it must be one of float32"),
        (update, [(2, 0)] * 4, {}, "adamw: parameter has shape .*no dimension may be 0"),
        (
            lazy_update,
            [(2, 3)] * 4 + [(3,)],
            {},
            r"adamw: norms has shape \(3,\); it must be \(2,\): parameter has shape \(2, 3\)",
        ),
        (
            lazy_update,
            [(2, 3)] * 4 + [(2,)],
            {4: "float16"},
            "adamw: norms is float16; it must be float32; give squared",
        ),
        (lazy_update, [()] * 4 + [(1,)], {}, r"adamw: parameter has shape \(\); it must have at least 1 dimension"),
        (squared_norm, [(2, 3)], {0: "int32"}, "squared_norm: x is int32; it must be one of float32"),
        (squared_norms, [(2, 3)], {0: "int32"}, "squared_norms: x is int32; it must be one of float32"),
        (squared_norms, [()], {}, r"squared_norms: x has shape \(\); it must have at least 1 dimension"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, call, shapes, dtypes, message, mode):
    tensors = [Tensor(np.ones(shape), getattr(ms, dtypes.get(i, "float32"))) for i, shape in enumerate(shapes)]
    assert_refused(call, tensors, message, mode)
