"""A run that is stopped, by its own wish, by a signal or by kill -9, goes on as if it had not been."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from pangu_ms.checkpoint.store import latest_valid, open_checkpoint
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError, OutputError, UserError
from tests.train.runs import command, losses, metrics, require_equal_runs, steps_of

pytestmark = pytest.mark.usefixtures("compiled_models")


ACCUMULATED, HALF = (
    ["train.accumulation_steps=2", "train.eval_every=4"],
    [
        "model.compute_dtype=float16",
        "loss_scale.window=4",
    ],
)
PI = ["model.num_kv_heads=2", "model.siaf_terms=2", "model.aug_shortcut_branches=1", "model.ffn_hidden_size=48"]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("alpha/tiny", ["model.dropout=0.2", *ACCUMULATED, *HALF]),
        pytest.param("alpha/tiny", [], marks=pytest.mark.slow),
        pytest.param("alpha/tiny", ["model.dropout=0.2", *ACCUMULATED], marks=pytest.mark.slow),
        pytest.param("alpha/tiny", HALF, marks=pytest.mark.slow),
        pytest.param("pi/tiny", PI + ACCUMULATED + HALF, marks=pytest.mark.slow),
    ],
)
def test_stop_and_resume_equal_one_run_bit_for_bit(records, tiny_overrides, tmp_path, name, extra):
    from pangu_ms.train.loop import train

    config = load_config(name, tiny_overrides + extra)
    train(config, records, tmp_path / "whole", progress=False)
    first = train(config, records, tmp_path / "parts", stop_at=5, progress=False)
    assert (first.step, first.stopped_by) == (5, "stop_at")
    train(config, records, tmp_path / "parts", resume=True, progress=False)
    require_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_second_run_in_a_directory_is_refused_and_a_signal_ends_the_first_with_a_commit(
    records, tiny_overrides, trained_run, tmp_path, capsys
):
    """The first ends as if it had been alone, and asks to be started again; a killed one holds nothing up either, see
    the next test."""
    from pangu_ms.cli.main import main

    output, endless = tmp_path / "run", [*tiny_overrides, "train.steps=100000", "train.save_every=0"]
    first = subprocess.Popen(command(records, output, endless), stderr=subprocess.PIPE, text=True)
    try:
        while not (output / "metrics.jsonl").exists() or len(losses(output)) < 4:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        capsys.readouterr()
        assert main(command(records, output, endless, "--resume")[3:]) == 2
        told = capsys.readouterr().err
        assert f"process {first.pid} on" in told and told.count("\n") == 1
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 75
    assert "stopped by SIGTERM" in errors and "Traceback" not in errors
    assert open_checkpoint(output).step == max(losses(output)) + 1


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_kill_minus_nine_at_any_instant_loses_nothing_committed(records, tiny_overrides, trained_run, tmp_path, kills):
    """Saves after every step, so that most kills hit a save; afterwards the resumed run equals the one that was never
    killed."""
    from pangu_ms.train.loop import train

    overrides = [*tiny_overrides, "train.save_every=1", "train.keep_checkpoints=2"]
    output, rng = tmp_path / "run", random.Random(0)
    reached = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command(records, output, [*overrides, "train.steps=12"], "--resume"), stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not any((output / "checkpoints").glob(f"step-{reached + 1:08d}")):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
        found, _ = latest_valid(output / "checkpoints")
        assert found.step > reached or found.step == 12
        reached = found.step
    train(load_config("alpha/tiny", overrides), records, output, resume=True, progress=False)
    require_equal_runs(trained_run, output)


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(records, tiny_overrides, trained_run, tmp_path, caplog):
    from pangu_ms.train.loop import train

    config = load_config("alpha/tiny", tiny_overrides)
    shutil.copytree(trained_run, tmp_path / "run")
    newest = tmp_path / "run/checkpoints/step-00000012/optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    result = train(config, records, tmp_path / "run", resume=True, progress=False)
    assert "step-00000012" in caplog.text and result.step == 12
    require_equal_runs(trained_run, tmp_path / "run")


def test_another_configuration_cannot_resume(records, tiny_overrides, trained_run):
    from pangu_ms.train.loop import train

    with pytest.raises(ConfigError, match=r"optimizer.lr=0.5 \(was"):
        train(
            load_config("alpha/tiny", [*tiny_overrides, "optimizer.lr=0.5"]),
            records,
            trained_run,
            resume=True,
            progress=False,
        )


def test_a_finished_run_is_not_overwritten(records, tiny_overrides, trained_run, tmp_path):
    from pangu_ms.train.loop import train

    config = load_config("alpha/tiny", tiny_overrides)
    with pytest.raises(OutputError, match="add --resume"):
        train(config, records, trained_run, progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    with pytest.raises(OutputError, match="exists with other content"):
        train(config, records, tmp_path / "other", progress=False)
    assert os.listdir(tmp_path / "other") == ["file"]


@pytest.mark.fast
def test_the_model_learns(trained_run):
    values = [loss for loss, _ in losses(trained_run).values()]
    assert values[-1] < values[0] - 0.5


def test_tensorboard_shows_what_metrics_hold(records, tiny_overrides, tmp_path):
    from pangu_ms.train.loop import train

    train(
        load_config("alpha/tiny", [*tiny_overrides, "train.steps=2"]),
        records,
        tmp_path / "run",
        progress=False,
        trackers=["tensorboard"],
    )
    events = b"".join(path.read_bytes() for path in (tmp_path / "run/tensorboard").iterdir())
    assert b"grad_norm" in events and b"held_out_loss" in events
    assert {"held_out_loss", "held_out_perplexity"} <= set(metrics(tmp_path / "run")[-1])


def test_a_run_that_diverges_keeps_its_good_checkpoints_and_what_it_advises_works(
    records, tiny_overrides, tmp_path, capsys
):
    """At rate 1 the loss is nonsense from the fifth step on, but finite."""
    from pangu_ms.cli.main import main

    run = tmp_path / "run"
    overrides = [*tiny_overrides, "optimizer.warmup_steps=20", "train.save_every=1", "train.keep_checkpoints=0"]
    words = ["train", "--config", "alpha/tiny", *overrides, "--data", str(records), "--output", str(run), "--json"]
    assert main([*words, "optimizer.lr=1"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pangu train: ")]
    good = open_checkpoint(run)
    assert good.step == steps_of(run)[-1] < 6 and good.state()["loss_after"] < 4 * np.log(384)
    advised = re.search(
        rf"the newest good checkpoint is of step {good.step};.* as by `(--resume-from {good.step} optimizer.lr=[^`]+)`",
        line,
    )[1].split()

    assert main([*words, "--resume", *advised[2:]]) == 2  # the rate alone: the line names the option
    assert "add --resume-from STEP" in capsys.readouterr().err
    first = str(steps_of(run)[0])
    for number, options in enumerate(
        ([*advised, "--stop-at", "9"], advised, [advised[0], first, *advised[2:]], [advised[0], first, *advised[2:]])
    ):
        assert main([*words, *options]) == 0, capsys.readouterr().err
        if number < 2:
            assert [bend["step"] for bend in open_checkpoint(run).state()["bends"]] == [good.step]
    was = {"optimizer.lr": "1.0", "optimizer.min_lr": "0.0002"}
    told = ", ".join(
        f"{name}={float(value)!r} (was {was[name]})" for name, _, value in (word.partition("=") for word in advised[2:])
    )
    assert f"# bent at step {first}: {told}" in (run / "config.yaml").read_text()
    assert [(row["step"], row["bent"]) for row in metrics(run) if "bent" in row] == [(int(first), told)]
    # the last command found its branch, and had nothing to do
    (archive,) = (run / "checkpoints").glob("before-bend-*")
    assert archive.name == f"before-bend-1-at-{int(first):08d}" and len(list(archive.iterdir())) == 12 - int(first)
    assert open_checkpoint(run).state()["loss_after"] < 4 * np.log(
        384
    )  # good in that sense alone: a tenth of the rate may still be too much
    assert (
        main([*words, *advised[:1], "77", *advised[2:]]) == 2
        and "has no checkpoint of that step; there are those of steps" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [None, 8])
def test_a_streak_of_skipped_steps_is_part_of_the_state_and_never_saved_as_good(
    records, tiny_overrides, tmp_path, monkeypatch, stop_at
):
    from pangu_ms.core.errors import TrainingDiverged
    from pangu_ms.train import guard, loop

    overrides = [*tiny_overrides, "train.save_every=3", "train.keep_checkpoints=1"]
    monkeypatch.setattr(guard.Guard, "loss_limit", lambda own, config: float("inf") if own.seen < 4 else 0.0)
    with pytest.raises(TrainingDiverged, match="--resume-from 3 "):  # as it would be had the session been a longer one
        loop.train(load_config("alpha/tiny", overrides), records, tmp_path / "run", stop_at=stop_at, progress=False)
    assert (
        steps_of(tmp_path / "run") == [3] and open_checkpoint(tmp_path / "run").state()["guard"]["skipped_in_row"] == 0
    )
    with pytest.raises(TrainingDiverged, match="step 7: 3 steps in a row were skipped"):
        loop.train(
            load_config("alpha/tiny", [*overrides, "guard.max_skipped=3"]),
            records,
            tmp_path / "run",
            resume=True,
            progress=False,
        )
    monkeypatch.undo()
    loop.train(load_config("alpha/tiny", overrides), records, tmp_path / "run", resume=True, progress=False)
    loop.train(load_config("alpha/tiny", overrides), records, tmp_path / "whole", progress=False)
    require_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_a_bad_batch_alone_does_not_refuse_a_checkpoint_and_batches_stay_in_order():
    from types import SimpleNamespace

    from pangu_ms.train.guard import Guard
    from pangu_ms.train.health_check import NO_UPDATE, PeekableBatches, healthy_loss

    config, batches, asked = load_config("alpha/tiny"), PeekableBatches(iter([float("nan"), 3.0, 1.0, 2.0])), []

    def step(batch, number, lr, scale, limit):
        asked.append((number, limit))
        return SimpleNamespace(loss=batch)

    assert healthy_loss(step, Guard(), config, 5, batches) == 3.0 and asked == [(5, NO_UPDATE), (6, NO_UPDATE)]
    assert [str(next(batches)) for _ in range(4)] == ["nan", "3.0", "1.0", "2.0"]
    assert healthy_loss(step, Guard(), config, 5, PeekableBatches(iter([float("nan"), 1e6, float("inf")]))) is None


@pytest.mark.slow
def test_a_second_run_without_resume_is_refused_and_a_killed_one_holds_nothing_up(records, tiny_overrides, tmp_path):
    output, endless = tmp_path / "run", [*tiny_overrides, "train.steps=100000", "optimizer.decay_steps=100"]
    first = subprocess.Popen(command(records, output, endless), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not (output / "metrics.jsonl").exists():
            assert first.poll() is None, first.stdout.read()
            time.sleep(0.05)
        second = subprocess.run(command(records, output, endless), capture_output=True, text=True, timeout=120)
        assert second.returncode == 2 and f"process {first.pid} on" in second.stderr, second.stderr
        assert second.stderr.count("\n") == 1
    finally:
        first.kill()
        first.wait()
    done = subprocess.run(
        command(records, output, [*endless[:-2], "train.steps=2", "optimizer.decay_steps=100"], "--resume"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_launched_and_unlaunched_runs_in_one_directory_do_not_mix(records, tiny_overrides, tmp_path):
    """Whichever is first, the second is refused in one line, whether it comes with a launcher or without."""
    endless = [
        *tiny_overrides,
        "train.steps=100000",
        "optimizer.decay_steps=100",
        "train.save_every=0",
    ]  # a save that is under way would be told of
    alone, launched = (command(records, tmp_path / name, endless) for name in ("alone", "launched"))
    launched[3:3] = launcher = ["launch", "--device", "cpu", "--num-ranks", "1"]
    seconds = {
        "alone": [*alone[:3], *launcher, *alone[3:]],
        "launched": [word for word in launched if word not in launcher],
    }
    for name, first in (("alone", alone), ("launched", launched)):
        running = subprocess.Popen(first, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        try:
            while not (tmp_path / name / "metrics.jsonl").exists():
                assert running.poll() is None
                time.sleep(0.05)
            for again in (seconds[name], first):
                done = subprocess.run([*again, "--resume"], capture_output=True, text=True, timeout=300)
                assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
                assert re.search(r"trains in it; one at a time|another launcher .* runs a job there", done.stderr)
        finally:
            running.terminate()
            running.wait(120)


def test_a_mistake_found_late_leaves_no_directory(records, tiny_overrides, trained_run, tmp_path):
    from pangu_ms.train.loop import train

    with pytest.raises(UserError):
        train(
            load_config("alpha/tiny", [*tiny_overrides, "model.ffn_hidden_size=64"]),
            records,
            tmp_path / "new",
            init_from=trained_run,
            progress=False,
        )
    assert not (tmp_path / "new").exists()
