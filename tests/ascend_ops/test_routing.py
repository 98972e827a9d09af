"""Routing of tokens to experts against direct computation for each token, in numpy."""

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from ascend_ops.custom import kernel
from ascend_ops.routing import moe_combine, moe_dispatch, rre_route
from tests.ascend_ops.common import (
    MODES,
    assert_close,
    assert_refused,
    compiled,
    differentiated,
    forward,
    forward_and_gradients,
    in_mode,
    numeric_gradients,
    rounded,
    to_float64,
    to_tensor,
)

pytestmark = [pytest.mark.usefixtures("mindspore_cpu"), pytest.mark.thinned]  # graph mode: MindSpore's default is eager
NUM_EXPERTS = 7


def draw(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape)


def choose_experts(*shape, num_experts=NUM_EXPERTS, seed=0):
    return np.random.RandomState(seed).randint(0, num_experts, shape).astype(np.int32)


def assert_stops(call, *tensors):
    """The step ends with an error once the result is asked for. What fails inside a graph costs three seconds."""
    with in_mode(ms.PYNATIVE_MODE), pytest.raises(RuntimeError):
        result = call(*tensors)
        (result[0] if isinstance(result, tuple) else result).asnumpy()


def dispatch(x, expert):
    return moe_dispatch(x, expert, NUM_EXPERTS)


def dispatch_to_640(x, expert):
    return moe_dispatch(x, expert, 640)


