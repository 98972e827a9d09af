"""A run goes on with any plan of its model and global batch; where the global batch is another one, the message says
what to add, and that works."""

import contextlib
import itertools
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli import main as cli
from pangu_ms.config import load_config
from pangu_ms.config.load import presets
from pangu_ms.core.errors import ConfigError
from pangu_ms.data.loader import Loader
from pangu_ms.train.resume import require_same_run
from tests.train.runs import command, losses, metrics, require_equal_runs

CLUSTERS = [match for name in presets() if (match := re.fullmatch(r"(.+)_\d+x\d+gib", name))]
MODELS = sorted({match[1] for match in CLUSTERS})
CANNOT = [("alpha/200b_2048x32gib", 128), ("pi/7b_128x32gib", 64), ("pi/7b_128x64gib", 64)]
"""Plans whose replicas get fewer sequences of another plan's global batch than they have stages: 16 replicas of 16
stages, 32 of 4, 64 of 2."""


def advised(stored, wanted):
    """The overrides that the refusal of a resume names; None where it says that there are none."""
    with pytest.raises(ConfigError) as refused:
        require_same_run(stored, wanted, "ckpt")
    assert f"must stay {stored.global_batch_size}" in str(refused.value)
    found = re.search(r"; add ([\w.= ]+)$", str(refused.value))
    assert found or "this plan cannot" in str(refused.value)
    return found and found[1].split()


@pytest.mark.parametrize("model", MODELS)
def test_every_shipped_plan_of_a_model_goes_on_with_a_run_of_every_other(model):
    configs = {match[0]: load_config(match[0]) for match in CLUSTERS if match[1] == model}
    advice = 0
    for (_, stored), (name, wanted) in itertools.permutations(configs.items(), 2):
        if stored.global_batch_size == wanted.global_batch_size:
            require_same_run(stored, wanted, "ckpt")
            continue
        advice += 1
        added = advised(stored, wanted)
        if added is None:
            size, parallel = stored.global_batch_size, wanted.parallel
            assert size % parallel.data_parallel or size // parallel.data_parallel < parallel.pipeline_stage
            assert (name, size) in CANNOT
            continue
        changed = load_config(name, added)
        require_same_run(stored, changed, "ckpt")
        assert sequences_of_a_micro_batch(changed) <= sequences_of_a_micro_batch(wanted)
        assert changed.parallel.product() == wanted.parallel.product()
    assert advice >= 6


def sequences_of_a_micro_batch(config):
    return config.train.batch_size // max(config.train.accumulation_steps, config.parallel.micro_batch_num)


SHARES = [(8, 1, 1), (4, 2, 2), (2, 4, 1), (1, 8, 1), (8, 1, 4)]  # batch_size, data_parallel, accumulation_steps


def test_each_step_reads_the_same_rows_however_the_batch_is_shared_out():
    rows = SimpleNamespace(num_rows=50, eod_id=0, pad_id=0)
    for step in (0, 5, 6, 7, 100):  # an epoch ends in steps 6 and 100
        read = [
            np.concatenate([Loader(rows, size, rank=r, world=world).row_numbers(step) for r in range(world)]).tolist()
            for size, world, _ in SHARES
        ]
        assert all(found == read[0] for found in read) and len(read[0]) == 8


def test_every_share_of_a_batch_resumes_every_other_and_another_batch_does_not():
    configs = [
        load_config(
            "alpha/tiny", [f"train.batch_size={b}", f"parallel.data_parallel={d}", f"train.accumulation_steps={a}"]
        )
        for b, d, a in SHARES
    ]
    for stored, wanted in itertools.permutations(configs, 2):
        require_same_run(stored, wanted, "ckpt")
    assert advised(configs[0], load_config("alpha/tiny", ["parallel.data_parallel=2"])) == ["train.batch_size=4"]
    assert advised(configs[0], load_config("alpha/tiny", ["train.batch_size=2"])) == [
        "train.batch_size=8",
        "train.accumulation_steps=4",
    ]
    assert advised(configs[0], load_config("alpha/tiny", ["parallel.data_parallel=3"])) is None
    with pytest.raises(
        ConfigError, match=r"another configuration: model.dropout=0.3 \(was 0.0\); resume with the old values"
    ):
        require_same_run(
            configs[0], load_config("alpha/tiny", ["model.dropout=0.3", "parallel.data_parallel=2"]), "ckpt"
        )


