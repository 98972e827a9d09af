"""Tensors that are read in parts, and views of them, against numpy."""

import itertools
import math

import numpy as np
import pytest

from pangu_ms.checkpoint import lazy
from pangu_ms.checkpoint.lazy import InMemory, Stack
from pangu_ms.core.dtypes import BFLOAT16, bits, cast, to_bfloat16, widened
from pangu_ms.core.errors import CheckpointError

pytestmark = pytest.mark.fast
SHAPES = [(), (1,), (7,), (3, 5), (5, 3), (2, 3, 4), (4, 1, 6), (3, 0), (2, 2, 3, 2)]


def array_of(shape, dtype=np.float32):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(dtype)


def parts_of(shape):
    """Some parts of a tensor of this shape."""
    whole = tuple(slice(0, size) for size in shape)
    return [whole, tuple(slice(size // 3, size) for size in shape), tuple(slice(0, (size + 1) // 2) for size in shape)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", [1, 8, 16, 40, 1000])
def test_pieces_follow_each_other_in_the_order_of_the_file(monkeypatch, shape, most):
    monkeypatch.setattr(lazy, "BYTES_AT_ONCE", most)
    array = array_of(shape)
    for view, expected in ((InMemory.of("x", array), array), (InMemory.of("x", array).T, array.T)):
        for part in parts_of(expected.shape):
            pieces = list(view.pieces(part))
            flat = np.concatenate([piece.reshape(-1) for piece in map(np.ascontiguousarray, pieces)])
            np.testing.assert_array_equal(flat, np.ascontiguousarray(expected[part]).reshape(-1))
            assert all(piece.nbytes <= max(most, 4) for piece in pieces)
            rows = math.prod(s.stop - s.start for s in part[1:]) * 4
            assert most < rows or len(pieces) <= 1 + expected[part].nbytes // max(most - most % max(rows, 1), 1)


def test_views_of_views_are_those_of_numpy():
    arrays = [array_of((3, 4)) + i for i in range(5)]
    stack = Stack.of([InMemory.of("x", array) for array in arrays])
    expected = np.stack(arrays)
    for view, wanted in (
        (stack, expected),
        (stack.T, expected.T),
        (Stack.of([m.T for m in stack]), expected.mT if hasattr(expected, "mT") else expected.transpose(0, 2, 1)),
    ):
        assert view.shape == wanted.shape
        for part in itertools.product(*[[slice(0, size), slice(1, size), slice(0, 1)] for size in wanted.shape]):
            np.testing.assert_array_equal(view.read(part), wanted[part])
        for member, row in zip(view, wanted, strict=True):
            np.testing.assert_array_equal(member.array(), row)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_cast_view_gives_what_the_cast_array_is(dtype):
    arrays = {"a": array_of((4, 6)), "b": array_of((5,), np.float16), "c": to_bfloat16(array_of((2, 3)))}
    found = lazy.cast("w", {name: InMemory.of(name, array) for name, array in arrays.items()}, dtype)
    for name, array in cast("w", arrays, dtype).items():
        assert found[name].spec.dtype_name == dtype and found[name].array().dtype == array.dtype
        np.testing.assert_array_equal(bits(found[name].array()), bits(array))
    with pytest.raises(CheckpointError, match="w: t has dtype int32; weights are floating-point"):
        lazy.cast("w", {"t": InMemory.of("t", np.zeros(3, np.int32))}, dtype)
    table = InMemory.of("t", np.zeros(3, np.int32))
    assert lazy.cast("w", {"t": table}, dtype, {"t"}) == {"t": table}
    if dtype != "float32":
        large = lazy.cast("w", {"l": InMemory.of("l", np.full(9, 3.4e38, np.float32))}, dtype)["l"]
        with pytest.raises(CheckpointError, match="w: l has values that are not finite"):
            large.array()


def test_members_of_several_dtypes_are_stacked_in_the_wider_one():
    half, brain = array_of((2, 3), np.float16), to_bfloat16(array_of((2, 3)))
    found = Stack.of([InMemory.of("x", half), InMemory.of("x", brain)]).array()
    np.testing.assert_array_equal(found, np.stack([half.astype(np.float32), widened(brain)]))


def test_equal_compares_numbers_and_not_dtypes(monkeypatch):
    monkeypatch.setattr(lazy, "BYTES_AT_ONCE", 8)
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    one = InMemory.of("x", array)
    assert lazy.equal(one, InMemory.of("x", to_bfloat16(array))) and lazy.equal(one, one.T.T)
    assert not lazy.equal(one, one.T)
    other = array.copy()
    other[2, 3] += 1
    assert not lazy.equal(one, InMemory.of("x", other))
    assert InMemory.of("x", to_bfloat16(array)).array().dtype == BFLOAT16
