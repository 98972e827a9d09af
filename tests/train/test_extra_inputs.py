"""A family that reads one more input than the others: it is made by row, split into micro-batches, trained on and
evaluated with."""

import json

import numpy as np
import pytest

from pangu_ms.config import load_config
from pangu_ms.core.errors import DataError
from pangu_ms.data import extra_inputs
from pangu_ms.data.loader import Loader, sequential_batches
from pangu_ms.data.records import RecordSet
from pangu_ms.models.alpha import model as alpha
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.batch import Batch, blank_batch
from pangu_ms.models.common.config import ExtraInput

pytestmark = pytest.mark.usefixtures("compiled_models")


class Toned(alpha.PanguAlpha):
    """Alpha whose logits are larger by half in rows of tone 1, so that their losses are other ones."""

    def construct(self, ids_BS, positions_BS, segments_BS, key, tone_B, weight_BS):
        """`tone_B` int32 [B], `weight_BS` float32 [B, S]."""
        logits_BSV = super().construct(ids_BS, positions_BS, segments_BS, key)
        return logits_BSV * (1.0 + tone_B.reshape(-1, 1) * weight_BS).expand_dims(2)


@pytest.fixture
def toned(monkeypatch, tiny_overrides):
    """Makes alpha the toned family; returns its configuration with overrides. No cached graph of alpha is taken."""
    declared = {"tone": ExtraInput(("batch",)), "weight": ExtraInput(("batch", "sequence"), "float32")}
    monkeypatch.setattr(AlphaConfig, "extra_inputs", lambda config: declared)
    for name in ("PanguAlpha", "MODEL"):
        monkeypatch.setattr(alpha, name, Toned, raising=False)
    monkeypatch.setitem(extra_inputs.SOURCES, "tone", lambda model, records, rows, ids: (rows % 2).astype(np.int32))
    monkeypatch.setitem(extra_inputs.SOURCES, "weight", weights_of)
    short = ["train.steps=3", "train.save_every=0", "train.eval_batches=1", "model.dropout=0.0"]
    overrides = [*tiny_overrides, *short, "runtime.compile_cache=false"]
    return lambda *more: load_config("alpha/tiny", [*overrides, *more])


def weights_of(model, records, rows, ids):
    return np.full((len(rows), ids.shape[1] - 1), 0.5, np.float32)


def trained(config, records, output):
    """Losses of the steps, and the held-out loss."""
    from pangu_ms.train.loop import train

    result = train(config, records, output, progress=False)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if "loss" in row] + [result.held_out.loss])


def test_a_model_with_extra_inputs_trains_in_micro_batches_and_evaluates(toned, records, tmp_path, monkeypatch):
    whole = trained(toned(), records, tmp_path / "whole")
    assert len(whole) == 4 and np.isfinite(whole).all()
    halves = trained(toned("train.accumulation_steps=2"), records, tmp_path / "halves")
    np.testing.assert_allclose(halves, whole, rtol=1e-5)
    monkeypatch.setitem(extra_inputs.SOURCES, "tone", lambda model, records, rows, ids: np.zeros(len(rows), np.int32))
    plain = trained(toned(), records, tmp_path / "plain")
    assert (np.abs(plain - whole) > 1e-4).all()  # each step's loss, and the evaluation's, depend on the input


def test_each_row_has_its_own_extra_inputs(toned, records):
    model = toned().model
    train_set = RecordSet.open(records, "train")
    loader = Loader(train_set, 4, model=model)
    batch = next(loader.batches(3))
    assert list(batch.extra) == ["tone", "weight"] and batch.arrays()[4:] == tuple(batch.extra.values())
    assert batch.extra["tone"].tolist() == (loader.row_numbers(3) % 2).tolist()
    parts = list(batch.split(2))
    assert all(isinstance(part, Batch) and part.extra["weight"].shape == (2, 32) for part in parts)
    assert np.concatenate([part.extra["tone"] for part in parts]).tolist() == batch.extra["tone"].tolist()

    size = train_set.num_rows - 1  # the second batch has one row, and rows that do not count
    *_, last = sequential_batches(train_set, size, True, model=model)
    assert last.extra["tone"].tolist() == [size % 2] * size and last.extra["weight"].shape == (size, 32)
    blank = blank_batch(model, 6)
    shapes = [(array.shape, array.dtype) for array in blank.arrays()]
    assert shapes == [
        (array.shape, array.dtype) for array in next(Loader(train_set, 6, model=model).batches()).arrays()
    ]


def test_an_input_that_no_records_have_is_told_before_anything_is_read(toned, records, tmp_path, monkeypatch):
    from pangu_ms.train.run import Run

    monkeypatch.delitem(extra_inputs.SOURCES, "tone")
    with pytest.raises(DataError, match="^tone: the model reads this input, and no records have it"):
        Run(toned(), records, tmp_path / "run")
    assert not (tmp_path / "run").exists()
