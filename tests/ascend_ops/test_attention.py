"""Attention against float64 formulas: index patterns, segments, caches, grouped heads, odd sizes, threads."""

import functools
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import ascend_ops
from ascend_ops import library
from ascend_ops.attention import causal_attention
from ascend_ops.custom import attribute, kernel
from tests.ascend_ops.common import (
    MODES,
    assert_close,
    assert_refused,
    differentiated,
    forward,
    forward_and_gradients,
    hash_reference,
    numeric_gradients,
    rounded,
    to_float64,
    to_tensor,
)

pytestmark = pytest.mark.thinned

UNUSED = 2**30


def visible(q_index, k_index, q_segment, k_segment):
    return (k_index[:, None, :] <= q_index[:, :, None]) & (k_segment[:, None, :] == q_segment[:, :, None])


def attention(q, k, v, see, scale=None):
    """out [B, Q, H, D], logsumexp [B, H, Q] and probabilities [B, H, Q, K] in float64; `see` is [B, Q, K]."""
    group, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5 if scale is None else scale
    scores = np.where(see[:, None], np.einsum("bqhd,bkhd->bhqk", q, np.repeat(k, group, 2)) * scale, -np.inf)
    top = scores.max(-1, keepdims=True)
    top = np.where(np.isneginf(top), 0, top)
    p = np.exp(scores - top)
    total = p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        logsumexp = (np.log(total) + top)[..., 0]
    p = p / np.where(total == 0, 1, total)
    return np.einsum("bhqk,bkhd->bqhd", p, np.repeat(v, group, 2)), logsumexp, p


def attention_gradients(q, k, v, see, dout, scale=None):
    """dq, dk, dv in float64, by the formulas; the numeric gradients of the first test vouch for them."""
    group, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5 if scale is None else scale
    p = attention(q, k, v, see, scale)[2]
    dp = np.einsum("bqhd,bkhd->bhqk", dout, np.repeat(v, group, 2))
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    dk, dv = np.einsum("bhqk,bqhd->bkhd", ds, q), np.einsum("bhqk,bqhd->bkhd", p, dout)
    dk, dv = (x.reshape(*k.shape[:3], group, -1).sum(3) for x in (dk, dv))
    return np.einsum("bhqk,bkhd->bqhd", ds, np.repeat(k, group, 2)), dk, dv


def draw(B, Q, K, H, G, D, seed=0):
    """q, k, v and a gradient of the output."""
    random = np.random.RandomState(seed)
    return [random.randn(*shape) for shape in ((B, Q, H, D), (B, K, G, D), (B, K, G, D), (B, Q, H, D))]


