"""Drawing batches against exact probabilities, and order files that no run should accept."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from pangu_ms.cli.main import main
from pangu_ms.core.errors import ConfigError, DataError, OutputError
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import BatchLosses, Order, effective_batches, fingerprint, resample, sample_batches

LOSS = np.array([1.0, 2.5, 0.2, 3.1, 1.7])
TRIALS = 30_000


def sequential(loss, count, temperature):
    """Probability of each set of batches: one batch after the other in proportion to exp(loss / temperature) of those
    left."""
    weights, total = [math.exp(value / temperature) for value in loss], Counter()
    for draw in itertools.permutations(range(len(loss)), count):
        left, probability = sum(weights), 1.0
        for batch in draw:
            probability *= weights[batch] / left
            left -= weights[batch]
        total[tuple(sorted(draw))] += probability
    return total


def distinct_draws_with_replacement(loss, count, temperature):
    """Probability of each set when draws with replacement are repeated until they are distinct."""
    weights = {
        kept: math.exp(sum(loss[list(kept)]) / temperature) for kept in itertools.combinations(range(len(loss)), count)
    }
    return {kept: weight / sum(weights.values()) for kept, weight in weights.items()}


def largest_deviation(counts, probabilities):
    """In standard deviations of a binomial count."""
    return max(abs(counts[kept] - TRIALS * p) / math.sqrt(TRIALS * p * (1 - p)) for kept, p in probabilities.items())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("count", [2, 3])
def test_sets_are_as_frequent_as_sequential_draws_without_replacement_make_them(count, temperature):
    counts = Counter(tuple(sample_batches(LOSS, count / 5, seed, temperature).tolist()) for seed in range(TRIALS))
    exact = sequential(LOSS, count, temperature)
    assert sum(exact.values()) == pytest.approx(1) and counts.keys() <= exact.keys()
    assert largest_deviation(counts, exact) < 5
    uniform = {kept: 1 / math.comb(5, count) for kept in exact}
    for other in (
        uniform,
        distinct_draws_with_replacement(LOSS, count, temperature),
        sequential(LOSS, count, temperature * 1.5),
    ):
        assert largest_deviation(counts, other) > 6  # the trials are enough to tell them apart


def test_the_first_draw_alone_is_the_softmax():
    counts = Counter(sample_batches(LOSS, 0.2, seed).item() for seed in range(TRIALS))
    assert largest_deviation(counts, dict(enumerate(np.exp(LOSS) / np.exp(LOSS).sum()))) < 5


def test_large_losses_and_small_temperatures_neither_overflow_nor_tie():
    loss = np.float32([900, 1000, 999, 998.5, 0])
    with np.errstate(all="raise", under="ignore"):
        assert sample_batches(loss, 0.4, 3, temperature=1e-3).tolist() == [1, 2]
        assert effective_batches(loss, 1e-6) == pytest.approx(1)
    assert effective_batches(np.full(7, 5.0), 0.1) == pytest.approx(7)
    assert effective_batches([0.0, math.log(3)]) == pytest.approx(math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3)))


@pytest.fixture(scope="module")
def train_set(records):
    return RecordSet.open(records, "train")


@pytest.fixture
def losses(train_set, tmp_path):
    """Ten batches of two rows, in an order of their own."""
    rng = np.random.default_rng(0)
    found = BatchLosses(
        rng.permutation(20).reshape(10, 2), rng.random(10, np.float32), fingerprint(train_set), "c" * 64, "{}"
    )
    found.save(tmp_path / "losses.npz")
    return found


def drawn(tmp_path, name="order.npz", keep=0.5, seed=1, temperature=1.0):
    return resample(tmp_path / "losses.npz", keep, seed, tmp_path / name, temperature)


def test_an_order_is_the_kept_batches_whole_and_in_their_old_order(losses, train_set, tmp_path):
    result = drawn(tmp_path, keep=0.7)
    kept = sample_batches(losses.loss, 0.7, 1)
    assert len(kept) == len(set(kept.tolist())) == 7
    order = Order.open(tmp_path / "order.npz", train_set)
    assert order.rows.dtype == np.int64 and order.rows.tolist() == [row for batch in kept for row in losses.rows[batch]]
    left = [batch for batch in range(10) if batch not in kept]
    means = {"mean_loss_kept": losses.loss[kept].mean(), "mean_loss_dropped": losses.loss[left].mean()}
    assert {name: result[name] for name in means} == pytest.approx(means, rel=1e-6)
    assert (result["batches"], result["kept"], result["rows"]) == (10, 7, 14)
    assert result["effective_share"] == pytest.approx(effective_batches(losses.loss) / 10)


def test_the_seed_alone_decides(losses, train_set, tmp_path):
    orders = [
        (drawn(tmp_path, f"{i}.npz", seed=seed), Order.open(tmp_path / f"{i}.npz", train_set))[1]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert orders[0].sha256 == orders[1].sha256 and orders[0].rows.tolist() != orders[2].rows.tolist()


def test_all_can_be_kept(losses, train_set, tmp_path):
    result = drawn(tmp_path, keep=1)
    assert result["kept"] == 10 and result["mean_loss_dropped"] is None
    assert Order.open(tmp_path / "order.npz", train_set).rows.tolist() == losses.rows.reshape(-1).tolist()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep": 0}, r"keep=0: must be in \(0, 1\]"),
        ({"keep": 1.01}, "keep=1.01: must be in"),
        ({"keep": math.nan}, "keep=nan: must be in"),
        ({"keep": 0.04}, "keep=0.04: keeps none of 10 batches"),
        ({"temperature": 0}, "temperature=0: must be in"),
        ({"temperature": math.inf}, "temperature=inf: must be in"),
        ({"seed": -1}, "seed=-1: must not be negative"),
    ],
)
def test_settings_that_draw_nothing_sensible(losses, tmp_path, options, message):
    with pytest.raises(DataError, match=f"^{message}"):
        drawn(tmp_path, **options)
    assert not (tmp_path / "order.npz").exists()


def test_an_order_is_never_overwritten(losses, tmp_path):
    drawn(tmp_path)
    with pytest.raises(OutputError, match="order.npz: exists; nothing is overwritten"):
        drawn(tmp_path, seed=2)


def test_files_that_are_not_what_was_asked_for(losses, train_set, tmp_path):
    drawn(tmp_path)
    whole = (tmp_path / "order.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-30])
    (tmp_path / "text.npz").write_text("rows")
    for name in ("cut.npz", "text.npz", "gone.npz", "losses.npz"):
        with pytest.raises(DataError, match=f"{name}: not an .npz file with rows, .*data.order names a file"):
            Order.open(tmp_path / name, train_set)
    for loss in (np.float32([np.nan] * 10), losses.loss[:9], np.arange(10)):
        (tmp_path / "wrong.npz").unlink(missing_ok=True)
        dataclasses.replace(losses, loss=loss).save(tmp_path / "wrong.npz")
        with pytest.raises(DataError, match="wrong.npz: rows and loss must be"):
            resample(tmp_path / "wrong.npz", 0.5, 1, tmp_path / "new.npz")


@pytest.mark.parametrize("rows", [[0, -1], "num_rows", [], [[0]], [0.0]])
def test_rows_that_the_records_do_not_have(losses, train_set, tmp_path, rows):
    rows = np.array([train_set.num_rows] if rows == "num_rows" else rows, None if rows else np.int64)
    np.savez(tmp_path / "bad.npz", rows=rows, batch_size=2, records=fingerprint(train_set), made_by="{}")
    with pytest.raises(
        DataError, match=r"bad.npz: rows must be one or more numbers (from 0 up|in \[0, \d+\)), the rows of"
    ):
        Order.open(tmp_path / "bad.npz", train_set)


def test_other_records_and_a_copy_of_the_same(losses, records, train_set, tmp_path):
    drawn(tmp_path)
    with pytest.raises(DataError, match="order.npz: drawn from records .* must be the same"):
        Order.open(tmp_path / "order.npz", RecordSet.open(records, "held_out"))
    same = RecordSet.open(list(train_set.files))  # without the manifest
    assert Order.open(tmp_path / "order.npz", same).sha256


def test_one_changed_token_is_another_record_set(train_set, monkeypatch):
    before, read = fingerprint(train_set), RecordSet.read_rows
    assert train_set.num_rows < 1024
    monkeypatch.setattr(RecordSet, "read_rows", lambda self, rows: read(self, rows) + (np.asarray(rows) == 3)[:, None])
    assert fingerprint(train_set) != before


def test_a_state_without_an_order_is_that_of_all_rows():
    Order().require_unchanged({}, "x")
    with pytest.raises(ConfigError, match="x: its SHA-256 is none, was abc in training"):
        Order().require_unchanged({"order": "abc"}, "x")


def test_command_line(losses, tmp_path, capsys):
    capsys.readouterr()
    words = ["data", "resample", "--losses", str(tmp_path / "losses.npz"), "--seed", "4", "--output"]
    assert main([*words, str(tmp_path / "a.npz"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == drawn(tmp_path, "b.npz", seed=4) and not err
    assert main([*words, str(tmp_path / "c.npz"), "--keep", "1"]) == 0
    table = capsys.readouterr().out
    assert [line.split()[-1] for line in table.splitlines() if "dropped" in line] == ["-"]
    assert main([*words, str(tmp_path / "a.npz")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
