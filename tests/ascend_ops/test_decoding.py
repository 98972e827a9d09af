"""Attention with cache writes: against float64, the rows that it may touch, and bits that no other row changes."""

import ctypes
import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import ascend_ops
from ascend_ops import library
from ascend_ops.decoding import cached_attention
from pangu_ms.core.dtypes import bits, to_bfloat16
from tests.ascend_ops.common import MODES, assert_close, assert_refused, rounded, to_float64, to_tensor
from tests.ascend_ops.kernel_calls import Call

pytestmark = pytest.mark.thinned


def reference(q, keys, values, positions, slots, num_heads):
    """[Q, A] in float64, of caches [S, R, W] that hold the new rows."""
    size = q.shape[1] // num_heads
    num_kv_heads = keys.shape[2] // size
    out = np.zeros(q.shape)
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        if slot < 0:
            continue
        k, v = (x[slot, : position + 1].reshape(-1, num_kv_heads, size) for x in (keys, values))
        for head in range(num_heads):
            own, of = slice(head * size, (head + 1) * size), head * num_kv_heads // num_heads
            scores = k[:, of] @ q[row, own] * size**-0.5
            p = np.exp(scores - scores.max())
            out[row, own] = p @ v[:, of] / p.sum()
    return out


class Cell(nn.Cell):
    """The operator over caches of its own, for the queries of the new rows and then for one of each slot, as in the
    layers of a model."""

    def __init__(self, keys, values, num_heads):
        super().__init__()
        self.keys, self.values = Parameter(keys, name="keys"), Parameter(values, name="values")
        self.num_heads, self.num_slots = num_heads, 3

    def construct(self, q, k, v, positions, slots, query_positions, query_slots):
        H, S = self.num_heads, self.num_slots
        own = cached_attention(q, k, v, self.keys, self.values, positions, slots, None, None, H, S)
        for_slots = cached_attention(
            q[:S], k, v, self.keys, self.values, positions, slots, query_positions, query_slots, H, S
        )
        return own, for_slots


CAPACITY = 70
"""More than a block of keys."""
CASES = {
    "all decode": ([3, 69, 0], (0, [])),
    "unused slots": ([-1, 5, -1], (0, [])),
    "a chunk at the beginning": ([12, -1, 64], (1, [0, 1, 2])),
    "a chunk to the end": ([-1, 0, 66], (0, [60, 61, 62, 63, 64, 65, 66, 67, 68, 69])),
    "a chunk that is not full": ([7, 8, -1], (2, [63, 64, 65, -1, -1])),
    "nothing": ([-1, -1, -1], (1, [-1, -1])),
}


def rows_of(case):
    """positions and slots of the new rows, int32 [N]."""
    decoded, (chunk_slot, chunk) = CASES[case]
    positions = np.array([*decoded, *chunk], np.int32)
    slots = np.array([0, 1, 2, *[chunk_slot] * len(chunk)], np.int32)
    return np.maximum(positions, 0), np.where(positions < 0, -1, slots).astype(np.int32)


DTYPES = [("float32", "float32"), ("float16", "float16"), ("float32", "float16"), ("float32", "bfloat16")]
"""Of queries, and of the cache."""


@pytest.mark.thinned(1, of_kernels=True)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(2, 2, 16), (6, 2, 5)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(backend, case, heads, dtypes):
    """With the numbers that the cache holds: new rows are rounded to its dtype."""
    H, G, D = heads
    dtype, cached = dtypes
    if cached == "bfloat16" and backend == "composed":
        pytest.skip("MindSpore's CPU backend cannot write to it")
    random = np.random.RandomState(1)
    positions, slots = rows_of(case)
    rows = len(positions)
    keys, values = (rounded(random.randn(3, CAPACITY + 1, G * D), cached) for _ in range(2))
    q, k, v = (rounded(random.randn(rows, width), dtype) for width in (H * D, G * D, G * D))
    query_positions, query_slots = np.where(slots[:3] < 0, 0, positions[:3]).astype(np.int32), slots[:3]
    cell = Cell(*(to_tensor(x.reshape(-1, G * D), cached) for x in (keys, values)), H)
    tensors = [to_tensor(x, dtype).reshape(rows, 1, -1) for x in (q, k, v)]
    own, for_slots = cell(*tensors, *map(Tensor, (positions, slots, query_positions, query_slots)))
    used = slots >= 0
    for cache, new in ((keys, k), (values, v)):
        cache[slots[used], positions[used]] = rounded(new[used], cached)
    for cache, found in ((keys, cell.keys), (values, cell.values)):
        assert np.array_equal(to_float64(found).reshape(cache.shape)[:, :CAPACITY], cache[:, :CAPACITY])
    assert_close(to_float64(own)[:, 0], reference(q, keys, values, positions, slots, H), dtype)
    assert_close(to_float64(for_slots)[:, 0], reference(q[:3], keys, values, query_positions, query_slots, H), dtype)


