"""RreRoute, MoeDispatch and MoeCombine: tiling and kernel together, on simulated cores of both chips, against numpy."""

import numpy as np
import pytest

from tests.ascend_ops.ascendc import reference as ref
from tests.ascend_ops.ascendc.ascendc_host import CHIPS, Typed, chip_dtypes

TYPES = [(chip, dtype) for chip in CHIPS for dtype in chip_dtypes("MoeDispatch", chip)]

# tokens, top_k, hidden_size, experts, cores, how the experts are chosen
CASES = {
    "even": (64, 2, 64, 8, 8, "random"),
    "ragged": (77, 2, 33, 5, 3, "random"),
    "one core": (45, 1, 48, 4, 1, "random"),
    "one expert takes all": (131, 1, 20, 7, 8, "last"),
    "empty experts": (50, 2, 32, 64, 3, "few"),
    "fewer slots than a unit": (3, 2, 40, 4, 8, "random"),
    "one slot": (1, 1, 17, 3, 3, "random"),
    "row shorter than a block": (37, 2, 5, 6, 8, "random"),
    "more experts than slots": (9, 1, 16, 300, 3, "random"),
    "long rows": (18, 2, 8200, 4, 3, "random"),
    "several chunks and segments": (4600, 2, 16, 11, 1, "random"),
    "a leftover beside whole segments": (2051, 1, 8, 3, 1, "random"),
}


def choose_experts(rng, tokens, top_k, experts, how):
    """Expert of each slot."""
    slots = tokens * top_k
    if how == "last":
        return np.full(slots, experts - 1, np.int32)
    pool = rng.permutation(experts)[:3] if how == "few" else np.arange(experts)
    return rng.choice(pool, slots).astype(np.int32)


@pytest.mark.parametrize("chip, dtype", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_dispatch_and_combine(host, chip, dtype, case):
    """Dispatch sorts exactly; combine brings the rows back."""
    tokens, top_k, hidden, experts, cores, how = CASES[case]
    rng = np.random.default_rng(1)
    expert = choose_experts(rng, tokens, top_k, experts, how)
    x = Typed.of(rng.normal(size=(tokens, hidden)), dtype)
    rows, order, counts = host.run("MoeDispatch", chip, cores, [x, expert, np.zeros(experts, np.int32)])
    rows_ref, order_ref, counts_ref = ref.dispatch(x.numpy(), expert, experts)
    assert (order == order_ref).all() and (counts == counts_ref).all() and (rows == rows_ref).all()

    rows = Typed.of(rng.normal(size=(tokens * top_k, hidden)), dtype)
    weights = rng.random((tokens, top_k)).astype(np.float32)
    (y,) = host.run("MoeCombine", chip, cores, [rows, order, weights])
    expected = ref.combine(rows.numpy().astype(np.float64), order, weights.astype(np.float64))
    unit = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    assert (np.abs(y - expected) <= 1.01 * unit * np.abs(expected) + 1e-5).all()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("cores", [1, 3, 8, 20])
def test_dispatch_is_the_same_on_any_number_of_cores(host, chip, cores):
    rng = np.random.default_rng(2)
    x, expert = rng.normal(size=(333, 24)).astype(np.float32), rng.integers(0, 9, 333 * 3).astype(np.int32)
    rows, order, counts = host.run("MoeDispatch", chip, cores, [x, expert, np.zeros(9, np.int32)])
    rows_ref, order_ref, counts_ref = ref.dispatch(x, expert, 9)
    assert (order == order_ref).all() and (counts == counts_ref).all() and (rows == rows_ref).all()


@pytest.mark.parametrize("chip", CHIPS)
def test_expert_outside_the_range_counts_as_the_nearest(host, chip):
    """Nothing is written out of bounds and order stays a permutation; the public API refuses such ids where it can see
    them."""
    rng = np.random.default_rng(3)
    expert = rng.integers(-4, 10, 100).astype(np.int32)
    expert[:2] = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    x = rng.normal(size=(50, 16)).astype(np.float32)
    _, order, counts = host.run("MoeDispatch", chip, 3, [x, expert, np.zeros(6, np.int32)])
    _, order_ref, counts_ref = ref.dispatch(x, np.clip(expert, 0, 5), 6)
    assert (order == order_ref).all() and (counts == counts_ref).all()


@pytest.mark.parametrize("chip", CHIPS)
def test_combine_ignores_entries_that_are_no_slots(host, chip):
    """A slot that `order` does not name adds nothing."""
    rng = np.random.default_rng(4)
    rows, weights = rng.normal(size=(40, 16)).astype(np.float32), np.ones((20, 2), np.float32)
    order = np.arange(40, dtype=np.int32)
    order[5], order[8], order[11] = -1, 40, np.iinfo(np.int32).max
    (y,) = host.run("MoeCombine", chip, 3, [rows, order, weights])
    kept = np.where(np.isin(np.arange(40), [5, 8, 11])[:, None], 0, rows)
    assert np.allclose(y, kept.reshape(20, 2, 16).sum(1), atol=1e-6)


@pytest.mark.parametrize("chip", CHIPS)
def test_combine_goes_through_blocks_of_tokens(host, chip):
    """More slots for a core than it looks up at a time."""
    rng = np.random.default_rng(5)
    rows, order = rng.normal(size=(9600, 16)).astype(np.float32), rng.permutation(9600).astype(np.int32)
    weights = rng.random((1200, 8)).astype(np.float32)
    (y,) = host.run("MoeCombine", chip, 1, [rows, order, weights])
    assert np.abs(y - ref.combine(rows.astype(np.float64), order, weights)).max() < 1e-5


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    "shape, cores", [((1,), 8), ((7,), 3), ((64,), 8), ((5, 331), 3), ((2500,), 1), ((16 * 8 + 3,), 8)]
)
def test_route(host, chip, shape, cores):
    rng = np.random.default_rng(6)
    table = rng.integers(0, 1000, (3, 91)).astype(np.int32)
    domain, ids = rng.integers(0, 3, shape).astype(np.int32), rng.integers(0, 91, shape).astype(np.int32)
    (expert,) = host.run("RreRoute", chip, cores, [domain, ids, table])
    assert expert.shape == shape and (expert == table[domain, ids]).all()


