"""Slices against numpy: an array is split axis by axis, and comes back together."""

import numpy as np
import pytest

from pangu_ms.core.errors import PlanError
from pangu_ms.parallel.layout import Layout
from pangu_ms.parallel.plan import with_optimizer_shard

AXES = (("dp", 2), ("ep", 3), ("mp", 4))
CASES = [
    ((24, 12), ((), ()), ()),
    ((24, 12), (("mp",), ()), ()),
    ((24, 12), ((), ("ep",)), ("dp", "mp")),
    ((24, 12), (("mp",), ("ep",)), ("dp",)),
    ((24, 12), (("ep", "mp"), ("dp",)), ()),
    ((24, 12), (("mp", "ep"), ()), ("dp",)),
    ((48,), (("ep",),), ("dp", "mp")),
    ((6, 8, 2), (("dp",), ("mp",), ()), ("ep",)),
]


def brute_force(layout, rank):
    """Split by one axis after the other; the device's index along each is its digit in the row-major matrix."""
    part = np.arange(np.prod(layout.shape)).reshape(layout.shape)
    digit = dict(zip(("dp", "ep", "mp"), np.unravel_index(rank, (2, 3, 4))))
    for dim, names in enumerate(layout.dims):
        for name in names + (layout.optimizer_axes if dim == 0 else ()):
            part = np.split(part, dict(AXES)[name], axis=dim)[digit[name]]
    return part


@pytest.mark.parametrize(("shape", "dims", "optimizer_axes"), CASES)
def test_each_device_holds_what_splitting_gives_it(shape, dims, optimizer_axes):
    layout = Layout(shape, AXES, dims, optimizer_axes)
    whole, joined = np.arange(np.prod(shape)).reshape(shape), np.full(shape, -1)
    for rank in range(24):
        part = whole[layout.slices(rank)]
        assert (
            np.array_equal(part, brute_force(layout, rank))
            and part.shape == layout.slice_shape
            and part.size == layout.slice_size
        )
    owners = layout.owners()
    assert len(owners) == np.prod(layout.counts) and layout.num_devices == 24
    for index, owner in owners.items():
        same = [rank for rank in range(24) if np.array_equal(brute_force(layout, rank), brute_force(layout, owner))]
        assert owner == same[0] and layout.index(owner) == index
        joined[layout.slices(owner)] = whole[layout.slices(owner)]
    assert np.array_equal(joined, whole)


def test_mindspore_counts_axes_from_the_right():
    assert Layout((24, 12), AXES, (("mp",), ())).tensor_map == (0, -1)
    assert Layout((24, 12), AXES, (("dp", "ep"), ("mp",))).tensor_map == ((2, 1), 0)
    assert Layout((24, 12), AXES, ((), ("ep",)), ("dp", "mp")).tensor_map == (
        -1,
        1,
    )  # the optimizer's cut is none of its concern


def test_an_uneven_cut_is_refused():
    with pytest.raises(PlanError, match=r"dimension 1 of \[24, 10\]: 4 devices must divide 10; use another degree"):
        Layout((24, 10), AXES, ((), ("mp",)))


def test_the_optimizer_cuts_what_is_large_and_divides():
    def cut(shape, *dims):
        return with_optimizer_shard(Layout(shape, AXES, dims)).optimizer_axes

    assert cut((24, 4096), ("mp",), ()) == ("dp", "ep") and cut((24, 4096), (), ()) == ("dp", "ep", "mp")
    assert cut((20, 4096), ("mp",), ()) == ()  # 5 rows over 6 devices
    assert cut((24, 682), ("mp",), ()) == () and cut((24, 683), ("mp",), ()) == (
        "dp",
        "ep",
    )  # 64 KiB are 16,384 values of the whole parameter
    sizes = dict(AXES)
    assert with_optimizer_shard(Layout((24, 4096), AXES, (("mp",), ()))).slice_size == 24 * 4096 // np.prod(
        list(sizes.values())
    )
