"""A family that reads more inputs than the others, the domain of a row among them: they are made by row, split into
micro-batches, trained on and evaluated with."""

import json

import numpy as np
import pytest

from pangu_ms.core.errors import DataError
from pangu_ms.data import extra_inputs
from pangu_ms.data.loader import Loader, sequential_batches
from pangu_ms.data.records import RecordSet
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.batch import Batch, blank_batch
from pangu_ms.models.common.init import initial_values
from tests.reference import alpha_numpy
from tests.train.toned import make_alpha_toned

pytestmark = pytest.mark.usefixtures("compiled_models")
IN_HALVES = ["train.accumulation_steps=2"]


@pytest.fixture
def with_domains(monkeypatch, tiny_overrides):
    """Makes alpha the toned family; returns its configuration with overrides."""
    return make_alpha_toned(monkeypatch, tiny_overrides)


@pytest.fixture
def toned(monkeypatch, with_domains):
    """The same, and the input `domain` is another one: whether the number of the row is odd."""
    monkeypatch.setitem(extra_inputs.SOURCES, "domain", lambda model, records, rows, ids: (rows % 2).astype(np.int32))
    return with_domains


def trained(config, records, output):
    """Losses of the steps, and the held-out loss."""
    from pangu_ms.train.loop import train

    result = train(config, records, output, progress=False)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if "loss" in row] + [result.held_out.loss])


def test_a_model_with_extra_inputs_trains_in_micro_batches_and_evaluates(toned, records, tmp_path, monkeypatch):
    """The first loss of two micro-batches is that of numpy float64 for the whole batch."""
    config = toned(*IN_HALVES)
    found = trained(config, records, tmp_path / "run")
    assert len(found) == 4 and np.isfinite(found).all()
    loader = Loader.of(RecordSet.open(records, "train"), config)
    batch, odd = next(loader.batches()), loader.row_numbers(0) % 2
    assert 0 < odd.sum() < len(odd)
    weights = dict(initial_values(config.model, config.train.seed))
    logits = alpha_numpy.forward(config.model, weights, batch.ids[:, :-1], RecordSet.open(records, "train").eod_id)
    logits *= 1 + 0.5 * odd[:, None, None]
    assert found[0] == pytest.approx(alpha_numpy.loss(logits, batch.ids[:, 1:], batch.loss_mask), rel=1e-5)
    monkeypatch.setitem(extra_inputs.SOURCES, "domain", lambda model, records, rows, ids: np.zeros(len(rows), np.int32))
    plain = trained(config, records, tmp_path / "plain")
    assert (np.abs(plain - found) > 1e-4).all()  # each step's loss, and the evaluation's, depend on the input


def test_a_model_with_domains_trains_and_each_domain_is_told(with_domains, two_domains, tmp_path, monkeypatch):
    from pangu_ms.train.loop import train

    monkeypatch.setattr(AlphaConfig, "domains", ("b", "c", "a"))
    config = with_domains("data.samples_per_domain={a: 2, b: 2}", *IN_HALVES)
    held_out = train(config, two_domains, tmp_path / "run", progress=False).held_out
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (told,) = [line for line in lines if "held_out_loss" in line]
    assert list(held_out.domains) == ["a", "b"]  # one batch of each, though train.eval_batches is 1
    for domain, score in held_out.domains.items():
        assert told[f"held_out_loss/{domain}"] == score.loss
    assert sum(score.num_tokens for score in held_out.domains.values()) == held_out.num_tokens
    # Row by row, the index reaches the model: with the domains the other way round other logits are scaled.
    monkeypatch.setattr(AlphaConfig, "domains", ("a", "c", "b"))
    other = train(config, two_domains, tmp_path / "swapped", progress=False).held_out
    assert abs(other.domains["a"].loss - held_out.domains["a"].loss) > 1e-3


def test_each_row_has_its_own_extra_inputs(toned, records):
    model = toned().model
    train_set = RecordSet.open(records, "train")
    loader = Loader(train_set, 4, model=model)
    batch = next(loader.batches(3))
    assert list(batch.extra) == ["domain", "weight"] and batch.arrays()[4:] == tuple(batch.extra.values())
    assert batch.extra["domain"].tolist() == (loader.row_numbers(3) % 2).tolist()
    parts = list(batch.split(2))
    assert all(isinstance(part, Batch) and part.extra["weight"].shape == (2, 32) for part in parts)
    assert np.concatenate([part.extra["domain"] for part in parts]).tolist() == batch.extra["domain"].tolist()

    size = train_set.num_rows - 1  # the second batch has one row, and rows that do not count
    *_, last = sequential_batches(train_set, size, True, model=model)
    assert last.extra["domain"].tolist() == [size % 2] * size and last.extra["weight"].shape == (size, 32)
    blank = blank_batch(model, 6)
    shapes = [(array.shape, array.dtype) for array in blank.arrays()]
    assert shapes == [
        (array.shape, array.dtype) for array in next(Loader(train_set, 6, model=model).batches()).arrays()
    ]


def test_an_input_that_no_records_have_is_told_before_anything_is_read(toned, records, tmp_path, monkeypatch):
    from pangu_ms.train.run import Run

    monkeypatch.delitem(extra_inputs.SOURCES, "domain")
    with pytest.raises(DataError, match="^domain: the model reads this input, and no records have it"):
        Run(toned(), records, tmp_path / "run")
    assert not (tmp_path / "run").exists()