def positions(pattern, B, Q, K, seed=0):
    """q_index, k_index, q_segment, k_segment."""
    random = np.random.RandomState(seed)
    index, one = (np.tile(np.arange(n), (B, 1)) for n in (Q, K)), [np.zeros((B, n), int) for n in (Q, K)]
    if pattern == "causal":
        found = [*index, *one]
    elif pattern == "packed":
        found = [*index, *(np.sort(random.randint(0, 4, (B, n)), 1) for n in (Q, K))]
    elif pattern == "shuffled":
        found = [
            random.randint(-3, K, (B, Q)),
            random.randint(-2, K, (B, K)),
            random.randint(0, 2, (B, Q)),
            random.randint(0, 2, (B, K)),
        ]
        found[0][:, Q // 2] = -9  # sees no key
    else:  # a cache that is filled to somewhere in its middle, the new keys last
        filled = np.tile(np.arange(K), (B, 1))
        filled[:, (K + Q) // 2 :] = UNUSED
        found = [np.tile(np.arange(Q) + (K + Q) // 2 - Q, (B, 1)), filled, *one]
    return [x.astype(np.int32) for x in found]


@pytest.mark.thinned(1)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("Q", [5, 12])  # a few rows, and a block of them
def test_values_and_gradients(backend, dtype, Q):
    *arrays, dout = draw(2, Q, 7, 4, 2, 3)
    index = positions("shuffled", 2, Q, 7)
    see = visible(*index)
    assert not see.any(-1).all()
    exact = [rounded(a, dtype) for a in arrays]
    tensors = [*(to_tensor(a, dtype) for a in arrays), *map(Tensor, index)]
    (out,), found_gradients = forward_and_gradients(causal_attention, tensors, [dout], range(3))
    assert_close(out, attention(*exact, see)[0], dtype)
    wanted = numeric_gradients(lambda q, k, v: attention(q, k, v, see)[0], exact, [dout], range(3))
    for found, expected in zip(found_gradients, wanted, strict=True):
        assert_close(found, expected, dtype, factor=4)  # a sum of rounded terms
    for found, expected in zip(attention_gradients(*exact, see, dout), wanted, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("shape", "patterns"),
    [
        ((1, 1, 1, 1, 1, 1), ["causal"]),
        ((2, 70, 70, 4, 2, 16), ["packed", "shuffled"]),
        ((1, 130, 130, 1, 1, 64), ["causal", "packed"]),
        ((2, 3, 290, 6, 2, 20), ["cache", "shuffled"]),
        ((1, 65, 129, 8, 1, 80), ["cache", "shuffled"]),
        ((3, 64, 64, 2, 1, 128), ["causal"]),
        ((1, 20, 33, 3, 3, 200), ["packed"]),
    ],
    ids=str,
)
def test_shapes_and_patterns(backend, shape, patterns):
    B, Q, K = shape[:3]
    *arrays, dout = draw(*shape)
    exact, run = [rounded(a, "float32") for a in arrays], differentiated(causal_attention, range(3))
    for pattern in patterns:
        index = positions(pattern, B, Q, K)
        see = visible(*index)
        (out,), found = run([*map(to_tensor, arrays), *map(Tensor, index)], [dout])
        assert_close(out, attention(*exact, see)[0])
        for one, expected in zip(found, attention_gradients(*exact, see, dout), strict=True):
            assert_close(one, expected)


@pytest.mark.thinned(1)
@pytest.mark.parametrize("shape", [(2, 200, 200, 2, 1, 32), (2, 2, 600, 4, 4, 64)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(backend, shape, dtype):
    *arrays, dout = draw(*shape)
    index = positions("cache", *shape[:3])
    tensors = [*(to_tensor(a, dtype) for a in arrays), *map(Tensor, index)]
    exact, see = [rounded(a, dtype) for a in arrays], visible(*index)
    (out,), found_gradients = forward_and_gradients(causal_attention, tensors, [dout], range(3))
    assert_close(out, attention(*exact, see)[0], dtype, factor=0.5)
    for found, expected in zip(found_gradients, attention_gradients(*exact, see, dout), strict=True):
        assert_close(found, expected, dtype)


def by_default_with_scale_and_with_segments(q, k, v, q_segment, k_segment):
    return (
        causal_attention(q, k, v),
        causal_attention(q, k, v, scale=0.25),
        causal_attention(q, k, v, q_segment=q_segment, k_segment=k_segment),
    )


def test_defaults_and_scale(backend):
    *arrays, _ = draw(2, 6, 9, 2, 2, 5)
    exact, tensors = [rounded(a, "float32") for a in arrays], [to_tensor(a) for a in arrays]
    see = visible(*positions("causal", 2, 6, 9))
    index = positions("packed", 2, 6, 9)
    found = forward(by_default_with_scale_and_with_segments, [*tensors, *map(Tensor, index[2:])])
    assert_close(found[0], attention(*exact, see)[0])
    assert_close(found[1], attention(*exact, see, 0.25)[0])
    assert_close(found[2], attention(*exact, visible(*index))[0])


@functools.cache
def shared(backend):
    """Of the next tests, whose inputs have the same shapes: compiling takes nearly all of their time."""
    return differentiated(causal_attention, range(3))


@pytest.mark.parametrize("Q", [4, 70])
def test_queries_that_see_nothing_give_zero(backend, Q):
    *arrays, dout = draw(3, Q, 100, 2, 2, 16)
    index = positions("causal", 3, Q, 100)
    index[0] = index[0] - 1  # the first query of each batch element is before all keys
    index[3][1] = 7  # no key of the second is of its queries' segment
    tensors = [*map(to_tensor, arrays), *map(Tensor, index)]
    (out,), (dq, dk, dv) = shared(backend)(tensors, [dout])
    assert (out[0, 1:] != 0).all() and (dv[0, 0] != 0).all()
    assert (out[0, 0] == 0).all() and (dq[0, 0] == 0).all()
    assert all((x[1] == 0).all() for x in (out, dq, dk, dv))


def kernel_outputs(q, k, v, q_index, k_index, q_segment, k_segment, heads, seed):
    return kernel("CausalAttention")(q, k, v, q_index, k_index, q_segment, k_segment, heads, seed, attribute(0.5, 0.0))


@pytest.mark.parametrize("Q", [3, 70])
def test_kernel_gives_logsumexp(mindspore_cpu, Q):
    if why_not := ascend_ops.backend.unavailable("causal_attention", "cpu", "float32"):
        pytest.skip(why_not)
    *arrays, _ = draw(2, Q, 300, 4, 2, 16)
    index = positions("shuffled", 2, Q, 300)
    found = forward(
        kernel_outputs,
        [*map(to_tensor, arrays), *map(Tensor, index), Tensor(np.zeros(4, np.int32)), Tensor(np.zeros(1, np.int32))],
    )[1]
    wanted = attention(*(rounded(a, "float32") for a in arrays), visible(*index), 0.5)[1]
    assert np.isneginf(wanted).any() and (np.isneginf(found) == np.isneginf(wanted)).all()
    assert_close(np.where(np.isneginf(found), 0, found), np.where(np.isneginf(wanted), 0, wanted))


@pytest.mark.parametrize("Q", [4, 70])
def test_nan_stays_with_the_queries_it_concerns(backend, Q):
    q, k, v, dout = draw(3, Q, 100, 2, 2, 16)
    q[0, 1, 0, 3] = k[1, 0, 1, 2] = v[2, 0, 1, 2] = np.nan  # a query; a key and a value that all queries see
    tensors = [*map(to_tensor, (q, k, v)), *map(Tensor, positions("cache", 3, Q, 100))]
    out = shared(backend)(tensors, [dout])[0][0]
    nan = np.isnan(out)
    assert nan[0, 1, 0].all() and nan[1, :, 1].all() and nan[2, :, 1, 2].all()
    assert not nan[0, [0, 2]].any()
    if (
        backend == "cpu" or Q > 32
    ):  # composed products over all heads at once (few queries) spread a NaN to the other heads
        assert nan.sum() == 16 + Q * 16 + Q


@pytest.mark.parametrize("Q", [4, 70])
def test_huge_scores(backend, Q):
    *arrays, dout = draw(3, Q, 100, 2, 2, 16)
    arrays[0] *= 1e3
    index = positions("cache", 3, Q, 100)
    wanted = attention(*(rounded(a, "float32") for a in arrays), visible(*index))[0]
    found = shared(backend)([*map(to_tensor, arrays), *map(Tensor, index)], [dout])[0][0]
    assert_close(found, wanted, factor=100)  # float32 knows a score of 3000 to 2e-4


@pytest.mark.parametrize("Q", [4, 70])
def test_what_unused_slots_hold_is_not_seen(backend, Q):
    *arrays, dout = draw(3, Q, 100, 2, 2, 16)
    index = positions("cache", 3, Q, 100)
    exact, see = [rounded(a, "float32") for a in arrays], visible(*index)
    for i in (1, 2):
        arrays[i][:, index[1][0] == UNUSED] = 1e15
    tensors = [*map(to_tensor, arrays), *map(Tensor, index)]
    (out,), found_gradients = shared(backend)(tensors, [dout])
    assert_close(out, attention(*exact, see)[0])
    for found, expected in zip(found_gradients, attention_gradients(*exact, see, dout), strict=True):
        assert_close(found, expected)


def heads_in_one_dimension(q, k, v):
    return causal_attention(q, k, v, num_heads=4)


@pytest.mark.thinned(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("Q", [3, 20])
def test_heads_in_one_dimension(backend, Q, dtype):
    *arrays, dout = draw(2, Q, 20, 4, 2, 8)
    exact, see = [rounded(a, dtype) for a in arrays], visible(*positions("causal", 2, Q, 20))
    flat = [to_tensor(a.reshape(*a.shape[:2], -1), dtype) for a in arrays]
    (out,), found = forward_and_gradients(heads_in_one_dimension, flat, [dout.reshape(2, Q, -1)], range(3))
    assert_close(out.reshape(dout.shape), attention(*exact, see)[0], dtype)
    for x, y in zip(found, attention_gradients(*exact, see, dout), strict=True):
        assert_close(x.reshape(y.shape), y, dtype)


class _SplitAndFlat(nn.Cell):
    def construct(self, q, k, v, flat_q, flat_k, flat_v):
        return causal_attention(q, k, v), causal_attention(flat_q, flat_k, flat_v, num_heads=4)


def test_dynamic_shapes(backend):
    net = _SplitAndFlat()
    split = [Tensor(shape=[None, None, heads, 8], dtype=ms.float32) for heads in (4, 2, 2)]
    net.set_inputs(*split, *(Tensor(shape=[None, None, heads * 8], dtype=ms.float32) for heads in (4, 2, 2)))
    for B, S in ((1, 3), (2, 40)):
        *arrays, _ = draw(B, S, S, 4, 2, 8)
        wanted = attention(*(rounded(a, "float32") for a in arrays), visible(*positions("causal", B, S, S)))[0]
        out, flat = net(*map(to_tensor, arrays), *(to_tensor(a.reshape(B, S, -1)) for a in arrays))
        assert_close(to_float64(out), wanted)
        assert_close(to_float64(flat), wanted.reshape(B, S, -1))


def test_eager_views_are_computed_as_they_look(backend):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        *arrays, _ = draw(2, 12, 12, 2, 2, 8)
        views = [to_tensor(a)[:, ::2] for a in arrays]
        wanted = attention(*(rounded(a, "float32")[:, ::2] for a in arrays), visible(*positions("causal", 2, 6, 6)))[0]
        assert_close(to_float64(causal_attention(*views)), wanted)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


THREADS = """
import ctypes, sys, numpy as np
library, random = ctypes.CDLL(sys.argv[1]), np.random.RandomState(0)
def call(name, *arrays):
    shapes = [(ctypes.c_int64 * a.ndim)(*a.shape) for a in arrays]
    pointers = lambda values: (ctypes.c_void_p * len(arrays))(*values)
    dtypes = (ctypes.c_char_p * len(arrays))(*(str(a.dtype).encode() for a in arrays))
    ranks = (ctypes.c_int * len(arrays))(*(a.ndim for a in arrays))
    data, dims = pointers(a.ctypes.data for a in arrays), pointers(map(ctypes.addressof, shapes))
    assert not getattr(library, name)(len(arrays), data, ranks, dims, dtypes, None, None)
for B, Q, K, G in ((1, 1, 700, 2), (3, 150, 150, 1)):
    q, dout, out, dq = (random.randn(B, Q, 2, 16).astype("f") for _ in range(4))
    k, v, dk, dv = (random.randn(B, K, G, 16).astype("f") for _ in range(4))
    q_index, k_index = (np.tile(np.arange(K - n, K, dtype="i"), (B, 1)) for n in (Q, K))
    inputs = (q, k, v, q_index, k_index, q_index * 0, k_index * 0, np.zeros(2, "i"), np.zeros(1, "i"))
    scale, logsumexp = np.array([0.25, 0.0], "f"), np.empty((B, 2, Q), "f")
    call("CausalAttention", *inputs, scale, out, logsumexp)
    call("CausalAttentionGrad", dout, *inputs, out, logsumexp, scale, dq, dk, dv)
    print(*(x.tobytes().hex() for x in (out, logsumexp, dq, dk, dv)))
"""


def test_number_of_threads_does_not_change_a_bit(mindspore_cpu):
    if why_not := ascend_ops.backend.unavailable("causal_attention", "cpu", "float32"):
        pytest.skip(why_not)
    results = [
        subprocess.run(
            [sys.executable, "-c", THREADS, str(library.build())],
            env=os.environ | {"ASCEND_OPS_NUM_THREADS": n},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for n in ("1", "2", "7")
    ]
    assert results[0] and results[0] == results[1] == results[2]


def with_query_segments_only(q, k, v, q_segment):
    return causal_attention(q, k, v, q_segment=q_segment)


def with_negative_scale(q, k, v):
    return causal_attention(q, k, v, scale=-1.0)


def dropout_without_seed(q, k, v):
    return causal_attention(q, k, v, dropout_rate=0.1)


FLOAT = ms.float32


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("call", "inputs", "message"),
    [
        (causal_attention, [((2, 8), FLOAT)] * 3, r"q has shape \(2, 8\); it must have 3 to 4 dimensions"),
        (
            causal_attention,
            [((1, 3, 2, 8), FLOAT), *[((1, 0, 2, 8), FLOAT)] * 2],
            "k has shape .*no dimension may be 0",
        ),
        (
            causal_attention,
            [((1, 3, 2, 8), ms.int32)] * 3,
            "q is int32; it must be one of float32, float16, bfloat16; cast it",
        ),
        (
            causal_attention,
            [((1, 3, 2, 8), FLOAT), ((1, 3, 2, 8), ms.float16), ((1, 3, 2, 8), FLOAT)],
            "k is float16 and q is float32; both must have one",
        ),
        (
            causal_attention,
            [((1, 3, 3, 8), FLOAT), *[((1, 3, 2, 8), FLOAT)] * 2],
            "k has 2 heads and q 3; they must divide those of q",
        ),
        (
            causal_attention,
            [((1, 3, 2, 8), FLOAT), *[((1, 3, 2, 4), FLOAT)] * 2],
            r"k has shape \(1, 3, 2, 4\); it must be \(1, 3, 2, 8\): the batch",
        ),
        (
            causal_attention,
            [*[((1, 3, 2, 8), FLOAT)] * 2, ((1, 4, 2, 8), FLOAT)],
            r"v has shape .*it must be \(1, 3, 2, 8\): the shape of k",
        ),
        (
            causal_attention,
            [*[((1, 3, 2, 8), FLOAT)] * 3, ((1, 3), FLOAT)],
            "q_index is float32; it must be int32; cast it",
        ),
        (
            causal_attention,
            [*[((2, 3, 2, 8), FLOAT)] * 3, ((1, 3), ms.int32)],
            r"q_index has shape \(1, 3\); it must be \(2, 3\): the batch and length of q",
        ),
        (
            with_query_segments_only,
            [*[((1, 3, 2, 8), FLOAT)] * 3, ((1, 3), ms.int32)],
            "q_segment is given without k_segment; .*give both or neither",
        ),
        (
            causal_attention,
            [((1, 3, 16), FLOAT)] * 3,
            "num_heads=None: the last dimension of q is 16; it must hold that many heads",
        ),
        (
            heads_in_one_dimension,
            [((1, 3, 18), FLOAT)] * 3,
            "num_heads=4: the last dimension of q is 18; it must hold that many heads",
        ),
        (
            heads_in_one_dimension,
            [((1, 3, 16), FLOAT), *[((1, 3, 12), FLOAT)] * 2],
            "num_heads=4: the last dimension of k is 12; it must hold heads of 4",
        ),
        (heads_in_one_dimension, [((1, 3, 2, 8), FLOAT)] * 3, "num_heads=4: q has 2 heads; leave it out"),
        (
            heads_in_one_dimension,
            [((1, 3, 16), FLOAT), *[((2, 3, 16), FLOAT)] * 2],
            r"k has shape \(2, 3, 16\); it must be \(1, 3, 16\): the batch of q",
        ),
        (with_negative_scale, [((1, 3, 2, 8), FLOAT)] * 3, "scale=-1.0: it must be a finite number above 0"),
        (
            dropout_without_seed,
            [((1, 3, 2, 8), FLOAT)] * 3,
            "dropout_rate=0.1 without dropout_seed; ascend_ops.dropout_seed makes one",
        ),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, call, inputs, message, mode):
    tensors = [Tensor(np.ones(shape), dtype) for shape, dtype in inputs]
    assert_refused(call, tensors, f"causal_attention: {message}", mode)


def attention_with_dropout(q, k, v, seed):
    return causal_attention(q, k, v, dropout_rate=0.4, dropout_seed=seed)


@pytest.mark.parametrize("shape", [(2, 7, 7, 2, 1, 8), (1, 150, 150, 4, 2, 16)], ids=str)
def test_dropout_of_probabilities(backend, shape):
    B, Q, K, H, G, D = shape
    *arrays, dout = draw(*shape)
    seed = 123456
    kept = (
        np.array(
            [hash_reference(i, seed) >= int(float(np.float32(0.4)) * 2**31) for i in range(B * H * Q * K)]
        ).reshape(B, H, Q, K)
        / 0.6
    )
    exact, see = [rounded(a, "float32") for a in arrays], visible(*positions("causal", B, Q, K))

    def dropped(q, k, v):
        p = attention(q, k, v, see)[2] * kept
        return np.einsum("bhqk,bkhd->bqhd", p, np.repeat(v, H // G, 2))

    tensors = [*map(to_tensor, arrays), Tensor(np.array([seed], np.int32))]
    (out,), found = forward_and_gradients(attention_with_dropout, tensors, [dout], range(3))
    assert_close(out, dropped(*exact))
    if Q < 10:
        wanted = numeric_gradients(dropped, exact, [dout], range(3))
    else:
        wanted = gradients_with_dropout(*exact, see, dout, kept)
    for one, expected in zip(found, wanted, strict=True):
        assert_close(one, expected)


def gradients_with_dropout(q, k, v, see, dout, kept):
    """As attention_gradients, with probabilities multiplied by `kept` after the softmax."""
    group, p = q.shape[2] // k.shape[2], attention(q, k, v, see)[2]
    dp = np.einsum("bqhd,bkhd->bhqk", dout, np.repeat(v, group, 2)) * kept
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * q.shape[3] ** -0.5
    dk, dv = np.einsum("bhqk,bqhd->bkhd", ds, q), np.einsum("bhqk,bqhd->bkhd", p * kept, dout)
    dk, dv = (x.reshape(*k.shape[:3], group, -1).sum(3) for x in (dk, dv))
    return np.einsum("bhqk,bkhd->bqhd", ds, np.repeat(k, group, 2)), dk, dv