def dispatch_reference(x, expert, num_experts=NUM_EXPERTS):
    """Rows, order and counts, by collecting the slots of one expert after the other."""
    flat = expert.ravel()
    order = [slot for e in range(num_experts) for slot in range(flat.size) if flat[slot] == e]
    top_k = flat.size // x.shape[0]
    return (
        np.stack([x[slot // top_k] for slot in order]),
        np.array(order),
        np.array([(flat == e).sum() for e in range(num_experts)]),
    )


def combine_reference(rows, order, weights):
    """For each sorted row: add it to its token."""
    top_k = weights.shape[1]
    out = np.zeros((weights.shape[0], rows.shape[1]))
    for row, slot in zip(rows, order, strict=True):
        out[slot // top_k] += weights[slot // top_k, slot % top_k] * row
    return out


# ---- rre_route


@pytest.mark.parametrize("domain_shape", [(3, 50), (3, 1), (3,)])
def test_route_reads_the_table(backend, domain_shape):
    table = choose_experts(4, 30, num_experts=12)
    ids = choose_experts(3, 50, num_experts=30, seed=1)
    domain = choose_experts(*domain_shape, num_experts=4, seed=2)
    lines = domain if domain.shape == ids.shape else domain.reshape(3, 1)
    expert = forward(rre_route, [Tensor(domain), Tensor(ids), Tensor(table)])[0]
    assert expert.dtype == np.int32
    np.testing.assert_array_equal(expert, table[np.broadcast_to(lines, ids.shape), ids])


@pytest.mark.parametrize("shape", [(1,), (70001,), (2, 3, 5)])
def test_route_of_any_length_rank_and_threads(backend, shape):
    table, ids, domain = (
        choose_experts(2, 1000),
        choose_experts(*shape, num_experts=1000, seed=1),
        choose_experts(*shape, num_experts=2, seed=2),
    )
    np.testing.assert_array_equal(
        forward(rre_route, [Tensor(domain), Tensor(ids), Tensor(table)])[0], table[domain, ids]
    )


@functools.cache
def shared_route(backend):
    """Compiled once for all rows of the next test."""
    return compiled(rre_route)


@pytest.mark.parametrize(("domain", "ids"), [(4, 0), (-1, 0), (0, 30), (0, -1), (0, 2**31 - 1), (-(2**31), 0)])
def test_route_out_of_range_stops(backend, domain, ids):
    table, good = choose_experts(4, 30), np.zeros(20000, np.int32)
    bad_domain, bad_ids = good.copy(), good.copy()
    bad_domain[17001], bad_ids[17001] = domain, ids
    assert_stops(rre_route, Tensor(bad_domain), Tensor(bad_ids), Tensor(table))
    found = shared_route(backend)([Tensor(good), Tensor(good), Tensor(table)])[0]
    np.testing.assert_array_equal(found, np.full(good.shape, table[0, 0]))


# ---- moe_dispatch


@pytest.mark.parametrize(
    ("expert_shape", "width", "dtype"),
    [
        ((37,), 19, "float32"),
        ((37, 1), 5, "bfloat16"),
        ((37, 2), 16, "float32"),
        ((37, 2), 33, "float16"),
        ((37, 3), 64, "bfloat16"),
    ],
)
def test_dispatch_and_gradient(backend, expert_shape, width, dtype):
    x, expert = rounded(draw(37, width), dtype), choose_experts(*expert_shape)
    expert[expert == 2] = 3  # an expert without tokens
    wanted, cotangent = dispatch_reference(x, expert), rounded(draw(expert.size, width, seed=1), dtype)
    found, (gradient,) = forward_and_gradients(dispatch, [to_tensor(x, dtype), Tensor(expert)], [cotangent], (0,))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)  # copies and integers: exact
    assert found[1].dtype == found[2].dtype == np.int32
    dx = np.zeros_like(x)
    np.add.at(dx, wanted[1] // (expert.size // 37), cotangent)
    assert_close(gradient, dx, dtype)


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (5000, 33), (70000, 1)])
def test_dispatch_to_many_experts_on_several_threads(backend, tokens, width):
    x, expert = draw(tokens, width).astype(np.float32), choose_experts(tokens, num_experts=640)
    rows, order, counts = forward(dispatch_to_640, [Tensor(x), Tensor(expert)])
    stable = np.argsort(expert, kind="stable")
    np.testing.assert_array_equal(order, stable)
    np.testing.assert_array_equal(rows, x[stable])
    np.testing.assert_array_equal(counts, np.bincount(expert, minlength=640))


def test_dispatch_of_all_tokens_to_one_expert_keeps_their_order(backend):
    x = draw(300, 100).astype(np.float32)
    rows, order, counts = forward(dispatch, [Tensor(x), Tensor(np.full(300, NUM_EXPERTS - 1, np.int32))])
    np.testing.assert_array_equal(rows, x)
    np.testing.assert_array_equal(order, np.arange(300))
    np.testing.assert_array_equal(counts, [0] * (NUM_EXPERTS - 1) + [300])


@pytest.mark.parametrize("wrong", [-1, NUM_EXPERTS, 2**31 - 1, -(2**31)])
def test_dispatch_to_an_expert_out_of_range_stops(backend, wrong):
    expert = choose_experts(100, 2)
    expert[60, 1] = wrong
    assert_stops(dispatch, to_tensor(draw(100, 8)), Tensor(expert))


def test_dispatch_to_an_expert_out_of_range_stops_a_graph(backend):
    with pytest.raises(RuntimeError):
        forward(dispatch, [to_tensor(draw(3, 8)), Tensor(np.array([0, NUM_EXPERTS, 1], np.int32))])


# ---- moe_combine


def combine_two_without_weights(rows, order):
    return moe_combine(rows, order, top_k=2)


@pytest.mark.parametrize(
    ("top_k", "width", "dtype"), [(1, 21, "float32"), (2, 16, "bfloat16"), (2, 21, "float16"), (3, 5, "float32")]
)
def test_combine_and_gradients(backend, top_k, width, dtype):
    rows, weights = rounded(draw(11 * top_k, width), dtype), rounded(draw(11, top_k, seed=1), "float32")
    order = np.random.RandomState(2).permutation(11 * top_k).astype(np.int32)
    cotangent = rounded(draw(11, width, seed=3), dtype)
    tensors = [to_tensor(rows, dtype), Tensor(order), to_tensor(weights)]
    (out,), both = forward_and_gradients(moe_combine, tensors, [cotangent], (0, 2))
    assert_close(out, combine_reference(rows, order, weights), dtype)
    wanted = numeric_gradients(combine_reference, [rows, order, weights], [cotangent], (0, 2))
    for found, expected in zip(both, wanted, strict=True):
        assert_close(found, expected, dtype)


@pytest.mark.parametrize(
    ("call", "top_k", "dtype"), [(moe_combine, 1, "bfloat16"), (combine_two_without_weights, 2, "float32")]
)
def test_combine_without_weights(backend, call, top_k, dtype):
    rows, order = (
        rounded(draw(12 * top_k, 35), dtype),
        np.random.RandomState(2).permutation(12 * top_k).astype(np.int32),
    )
    tensors, ones, cotangent = (
        [to_tensor(rows, dtype), Tensor(order)],
        np.ones((12, top_k)),
        rounded(draw(12, 35, seed=3), dtype),
    )
    (out,), (gradient,) = forward_and_gradients(call, tensors, [cotangent], (0,))
    assert_close(out, combine_reference(rows, order, ones), dtype)
    np.testing.assert_array_equal(gradient, cotangent[order // top_k])


def test_combine_takes_weights_of_the_dtype_of_rows(backend):
    rows, weights, order = (
        draw(12, 8),
        rounded(draw(6, 2, seed=1), "bfloat16"),
        np.arange(12, dtype=np.int32)[::-1].copy(),
    )
    tensors = [to_tensor(rows, "bfloat16"), Tensor(order), to_tensor(weights, "bfloat16")]
    out, (_, gradient) = ms.value_and_grad(moe_combine, (0, 2))(*tensors)
    assert_close(to_float64(out), combine_reference(rounded(rows, "bfloat16"), order, weights), "bfloat16")
    assert gradient.dtype == ms.bfloat16


def test_combine_of_many_rows_on_several_threads(backend):
    rows, weights = draw(9000, 37).astype(np.float32), draw(3000, 3, seed=1).astype(np.float32)
    order, cotangent = (
        np.random.RandomState(2).permutation(9000).astype(np.int32),
        draw(3000, 37, seed=3).astype(np.float32),
    )
    tensors = [Tensor(rows), Tensor(order), Tensor(weights)]
    (out,), (drows, dweights) = forward_and_gradients(moe_combine, tensors, [cotangent], (0, 2))
    assert_close(out, combine_reference(rows.astype(np.float64), order, weights))
    assert_close(drows, weights.ravel()[order][:, None] * cotangent[order // 3].astype(np.float64))
    products = np.empty(9000)
    products[order] = (cotangent[order // 3].astype(np.float64) * rows).sum(1)
    assert_close(dweights, products.reshape(3000, 3))


@pytest.mark.parametrize(("index", "wrong"), [(3, 4), (0, 9), (9, -1), (5, 10), (5, 2**31 - 1)])
def test_combine_in_an_order_that_is_no_permutation_stops(backend, index, wrong):
    order = np.arange(10, dtype=np.int32)
    order[index] = wrong
    tensors = [to_tensor(draw(10, 4)), Tensor(order), to_tensor(draw(5, 2))]
    assert_stops(moe_combine, *tensors)
    if backend == "cpu":
        assert_stops(kernel("MoeCombineGrad"), to_tensor(draw(5, 4)), *tensors)


# ---- together


def mixture(x, expert, gate, weight):
    """Each expert's linear map of its tokens, the experts by masks: slow and plain."""
    rows, order, counts = moe_dispatch(x, expert, 3)
    ends = ops.cumsum(counts, 0)
    row = ops.arange(rows.shape[0])
    result = ops.zeros_like(rows)
    for e in range(3):
        mine = ops.logical_and(row < ends[e], row >= ends[e] - counts[e])
        result = result + ops.matmul(rows, weight[e]) * ops.cast(ops.expand_dims(mine, -1), ms.float32)
    return moe_combine(result, order, gate)


def mixture_reference(x, expert, gate, weight):
    """Token by token, with no sorting."""
    return np.stack(
        [sum(gate[t, k] * (x[t] @ weight[expert[t, k]]) for k in range(expert.shape[1])) for t in range(len(x))]
    )


def test_dispatch_experts_combine_is_the_mixture_of_each_token(backend):
    arrays = [draw(23, 4), choose_experts(23, 2, num_experts=3), draw(23, 2, seed=1), draw(3, 4, 4, seed=2)]
    exact = [a if a.dtype == np.int32 else rounded(a, "float32") for a in arrays]
    tensors, cotangent = [to_tensor(a) for a in arrays], rounded(draw(23, 4, seed=3), "float32")
    (out,), all_three = forward_and_gradients(mixture, tensors, [cotangent], (0, 2, 3))
    assert_close(out, mixture_reference(*exact))
    wanted = numeric_gradients(mixture_reference, exact, [cotangent], (0, 2, 3))
    for found, expected in zip(all_three, wanted, strict=True):
        assert_close(found, expected)


def there_and_back(x, expert):
    rows, order, _ = dispatch(x, expert)
    return moe_combine(rows, order)


def test_there_and_back_is_the_identity_and_nan_stays(backend):
    x = draw(50, 20).astype(np.float32)
    x[7], x[11, 3], x[12] = np.nan, np.inf, -0.0
    expert, cotangent = Tensor(choose_experts(50)), draw(50, 20, seed=1).astype(np.float32)
    run = differentiated(there_and_back, (0,))
    np.testing.assert_array_equal(run([Tensor(x), expert], [cotangent])[0][0], x)
    x[7], x[11, 3] = 0, 0  # NaN times a cotangent would be the loss's, not the operator's
    np.testing.assert_array_equal(run([Tensor(x), expert], [cotangent])[1][0], cotangent)


def test_nan_in_one_choice_reaches_only_its_token(backend):
    rows = draw(20, 17)
    rows[5] = np.nan
    out = forward(
        moe_combine, [to_tensor(rows), Tensor(np.arange(20, dtype=np.int32)), Tensor(np.zeros((10, 2), np.float32))]
    )[0]
    assert np.isnan(out[2]).all() and not np.isnan(np.delete(out, 2, 0)).any()


def test_eager_calls_and_views(backend):
    x, expert, gate = draw(40, 6).astype(np.float32), choose_experts(40, 2), draw(20, 2, seed=1).astype(np.float32)
    wanted = dispatch_reference(x[::2], expert[::2])
    with in_mode(ms.PYNATIVE_MODE):
        rows, order, _ = dispatch(Tensor(x)[::2], Tensor(expert)[::2])
        np.testing.assert_array_equal(rows.asnumpy(), wanted[0])
        assert_close(moe_combine(rows, order, Tensor(gate)).asnumpy(), combine_reference(*wanted[:2], gate))


class Dynamic(ms.nn.Cell):
    """The operators where the number of tokens is not known when the graph is compiled."""

    def construct(self, x, expert, gate):
        rows, order, counts = dispatch(x, expert)
        return moe_combine(rows, order, gate) + moe_combine(rows, order, top_k=2), order, counts


class Sum(ms.nn.Cell):
    """The sum of the first output."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def construct(self, x, expert, gate):
        return self.cell(x, expert, gate)[0].sum()


class Gradient(ms.nn.Cell):
    """Gradients of a cell's sum for x and gate."""

    def __init__(self, cell):
        super().__init__()
        self.cell = Sum(cell)

    def construct(self, x, expert, gate):
        return ms.grad(self.cell, (0, 2))(x, expert, gate)


def test_one_graph_for_any_number_of_tokens(backend):
    cell, gradient = Dynamic(), Gradient(Dynamic())
    for net in (cell, gradient):
        net.set_inputs(
            Tensor(shape=[None, 8], dtype=ms.float32),
            Tensor(shape=[None, 2], dtype=ms.int32),
            Tensor(shape=[None, 2], dtype=ms.float32),
        )
    for tokens in (5, 64):
        x, expert, gate = (
            draw(tokens, 8).astype(np.float32),
            choose_experts(tokens, 2),
            draw(tokens, 2, seed=1).astype(np.float32),
        )
        tensors = [Tensor(x), Tensor(expert), Tensor(gate)]
        out, order, counts = cell(*tensors)
        wanted = dispatch_reference(x, expert)
        np.testing.assert_array_equal(order.asnumpy(), wanted[1])
        np.testing.assert_array_equal(counts.asnumpy(), wanted[2])
        assert_close(out.asnumpy(), x * (gate.sum(1) + 2)[:, None].astype(np.float64))
        dx, dgate = gradient(*tensors)
        assert_close(dx.asnumpy(), np.broadcast_to((gate.sum(1) + 2)[:, None], x.shape))
        assert_close(dgate.asnumpy(), np.broadcast_to(x.sum(1, dtype=np.float64)[:, None], gate.shape))


# ---- what is refused


def dispatch_to_none(x, expert):
    return moe_dispatch(x, expert, 0)


def combine_three(rows, order):
    return moe_combine(rows, order, top_k=3)


def combine_three_with_weights(rows, order, weights):
    return moe_combine(rows, order, weights, top_k=4)


def zeros(shape, dtype="int32"):
    return Tensor(np.zeros(shape), getattr(ms, dtype))


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("call", "tensors", "message"),
    [
        (
            rre_route,
            [zeros((2, 3)), zeros((2, 4)), zeros((2, 9))],
            r"rre_route: domain has shape \(2, 3\); it must be \(2, 4\) or \(2,\) or \(2, 1\)",
        ),
        (rre_route, [zeros((4,)), zeros((2, 4)), zeros((2, 9))], r"rre_route: domain has shape \(4,\); it must be"),
        (
            rre_route,
            [zeros((2,)), zeros((2,), "int64"), zeros((2, 9))],
            "rre_route: ids is int64; it must be int32; cast it",
        ),
        (
            rre_route,
            [zeros((2,), "float32"), zeros((2,)), zeros((2, 9))],
            "rre_route: domain is float32; it must be int32",
        ),
        (
            rre_route,
            [zeros((2,)), zeros((2,)), zeros((9,))],
            r"rre_route: table has shape \(9,\); it must have 2 dimensions",
        ),
        (rre_route, [zeros((0,)), zeros((0,)), zeros((2, 9))], "rre_route: domain has shape .* no dimension may be 0"),
        (
            dispatch,
            [zeros((4, 3), "float32"), zeros((5,))],
            r"moe_dispatch: expert has shape \(5,\); its first dimension must be 4",
        ),
        (dispatch, [zeros((4, 3), "float32"), zeros((4,), "int64")], "moe_dispatch: expert is int64; it must be int32"),
        (dispatch, [zeros((4, 3)), zeros((4,))], "moe_dispatch: x is int32; it must be one of float32"),
        (dispatch, [zeros((4,), "float32"), zeros((4,))], "moe_dispatch: x has shape .* 2 dimensions"),
        (dispatch, [zeros((4, 3), "float32"), zeros((4, 1, 1))], "moe_dispatch: expert has shape .* 1 to 2 dimensions"),
        (
            dispatch_to_none,
            [zeros((4, 3), "float32"), zeros((4,))],
            "moe_dispatch: num_experts=0: it must be a whole number of at least 1",
        ),
        (
            moe_combine,
            [zeros((4, 3), "float32"), zeros((5,))],
            r"moe_combine: order has shape \(5,\); it must be \(4,\): rows has 4 rows",
        ),
        (
            moe_combine,
            [zeros((4, 3), "float32"), zeros((4,)), zeros((4, 2), "float32")],
            r"moe_combine: weights has shape \(4, 2\); .* 4 slots",
        ),
        (
            moe_combine,
            [zeros((4, 3), "float32"), zeros((4,)), zeros((4,), "float32")],
            "moe_combine: weights has shape .* 2 dimensions",
        ),
        (moe_combine, [zeros((4, 3), "float32"), zeros((4,)), zeros((2, 2))], "moe_combine: weights is int32"),
        (
            combine_three,
            [zeros((4, 3), "float32"), zeros((4,))],
            "moe_combine: top_k=3: it must be at least 1 and divide the 4 slots",
        ),
        (
            combine_three_with_weights,
            [zeros((4, 3), "float32"), zeros((4,)), zeros((2, 2), "float32")],
            "moe_combine: top_k=4: weights have 2 columns",
        ),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, call, tensors, message, mode):
    assert_refused(call, tensors, message, mode)
