"""The losses of a round's batches: which rows, what value, interrupted and continued."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli.main import main
from pangu_ms.core.errors import DataError, OutputError
from pangu_ms.data.loader import Loader
from pangu_ms.data.records import RecordSet
from pangu_ms.data.resample import BatchLosses
from pangu_ms.eval import batch_losses as module
from pangu_ms.eval.batch_losses import batch_losses
from tests.eager import eager
from tests.reference import alpha_numpy

pytestmark = pytest.mark.usefixtures("compiled_models")


@pytest.fixture(scope="module")
def checkpoint(trained_run):
    return open_checkpoint(trained_run)


@pytest.fixture(scope="module")
def train_set(records):
    return RecordSet.open(records, "train")


@pytest.fixture(scope="module")
def whole(checkpoint, records, tmp_path_factory):
    """(file, losses) of an uninterrupted call."""
    path = tmp_path_factory.mktemp("losses") / "losses.npz"
    return path, batch_losses(checkpoint, records, path, progress=False)


def require_equal(found, expected):
    assert all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in vars(expected))
    assert found.loss.dtype == np.float32 and found.rows.dtype == np.int64


def test_batches_are_those_of_the_training_steps(whole, checkpoint, train_set):
    path, found = whole
    data = checkpoint.config().data
    assert data.shuffle and train_set.num_rows % 4
    loader = Loader(train_set, 4, seed=data.seed)
    assert found.rows.tolist() == [loader.row_numbers(step).tolist() for step in range(train_set.num_rows // 4)]
    assert json.loads(found.made_by)["dropped_rows"] == train_set.num_rows % 4
    require_equal(BatchLosses.load(path), found)
    assert os.listdir(path.parent) == ["losses.npz"]


def test_every_loss_equals_numpy_on_its_rows(whole, checkpoint, train_set):
    config, weights, (_, found) = checkpoint.config(), checkpoint.tensors("model"), whole
    for rows, loss in list(zip(found.rows, found.loss))[:6]:
        ids = train_set.read_rows(rows)
        mask = (ids[:, :-1] != train_set.eod_id) & (ids[:, :-1] != train_set.pad_id)
        logits = alpha_numpy.forward(config.model, weights, ids[:, :-1], train_set.eod_id)
        assert loss == pytest.approx(alpha_numpy.loss(logits, ids[:, 1:], mask), rel=1e-5)
    assert np.ptp(found.loss) > 1e-3  # batches differ, so that a loss of another batch would be seen


class Killed(BaseException):
    """Not to be caught by anyone, like a kill."""


def stop_after(count, monkeypatch, error=Killed):
    add = module.Partial.add

    def counting(self, loss):
        if len(self.losses) == count:
            raise error
        add(self, loss)

    monkeypatch.setattr(module.Partial, "add", counting)


def test_an_interrupted_call_goes_on_and_equals_one_call_bit_for_bit(whole, checkpoint, records, tmp_path, monkeypatch):
    output, partial = tmp_path / "losses.npz", tmp_path / "losses.npz.partial"
    with monkeypatch.context() as patched:
        stop_after(5, patched)
        with pytest.raises(Killed):
            batch_losses(checkpoint, records, output, progress=False)
    assert not output.exists()
    with np.load(partial) as saved:
        assert saved["losses"].tolist() == whole[1].loss[:5].tolist()
    scored, score = [], module.Evaluator.each
    monkeypatch.setattr(
        module.Evaluator, "each", lambda self, batches: (scored.append(1) or one for one in score(self, batches))
    )
    require_equal(batch_losses(checkpoint, records, output, progress=False), whole[1])
    assert len(scored) == len(whole[1].loss) - 5 and not partial.exists()


SLOWLY = """
import sys, time, types
import numpy as np
losses = np.load(sys.argv[1])["loss"]

class Evaluator:
    load = classmethod(lambda cls, *_: cls())

    def each(self, batches):
        return (types.SimpleNamespace(loss=float(loss)) for loss, _ in zip(losses, batches))

