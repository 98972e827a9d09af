"""A finished run can be lengthened where the rates of its steps stay what they were, and messages say how."""

import re
import shutil

import pytest

from pangu_ms.cli import main as cli
from pangu_ms.cli import train as train_cli
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.train import run as run_module
from pangu_ms.train.directory import LOCK
from pangu_ms.train.resume import require_same_run
from pangu_ms.train.schedule import learning_rate
from tests.train.given import Given
from tests.train.runs import losses

BASE = ["train.steps=12", "optimizer.warmup_steps=2"]


def config(*overrides):
    return load_config("alpha/tiny", [*BASE, *overrides])


@pytest.mark.parametrize(
    ("was", "now", "step"),
    [
        ([], ["train.steps=24", "optimizer.decay_steps=12"], 12),
        (["optimizer.schedule=constant"], ["train.steps=24", "optimizer.schedule=constant"], 12),
        (["optimizer.decay_steps=40"], ["optimizer.decay_steps=40", "train.steps=24"], 12),
        ([], ["train.steps=24"], 2),  # no decay has begun
    ],
)
def test_a_longer_run_whose_done_steps_had_the_same_rates_goes_on(was, now, step):
    stored, wanted = config(*was), config(*now)
    require_same_run(stored, wanted, "ckpt", step)
    assert all(learning_rate(stored, done) == learning_rate(wanted, done) for done in range(step))


@pytest.mark.parametrize("was", [[], ["optimizer.decay_steps=40"]])
def test_other_rates_are_refused_and_the_advice_keeps_them(was):
    stored, wanted = config(*was), config("train.steps=24")
    with pytest.raises(ConfigError) as refused:
        require_same_run(stored, wanted, "ckpt", 12)
    advised = config("train.steps=24", re.search(r"add (optimizer.decay_steps=\d+)", str(refused.value))[1])
    require_same_run(stored, advised, "ckpt", 12)
    assert all(learning_rate(stored, step) == learning_rate(advised, step) for step in range(12))


@pytest.mark.parametrize(
    "was", [[], ["optimizer.warmup_steps=12"], ["optimizer.warmup_steps=40"], ["optimizer.schedule=constant"]]
)
def test_the_advice_for_a_finished_run_is_taken_and_keeps_the_rates(was):
    """Also where the run ended within its warm-up: a decay that never began has no end to keep, and none may lie
    there."""
    stored = config(*was)
    added = re.findall(r"optimizer.decay_steps=\d+", train_cli._lengthening(stored))
    longer = config(*was, "train.steps=24", *added)
    require_same_run(stored, longer, "ckpt", 12)
    assert all(learning_rate(stored, done) == learning_rate(longer, done) for done in range(12))


def test_a_finished_run_says_how_it_is_lengthened_and_that_works(
    records, tiny_overrides, trained_run, tmp_path, capsys, monkeypatch, mindspore_cpu
):
    """The losses of the further steps are given, so that nothing is compiled."""
    monkeypatch.setattr(run_module, "load", lambda model, checkpoint, group: None)
    monkeypatch.setattr(run_module, "build_distributed_model", lambda config, loader: Given(config))
    shutil.copytree(trained_run, tmp_path / "run")
    command = [
        "train",
        "--config",
        "alpha/tiny",
        *tiny_overrides,
        "--data",
        str(records),
        "--output",
        str(tmp_path / "run"),
        "--resume",
    ]
    assert cli.main(command) == 0
    added = re.search(
        r"nothing left to do.*; to lengthen the run, add a train.steps above \d+ and (optimizer.decay_steps=\d+)",
        capsys.readouterr().out,
    )[1]
    assert cli.main([*command, "train.steps=14", added]) == 0
    before, after = losses(trained_run), losses(tmp_path / "run")
    assert sorted(after) == list(range(14)) and all(after[step] == before[step] for step in before)
    capsys.readouterr()
    assert cli.main([*command, "train.steps=14", added]) == 0
    assert re.search(
        r"; to lengthen the run, add a train.steps above \d+\n$", capsys.readouterr().out
    )  # the decay's end is given


def test_a_run_is_not_shortened_and_not_bent_for_nothing(records, tiny_overrides, trained_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    before = contents(run)
    command = ["train", "--config", "alpha/tiny", *tiny_overrides, "--data", str(records), "--output", str(run)]
    shorter = ["train.steps=11", "optimizer.decay_steps=12"]
    for options in (["--resume", *shorter], ["--resume-from", "12"], ["--resume-from", "12", "optimizer.lr=1e-3"]):
        assert cli.main([*command, *options]) == 2
        assert re.search(
            r"step 12, and train.steps=1[12]; .* add train.steps=1[23] or more\n$", capsys.readouterr().err
        )
    assert contents(run) == before


def contents(run):
    """All files by path, but the lock, which names the process that had it last."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != LOCK}