@pytest.mark.parametrize("chip", CHIPS)
def test_route_outside_the_table_takes_the_edge(host, chip):
    rng = np.random.default_rng(7)
    table = rng.integers(0, 1000, (3, 91)).astype(np.int32)
    domain, ids = rng.integers(-2, 6, 50).astype(np.int32), rng.integers(-50, 200, 50).astype(np.int32)
    (expert,) = host.run("RreRoute", chip, 3, [domain, ids, table])
    assert (expert == table[np.clip(domain, 0, 2), np.clip(ids, 0, 90)]).all()


@pytest.mark.parametrize(
    "name, shapes, reason",
    [
        ("MoeDispatch", [(7, 8), (15,), (4,)], "top_k elements for each row"),
        ("MoeDispatch", [(7, 8), (14,), (5000,)], "1 to 4096"),
        ("MoeDispatch", [(0, 8), (0,), (4,)], "at least one of both"),
        ("MoeCombine", [(14, 8), (14,), (14,)], "[tokens, top_k]"),
        ("MoeCombine", [(13, 8), (14,), (7, 2)], "one row for each entry"),
        ("MoeCombine", [(14, 8), (14,), (6, 2)], "tokens * top_k elements"),
        ("RreRoute", [(5,), (6,), (2, 9)], "one shape"),
        ("RreRoute", [(5,), (5,), (18,)], "[domains, vocab_size]"),
    ],
)
def test_tiling_refuses_with_a_reason(host, capfd, name, shapes, reason):
    from tests.ascend_ops.ascendc.ascendc_host import ASCENDC_KERNELS

    dtypes = [{"T": "float32"}.get(p.dtype, p.dtype) for p in ASCENDC_KERNELS[name].inputs]
    assert host.tile(name, "ascend910", 8, shapes, dtypes) is None
    said = capfd.readouterr().err
    assert said.startswith(f"{name}: ") and reason in said