def test_where_no_share_exists_the_advised_search_finds_plans(tmp_path, capsys):
    from pangu_ms.config import dump_config

    stored, wanted = load_config("pi/7b_8x32gib"), load_config("pi/7b_128x32gib")
    (tmp_path / "config.yaml").write_text(dump_config(stored))
    with pytest.raises(
        ConfigError, match="each of data_parallel=32 replicas gets 2 of it, fewer than pipeline_stage=4 stages"
    ) as refused:
        require_same_run(stored, wanted, str(tmp_path))
    words = re.search(r"`pangu (.+)` finds", str(refused.value))[1].split()
    assert cli.main(words) == 0
    best = capsys.readouterr().out.strip().splitlines()[-1].split()
    require_same_run(stored, load_config("pi/7b", best), str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_models")
def test_a_run_goes_from_one_process_to_two_and_back(records, tiny_overrides, trained_run, tmp_path):
    """Accumulation of two, then two replicas, then one whole batch: losses as of the run that had one whole batch all
    the time. In the default tier a run goes on in two processes in test_data_parallel.py."""
    from pangu_ms.train.loop import train

    output = tmp_path / "run"
    halves = ["train.accumulation_steps=2"]
    train(load_config("alpha/tiny", [*tiny_overrides, *halves]), records, output, stop_at=4, progress=False)
    ranks = ["train.batch_size=2", "parallel.data_parallel=2", "train.accumulation_steps=1"]
    done = subprocess.run(
        command(records, output, [*tiny_overrides, *ranks], "--resume", "--stop-at", "8"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert open_checkpoint(output).config().parallel.data_parallel == 2
    result = train(load_config("alpha/tiny", tiny_overrides), records, output, resume=True, progress=False)
    assert result.step == 12 and sorted(losses(output)) == list(range(12))
    require_about_equal(trained_run, output, 1e-4)
    assert result.held_out.loss == pytest.approx(held_out_loss(trained_run), abs=1e-4)


def held_out_loss(output):
    return metrics(output)[-1]["held_out_loss"]


def require_about_equal(first, second, tolerance):
    np.testing.assert_allclose([*losses(first).values()], [*losses(second).values()], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_models")
@pytest.mark.parametrize(
    "half", [[], ["model.compute_dtype=float16", "loss_scale.initial=1024"]], ids=["float32", "float16"]
)
def test_losses_and_evaluations_stay_those_of_one_process(records, tiny_overrides, tmp_path, half):
    from pangu_ms.train.loop import train

    fixed = [*tiny_overrides, "model.dropout=0", "train.steps=10", "train.eval_every=5", "train.batch_size=4", *half]
    alone = train(load_config("alpha/tiny", fixed), records, tmp_path / "alone", progress=False)
    for end, (batch, replicas, parts) in enumerate([(4, 1, 4), (1, 4, 1), (2, 2, 2), (2, 2, 1), (4, 1, 1)], 1):
        shares = [
            f"train.batch_size={batch}",
            f"parallel.data_parallel={replicas}",
            f"train.accumulation_steps={parts}",
            f"runtime.compile_cache={end > 1}",
        ]
        stop = ["--stop-at", str(2 * end)] if end < 5 else []
        done = subprocess.run(
            command(records, tmp_path / "run", [*fixed, *shares], "--resume", *stop),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    require_about_equal(tmp_path / "alone", tmp_path / "run", 2e-3 if half else 1e-4)
    assert [row.get("skipped") for row in metrics(tmp_path / "run")] == [
        row.get("skipped") for row in metrics(tmp_path / "alone")
    ]
    evaluations = [
        [row["held_out_loss"] for row in metrics(tmp_path / name) if "held_out_loss" in row]
        for name in ("alone", "run")
    ]
    np.testing.assert_allclose(*evaluations, rtol=1e-3)
    assert alone.held_out and len(evaluations[0]) == 2


@pytest.mark.usefixtures("mindspore_cpu")
def test_the_loss_scale_follows_the_micro_batch_and_other_masks_are_told(records, tiny_overrides, tmp_path, caplog):
    """float16 gradients are divided by the tokens of a micro-batch: with half as many the scale is halved, and they
    keep their size. No step is needed for that."""
    from pangu_ms.train.run import Run

    half = [*tiny_overrides, "model.compute_dtype=float16", "model.dropout=0.1"]

    def begun(resume, *overrides):
        run = Run(load_config("alpha/tiny", [*half, *overrides]), records, tmp_path / "run")
        with contextlib.closing(run):
            run.begin(resume)
            if not resume:
                run.save(iter(()))
        return run

    begun(False)
    scale = open_checkpoint(tmp_path / "run").state()["guard"]["scale"]
    for parts, told in ((1, ""), (2, "model.dropout=0.1: micro-batches have another size from step 0 on")):
        caplog.clear()
        resumed = begun(True, f"train.accumulation_steps={parts}")
        assert scale > 2 and resumed.guard.scale == scale / parts
        assert told in caplog.text and ("dropout" in caplog.text) == bool(told)


@pytest.mark.usefixtures("compiled_models")
def test_a_resharded_checkpoint_is_a_run_that_goes_on(records, tiny_overrides, trained_run, tmp_path, capsys):
    """In the slices of four ranks of two stages; one process reads them, and the end is that of the run that was never
    cut."""
    from pangu_ms.train.loop import train

    plan = [
        f"parallel.{degree}"
        for degree in (
            "model_parallel=2",
            "pipeline_stage=2",
            "micro_batch_num=2",
            "data_parallel=2",
            "optimizer_shard=true",
        )
    ]
    train(load_config("alpha/tiny", tiny_overrides), records, tmp_path / "run", stop_at=5, progress=False)
    assert cli.main(["ckpt", "reshard", str(tmp_path / "run"), "--output", str(tmp_path / "cut"), *plan]) == 0
    stored = open_checkpoint(tmp_path / "cut").config()
    assert (stored.global_batch_size, stored.train.batch_size) == (4, 2) and "note:" not in capsys.readouterr().out
    assert load_config(str(tmp_path / "cut/config.yaml")) == stored
    assert len(list((tmp_path / "cut/checkpoints/step-00000005").glob("model-rank-*"))) == 4
    words = [
        "train",
        "--config",
        "alpha/tiny",
        *tiny_overrides,
        "--data",
        str(records),
        "--output",
        str(tmp_path / "cut"),
        "--resume",
        "--json",
    ]
    assert cli.main(words) == 0
    assert (
        open_checkpoint(tmp_path / "cut").tensors("optimizer").keys()
        == open_checkpoint(trained_run).tensors("optimizer").keys()
    )
    (tmp_path / "cut/metrics.jsonl").write_text(
        (tmp_path / "run/metrics.jsonl").read_text() + (tmp_path / "cut/metrics.jsonl").read_text()
    )
    require_equal_runs(trained_run, tmp_path / "cut")
    assert cli.main(["ckpt", "reshard", str(tmp_path / "run"), "--output", str(tmp_path / "cut"), *plan]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (
        cli.main(
            ["ckpt", "reshard", str(tmp_path / "run"), "--output", str(tmp_path / "new"), "parallel.data_parallel=3"]
        )
        == 2
    )
    assert "parallel.data_parallel=3 does not divide it; must stay" in capsys.readouterr().err
