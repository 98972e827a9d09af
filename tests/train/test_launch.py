"""`pangu train` on several CPU ranks: what would end them as soon as they start is told before there are any."""

import importlib.util

import pytest

from pangu_ms.cli import train as cli
from pangu_ms.cli import train_ranks
from pangu_ms.core.errors import UserError


@pytest.fixture
def start(monkeypatch, records, tiny_overrides):
    """Start `pangu train` with two ranks that are not; returns their words and their number."""

    def ranks(words, world, directory, **options):
        return words(0), world

    monkeypatch.setattr(train_ranks, "run_ranks", ranks)
    return lambda output, *words: cli.main(
        ["--data", str(records), *tiny_overrides, "parallel.data_parallel=2", "--output", str(output), *words]
    )


def refused(start, *words):
    with pytest.raises(UserError) as error:
        start(*words)
    return str(error.value)


def test_weights_of_another_model_are_refused_before_ranks_start(start, trained_run, tmp_path):
    assert "instead of (64, 32)" in refused(
        start, tmp_path / "run", "--init-from", str(trained_run), "model.ffn_hidden_size=64"
    )
    assert str(tmp_path / "none") in refused(start, tmp_path / "run", "--init-from", str(tmp_path / "none"))
    words, world = start(tmp_path / "run", "--init-from", str(trained_run))
    assert world == 2 and words[:3] == ["-m", "pangu_ms", "train"] and words[-2:] == ["--init-from", str(trained_run)]
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_keeps_its_own_weights(start, trained_run):
    """A scheduler repeats the command that began the run, when the first weights may be gone."""
    words = ["--resume", "--init-from", "gone", "train.batch_size=2"]  # two ranks: the same global batch
    assert start(trained_run, *words)[1] == 2


def test_tensorboard_is_there_before_ranks_start(start, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboardX" else real(name, *rest)
    )
    assert "--tensorboard: tensorboardX is not installed" in refused(start, tmp_path / "run", "--tensorboard")
