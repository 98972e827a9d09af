"""Training on an order file: its rows and no others, resumed bit for bit, and never on another file."""

import dataclasses

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError, DataError
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import BatchLosses, Order, fingerprint, resample
from tests.train.runs import require_equal_runs

pytestmark = pytest.mark.usefixtures("compiled_models")


@pytest.fixture(scope="module")
def train_set(records):
    return RecordSet.open(records, "train")


@pytest.fixture(scope="module")
def order(train_set, tmp_path_factory):
    """Path of an order of ten rows: five of eight batches of two."""
    directory = tmp_path_factory.mktemp("order")
    rows = np.random.default_rng(3).permutation(train_set.num_rows)[:16].reshape(8, 2)
    losses = BatchLosses(rows, np.linspace(1, 3, 8, dtype=np.float32), fingerprint(train_set), "c", "{}")
    losses.save(directory / "losses.npz")
    for seed in (1, 2):
        resample(directory / "losses.npz", 0.625, seed, directory / f"{seed}.npz")
    return directory / "1.npz"


@pytest.fixture(scope="module")
def config(tiny_overrides, order):
    return load_config("alpha/tiny", [*tiny_overrides, f"data.order={order}"])


@pytest.fixture(scope="module")
def whole(config, records, tmp_path_factory):
    """A finished run on the order."""
    from pangu_ms.train.loop import train

    output = tmp_path_factory.mktemp("ordered") / "run"
    train(config, records, output, progress=False)
    return output


def changed(config, **data):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


@pytest.mark.parametrize("shuffle", [True, False])
def test_steps_read_the_rows_of_the_order_and_no_others(config, records, train_set, order, tmp_path, shuffle):
    from pangu_ms.train.run import Run

    run = Run(changed(config, shuffle=shuffle), records, tmp_path / "run")
    batches = run.batches()
    read = np.concatenate([next(batches).ids for _ in range(5)])
    expected = train_set.read_rows(Order.open(order, train_set).rows)
    assert len(np.unique(expected, axis=0)) == 10
    for epoch in read.reshape(2, 10, -1):  # five batches of four rows are two epochs
        assert np.array_equal(epoch, expected) == (not shuffle)
        assert np.array_equal(np.unique(epoch, axis=0), np.unique(expected, axis=0))


def test_stop_and_resume_equal_one_run_bit_for_bit(whole, config, records, order, tmp_path):
    """The order file may stand elsewhere by then."""
    from pangu_ms.train.loop import train

    train(config, records, tmp_path / "parts", stop_at=5, progress=False)
    (tmp_path / "moved.npz").write_bytes(order.read_bytes())
    train(changed(config, order=str(tmp_path / "moved.npz")), records, tmp_path / "parts", resume=True, progress=False)
    require_equal_runs(whole, tmp_path / "parts")


def test_a_run_resumes_on_no_other_order(whole, trained_run, config, records, order):
    from pangu_ms.train.loop import train

    before = (whole / "config.yaml").read_bytes()
    for path, run, found in (
        (order.with_name("2.npz"), whole, "is [0-9a-f]{12}, was [0-9a-f]{12}"),
        ("", whole, "is none, was"),
        (order, trained_run, "was none"),
    ):
        with pytest.raises(ConfigError, match=f"data.order={path}: its SHA-256 .*{found}.* restore it"):
            train(changed(config, order=str(path)), records, run, resume=True, progress=False)
    assert (whole / "config.yaml").read_bytes() == before


def test_an_order_of_other_records_is_told_before_training(config, records, order, train_set, tmp_path):
    from pangu_ms.train.loop import train

    with np.load(order) as archive:
        np.savez(tmp_path / "other.npz", **{**archive, "records": "f" * 64})
    with pytest.raises(DataError, match="other.npz: drawn from records ffffffffffff"):
        train(changed(config, order=str(tmp_path / "other.npz")), records, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_next_round_starts_from_the_rows_of_this_one(whole, config, records, order, train_set, tmp_path):
    """Losses of a run on an order are those of its batches; a changed order file is refused."""
    from pangu_ms.eval.batch_losses import batch_losses

    checkpoint = open_checkpoint(whole)
    found = batch_losses(checkpoint, records, tmp_path / "losses.npz", progress=False)
    rows = Order.open(order, train_set).rows
    assert found.rows.shape == (2, 4) and set(found.rows.reshape(-1)) < set(rows)
    resample(tmp_path / "losses.npz", 0.5, 1, tmp_path / "next.npz")
    kept = Order.open(tmp_path / "next.npz", train_set).rows
    assert kept.tolist() in found.rows.tolist()
    with pytest.raises(ConfigError, match="data.order=.*2.npz: its SHA-256"):
        batch_losses(
            checkpoint,
            records,
            tmp_path / "again.npz",
            config=changed(config, order=str(order.with_name("2.npz"))),
            progress=False,
        )