@functools.cache
def kernels(level):
    if why_not := ascend_ops.backend.unavailable("cached_attention", "cpu", "float32"):
        pytest.skip(why_not)
    return ctypes.CDLL(str(library.build(level)))


def call(level, q, k, v, keys, values, positions, slots, H):
    """The kernel for any rows; positions and slots of the queries are those of the rows. Caches of uint16 are the bits
    of bfloat16."""
    out, attributes = np.full_like(q, 7), np.array([0.25, H, len(keys)], np.float32)
    caches = (x.reshape(-1, x.shape[-1]) for x in (keys, values))
    Call(kernels(level).CachedAttention, q, k, v, *caches, *(positions, slots) * 2, attributes, out)()
    return out


def draw(random, S, R, H, G, D, rows):
    keys, values = (random.standard_normal((S, R, G * D), dtype=np.float32) for _ in range(2))
    q, k, v = (random.standard_normal((rows, width), dtype=np.float32) for width in (H * D, G * D, G * D))
    return q, k, v, keys, values


LEVELS = [None, *(pytest.param(level, marks=pytest.mark.slow) for level in ("avx2", "baseline"))]


SHAPES = [(4, 4, 64), (6, 2, 20), (10, 2, 16), (3, 3, 128), (1, 1, 3)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("shape", "cached"), [*((shape, "float32") for shape in SHAPES), ((6, 2, 20), "bfloat16")], ids=str
)
def test_bits_of_a_row_depend_on_that_row_alone(mindspore_cpu, shape, cached, level):
    """A prompt of 150 tokens in chunks of any size, alone and between rows of other slots, gives the bits of its tokens
    one by one; and nothing of what other slots and later rows hold is read, NaN included."""
    H, G, D = shape
    random = np.random.default_rng(2)
    length, S, R = 150, 4, 160
    q, k, v, keys, values = draw(random, S, R, H, G, D, length)
    positions = np.arange(length, dtype=np.int32)
    keys, values, nan = (
        bits(to_bfloat16(x)) if cached == "bfloat16" else x for x in (keys, values, np.full_like(keys, np.nan))
    )
    one_by_one = [nan.copy(), nan.copy()]
    expected = [
        call(level, q[i : i + 1], k[i : i + 1], v[i : i + 1], *one_by_one, positions[i : i + 1], np.int32([2]), H)
        for i in range(length)
    ]
    expected = np.concatenate(expected)
    assert np.isfinite(expected).all()
    for size in (2, 3, 8, 16, 63, 64, 150):
        found, caches = np.empty_like(q), [keys.copy(), values.copy()]
        for begin in range(0, length, size):
            rows = slice(begin, min(begin + size, length))
            # Between a row of another slot, which is NaN, one of nobody, and one of a third slot.
            here = rows.stop - rows.start
            more = draw(random, 1, 1, H, G, D, 3)[:3]
            chunk = [np.concatenate((x[:2], y[rows], x[2:])) for x, y in zip(more, (q, k, v))]
            chunk[1][0] = chunk[2][0] = np.nan
            places = np.int32([17, 0, *range(rows.start, rows.stop), 99]), np.int32([1, -1, *[2] * here, 3])
            out = call(level, *chunk, *caches, *places, H)
            found[rows] = out[2:-1]
            assert np.isnan(out[0]).all() and (out[1] == 0).all()
        assert np.array_equal(found.view(np.int32), expected.view(np.int32)), size