sys.modules["pangu_ms.eval.perplexity"] = types.SimpleNamespace(Evaluator=Evaluator)
from pangu_ms.cli.main import main
from pangu_ms.eval import batch_losses
batch_losses.SAVE_SECONDS = 0
add = batch_losses.Partial.add
batch_losses.Partial.add = lambda self, loss: (time.sleep(0.05), add(self, loss))
main(sys.argv[2:])
"""
"""`pangu data losses` that saves after each batch. It is going to be killed, and so looks its losses up in a file."""


def test_kill_minus_nine_loses_seconds_at_most(whole, trained_run, records, tmp_path):
    """A process is killed as soon as it has saved some, and the same command ends the work."""
    output, partial = tmp_path / "losses.npz", tmp_path / "losses.npz.partial"
    arguments = ["data", "losses", str(trained_run), "--data", str(records), "--output", str(output)]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, whole[0], *arguments], stderr=subprocess.DEVNULL)

    def count():
        if not partial.exists():
            return 0
        with np.load(partial) as saved:
            return len(saved["losses"])

    while count() < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 3 <= count() < len(whole[1].loss) and not output.exists()
    assert main(arguments) == 0
    require_equal(BatchLosses.load(output), whole[1])


def test_a_partial_file_of_other_settings_is_named(checkpoint, records, tmp_path, monkeypatch):
    output = tmp_path / "losses.npz"
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(Killed):
            batch_losses(checkpoint, records, output, progress=False)
    before = (tmp_path / "losses.npz.partial").read_bytes()
    with pytest.raises(DataError, match=r"losses.npz.partial: begun with batch_size 4 \(now 3\); repeat that command"):
        batch_losses(checkpoint, records, output, batch_size=3, progress=False)
    other = open_checkpoint(checkpoint.path.with_name("step-00000009"))
    with pytest.raises(DataError, match=r"begun with checkpoint [0-9a-f]{12} \(now [0-9a-f]{12}\);"):
        batch_losses(other, records, output, progress=False)
    assert (tmp_path / "losses.npz.partial").read_bytes() == before


def test_mistakes_are_told_before_the_work(whole, checkpoint, records, tmp_path, train_set, monkeypatch):
    monkeypatch.setattr(module.Evaluator, "load", None)
    for size in (0, train_set.num_rows + 1):
        with pytest.raises(DataError, match=rf"batch_size={size}: must be in \[1, {train_set.num_rows}\]"):
            batch_losses(checkpoint, records, tmp_path / "losses.npz", size)
    with pytest.raises(OutputError, match="nothing is overwritten"):
        batch_losses(checkpoint, records, whole[0])
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_no_weight(tmp_path):
    partial = module.Partial.open(tmp_path / "losses.npz.partial", {})
    with pytest.raises(DataError, match="batch 0: loss nan: must be finite"):
        partial.add(float("nan"))


def test_command_line_with_overrides_behind_options(whole, trained_run, records, tmp_path, capsys):
    capsys.readouterr()
    words = [
        "data",
        "losses",
        str(trained_run),
        "--data",
        str(records),
        "--output",
        str(tmp_path / "half.npz"),
        "--json",
    ]
    with eager():
        assert main([*words, "model.compute_dtype=float16"]) == 0
    out, err = capsys.readouterr()
    result, found = json.loads(out), BatchLosses.load(tmp_path / "half.npz")
    assert (result["batches"], result["batch_size"]) == found.rows.shape and not err
    assert not np.array_equal(found.loss, whole[1].loss)
    np.testing.assert_allclose(found.loss, whole[1].loss, rtol=1e-2)  # 11 bits of mantissa through two layers
    (tmp_path / "half.npz").unlink()
    assert main([*words, "model.num_layers=3"]) == 2
    assert "a checkpoint's model is fixed" in capsys.readouterr().err
