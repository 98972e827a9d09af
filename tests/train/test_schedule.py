"""Learning rate: the schedule by its formula, and its rule for the batch."""

import json
import math

import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from pangu_ms.train.schedule import learning_rate

BASE = ["train.steps=100", "optimizer.lr=1e-3", "optimizer.min_lr=1e-4", "optimizer.warmup_steps=20"]


def rates(*overrides):
    config = load_config("alpha/tiny", [*BASE, *overrides])
    return [learning_rate(config, step) for step in range(120)]


def test_warm_up_decay_and_floor():
    cosine = rates()
    assert cosine[:20] == pytest.approx([1e-3 * (step + 1) / 20 for step in range(20)])
    assert cosine[20:100] == pytest.approx(
        [1e-4 + 9e-4 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2 for step in range(20, 100)]
    )
    assert cosine[100:] == pytest.approx([1e-4] * 20)
    linear = rates("optimizer.schedule=polynomial", "optimizer.decay_from=zero", "optimizer.decay_steps=110")
    assert linear[20:] == pytest.approx([1e-4 + 9e-4 * max(0, 1 - step / 110) for step in range(20, 120)])
    assert rates("optimizer.schedule=constant")[20:] == [1e-3] * 100


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "constant"])
def test_the_rate_grows_with_the_root_of_the_batch(schedule):
    """lr = lr0 * (B / B0)^0.5 at every step, the last rate included (spec E2.5)."""
    sizes = [f"optimizer.schedule={schedule}", "train.batch_size=6", "model.seq_length=48"]
    plain = rates(*sizes)
    assert rates(*sizes, "optimizer.base_batch_tokens=288") == plain
    for base in (72, 1000):
        expected = [rate * (6 * 48 / base) ** 0.5 for rate in plain]
        assert rates(*sizes, f"optimizer.base_batch_tokens={base}", "train.accumulation_steps=3") == pytest.approx(
            expected, rel=1e-12
        )


def test_show_prints_the_peak(capsys):
    command = [
        "config",
        "show",
        "--config",
        "alpha/tiny",
        *BASE,
        "train.batch_size=4",
        "model.seq_length=64",
        "optimizer.base_batch_tokens=64",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(" parameters, peak learning rate 0.002")
    assert main([*command, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["effective_lr"] == pytest.approx(2e-3) and shown["optimizer"]["lr"] == 1e-3


def test_a_negative_batch_is_refused():
    with pytest.raises(ConfigError, match="optimizer.base_batch_tokens=-1: must not be negative; 0 takes lr as it is"):
        load_config("alpha/tiny", ["optimizer.base_batch_tokens=-1"])