@pytest.mark.parametrize("rows", [3, 40])
def test_a_value_that_is_no_number_reaches_no_earlier_row(mindspore_cpu, rows):
    """Rows of one chunk: those before the NaN keep their bits, those behind it are NaN."""
    random = np.random.default_rng(3)
    q, k, v, keys, values = draw(random, 2, 50, 2, 2, 16, rows)
    places = np.arange(rows, dtype=np.int32), np.ones(rows, np.int32)
    before = call(None, q, k, v, keys.copy(), values.copy(), *places, 2)
    k[rows - 2, 0] = v[rows - 2, 16] = np.nan
    after = call(None, q, k, v, keys, values, *places, 2)
    assert np.array_equal(after[: rows - 2], before[: rows - 2])
    assert np.isnan(after[rows - 2 :, [0, 16]]).all()


def test_places_that_do_not_exist_are_refused_before_anything_is_written(mindspore_cpu, capfd):
    random = np.random.default_rng(4)
    *rows, keys, values = draw(random, 2, 9, 2, 2, 16, 2)
    before = keys.copy(), values.copy()
    for places in (([0, 8], [0, 1]), ([0, -1], [0, 1]), ([0, 0], [0, 2])):
        with pytest.raises(RuntimeError):
            call(None, *rows, keys, values, *(np.int32(x) for x in places), 2)
        assert "a position is outside of its slot" in capfd.readouterr().err
    assert np.array_equal(keys, before[0]) and np.array_equal(values, before[1])


def of_two_heads(q, k, v, keys, values, positions, slots):
    return cached_attention(q, k, v, keys, values, positions, slots, num_heads=2, num_slots=2)


def with_query_slots_alone(q, k, v, keys, values, positions, slots):
    return cached_attention(q, k, v, keys, values, positions, slots, None, slots, num_heads=2, num_slots=2)


def inputs(q=(3, 8), k=(3, 8), keys=(10, 8), positions=(3,), dtype=ms.float32, index=ms.int32, cached=ms.float32):
    slots = (k[0],)
    rows = [(q, ms.float32), (k, dtype), (k, dtype), (keys, cached), (keys, cached)]
    return [*rows, (positions, index), (slots, index)]


@pytest.mark.thinned(1)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (of_two_heads, inputs(dtype=ms.float16), "k is float16 and q is float32; both must have one"),
        (
            of_two_heads,
            inputs(cached=ms.int32),
            "keys is int32 and q is float32; it must be float32 or float16 or bfloat16",
        ),
        (of_two_heads, inputs(index=ms.int64), "positions is int64; it must be int32"),
        (of_two_heads, inputs(keys=(2, 5, 8)), r"keys has shape \(2, 5, 8\); it must have 2 dimensions"),
        (of_two_heads, inputs(k=(3, 4)), r"k has shape \(3, 4\); it must be \(3, 8\) or \(3, 1, 8\): rows of keys"),
        (of_two_heads, inputs(q=(3, 2, 4)), r"q has shape \(3, 2, 4\); it must be \(3, 4\) or \(3, 1, 4\): rows of"),
        (of_two_heads, inputs(positions=(2,)), r"positions has shape \(2,\); it must be \(3,\) or \(3, 1\)"),
        (of_two_heads, inputs((1, 8), (1, 8), positions=(1,)), "num_slots=2: q has 1 rows; it must have one for each"),
        (of_two_heads, inputs(keys=(9, 8)), "num_slots=2: keys has 9 rows; it must have as many for each slot"),
        (of_two_heads, inputs(q=(3, 9)), "num_heads=2: the last dimension of q is 9; it must hold that many"),
        (of_two_heads, inputs(q=(3, 6)), "num_heads=2: the last dimension of keys is 8; it must hold heads of 3"),
        (with_query_slots_alone, inputs(), "query_slots is given alone; .*give both or neither"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(backend, function, given, message, mode):
    tensors = [Tensor(np.ones(shape), dtype) for shape, dtype in given]
    assert_refused(function, tensors, f"cached_attention: {message}", mode)
