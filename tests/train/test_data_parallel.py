"""Training on two processes with MindSpore's collectives: it equals one process, stops and resumes as one, and ends
when a rank is killed."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from pangu_ms.checkpoint.store import latest_valid, open_checkpoint
from pangu_ms.config import load_config
from pangu_ms.core.errors import ConfigError
from tests.faults.common import wait_for
from tests.run.launched import alive
from tests.train.runs import command, losses, metrics, require_equal_runs

pytestmark = pytest.mark.usefixtures("mindspore_cpu")


@pytest.fixture(scope="module")
def two_and_one(tmp_path_factory):
    """What cases of replica_program give on each of two ranks, and in this process alone."""
    from pangu_ms.parallel.replicas import Replicas
    from pangu_run.launcher import run_ranks
    from tests.train.replica_program import results_of

    @functools.cache
    def results(*names):
        directory = tmp_path_factory.mktemp("replicas")
        program = ["-m", "tests.train.replica_program", str(directory), *names]
        assert run_ranks(lambda rank: program, 2, directory) == 0
        ranks = [dict(np.load(directory / f"rank_{rank}.npz")) for rank in range(2)]
        return (*ranks, results_of(names, Replicas()), directory)

    return results


DEFAULT_CASES = ("sgd_cut", "guard")  # one launch for both


@pytest.mark.parametrize("case", [pytest.param("sgd", marks=pytest.mark.slow), "sgd_cut"])
def test_momentum_sgd_equals_one_process(two_and_one, case):
    """Momentum and weights depend on the scale of the gradients, which AdamW would hide; sgd_cut has accumulation and
    dropout too."""
    first, second, alone, _ = two_and_one(*(DEFAULT_CASES if case in DEFAULT_CASES else [case]))
    names = [name for name in alone if name.startswith(f"{case}/")]
    assert len(names) > 20 and first[f"{case}/rows"][-1, 0] < first[f"{case}/rows"][0, 0] - 0.1
    for name in names:
        np.testing.assert_allclose(first[name], alone[name], atol=1e-4, rtol=1e-4, err_msg=name)
        assert np.array_equal(first[name], second[name]), name


def test_what_one_rank_cannot_apply_none_does_and_the_limit_sees_the_global_loss(two_and_one):
    first, second, alone, _ = two_and_one(*DEFAULT_CASES)
    for name in (name for name in alone if name.startswith("guard/")):
        assert np.array_equal(first[name], second[name], equal_nan=True), name
        if name != "guard/rows":
            np.testing.assert_allclose(first[name], alone[name], atol=1e-4, err_msg=name)
    rows = first["guard/rows"]
    np.testing.assert_allclose(rows, alone["guard/rows"], atol=1e-4)
    assert rows[:, 1].tolist() == [1, 0, 0, 1] and rows[1:3, 2].all() and not np.isfinite(rows[1, 0])


def test_ranks_agree_by_sums_that_no_plan_cuts(two_and_one):
    from tests.train.planned_child import TEXT

    directory = two_and_one(*DEFAULT_CASES)[-1]
    both = [json.loads((directory / f"agreed_{rank}.json").read_text()) for rank in range(2)]
    assert both[0] == both[1] == [[None, "SIGTERM", "SIGINT", "failed", "SIGUSR1"], [TEXT, ""]]


def test_a_rank_that_computes_after_a_meeting_does_not_say_that_it_waits(two_and_one):
    from tests.train.replica_program import STEPS

    for rank in range(2):
        beats = [
            json.loads(line) for line in (two_and_one(*DEFAULT_CASES)[-1] / f"heart_{rank}").read_text().splitlines()
        ]
        steps = [*range(STEPS), *range(4)]
        assert [beat["phase"] for beat in beats] == ["wait", "init", *["wait", "step"] * len(steps), "wait"]
        assert [beat["step"] for beat in beats if beat["phase"] == "step"] == steps


@pytest.fixture
def fixed(tiny_overrides):
    """The run of both tests below, however many processes share its batch; `trained_run` has built its kernels."""
    others = ["optimizer.decay_steps=100", "model.dropout=0.2", "train.keep_checkpoints=0", "train.save_every=30"]
    return [*tiny_overrides, *others]


@pytest.fixture
def endless(fixed):
    """The run on two ranks, without an end."""
    return [*fixed, "train.batch_size=2", "parallel.data_parallel=2", "train.steps=100000"]


@pytest.mark.usefixtures("compiled_models")
def test_one_process_goes_on_in_two_a_killed_rank_ends_the_job_and_a_signal_stops_all_at_one_step(
    records, fixed, endless, trained_run, tmp_path
):
    """One run: begun by one process, gone on with by two ranks, killed, resumed and stopped. The steps that are
    computed again are those of the killed ranks bit for bit, and all are those of the process that goes on alone."""
    from pangu_ms.train.loop import train

    output, rarely = tmp_path / "run", ["train.save_every=100000", "train.eval_every=5"]
    alone = [*fixed, *rarely, "train.accumulation_steps=2"]
    train(load_config("alpha/tiny", alone), records, tmp_path / "alone", stop_at=3, progress=False)
    shutil.copytree(tmp_path / "alone", output)

    process = start(records, output, [*endless, *rarely], "--resume")
    wait_for_step(process, output, 6)  # an evaluation and some steps
    found, lost = kill_a_rank(process, output)
    assert found == 3 and min(lost) == 3

    process = start(records, output, [*endless, *rarely], "--resume", "--json")
    wait_for_step(process, output, max(lost) + 2)
    printed, stopped = stop(process, output)
    assert json.loads(printed)["step"] == stopped > max(lost) and json.loads(printed)["cache_hit"]
    assert {step: losses(output)[step] for step in lost} == lost and sorted(losses(output)) == [*range(stopped)]
    assert open_checkpoint(output).config().parallel.data_parallel == 2

    ending = load_config("alpha/tiny", [*alone, f"train.steps={stopped}"])
    train(ending, records, tmp_path / "alone", resume=True, progress=False)
    np.testing.assert_allclose([*losses(tmp_path / "alone").values()], [*losses(output).values()], atol=1e-4, rtol=1e-4)
    expected, evaluated = evaluations(tmp_path / "alone"), evaluations(output)
    assert 4 in evaluated and evaluated == pytest.approx({step: expected[step] for step in evaluated}, abs=1e-4)


def evaluations(output):
    """step -> held-out loss."""
    return {row["step"]: row["held_out_loss"] for row in metrics(output) if "held_out_loss" in row}


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_ends_as_one_that_never_was(records, fixed, endless, trained_run, tmp_path):
    """Bit for bit that of ranks that nothing happens to, and about that of one process."""
    from pangu_ms.train.loop import train

    output = tmp_path / "run"
    process = start(records, output, endless)
    wait_for_step(process, output, 3)
    _, stopped = stop(process, output)

    process = start(records, output, endless, "--resume")
    wait_for_step(process, output, (stopped // 30 + 1) * 30 + 3)
    found, lost = kill_a_rank(process, output)
    assert found > stopped

    steps = found + 3
    for directory in (tmp_path / "whole", output):
        process = start(records, directory, [*endless, f"train.steps={steps}"], "--resume", "--json")
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    require_equal_runs(tmp_path / "whole", output)
    again = {step: row for step, row in losses(output).items() if step in lost}
    assert again and again == {step: lost[step] for step in again}
    result = json.loads(printed)
    assert result["step"] == steps and result["held_out"] and result["cache_hit"] and len(metrics(output)) == steps + 1

    alone = train(
        load_config("alpha/tiny", [*fixed, "train.accumulation_steps=2", f"train.steps={steps}"]),
        records,
        tmp_path / "alone",
        progress=False,
    )
    np.testing.assert_allclose([*losses(tmp_path / "alone").values()], [*losses(output).values()], atol=1e-4, rtol=1e-4)
    assert alone.held_out.loss == pytest.approx(result["held_out"]["loss"], abs=1e-4) and alone.held_out.num_tokens > 0


def stop(process, output):
    """Stop ranks by a signal; returns what they printed and the step at which all of them stopped."""
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and errors.count("stopped by SIGTERM") == 1 and "Traceback" not in errors, errors
    stopped = open_checkpoint(output).step
    assert stopped == max(losses(output)) + 1
    return printed, stopped


def kill_a_rank(process, output):
    """Kill rank 1, which ends the job; returns the step of the newest checkpoint, and the steps after it."""
    children = [int(pid) for pid in re.findall(r"\d+", open(f"/proc/{process.pid}/task/{process.pid}/children").read())]
    os.kill(
        next(pid for pid in children if b"RANK_ID=1\0" in open(f"/proc/{pid}/environ", "rb").read()), signal.SIGKILL
    )
    _, errors = process.communicate(timeout=60)
    killed = "device 1) was killed by SIGKILL"
    assert process.returncode == 128 + 9 and killed in errors and "Traceback" not in errors, errors
    wait_for(lambda: not any(map(alive, children)))
    found = latest_valid(output / "checkpoints")[0].step
    return found, {step: row for step, row in losses(output).items() if step >= found}


LAUNCHER = """
import sys
from pangu_ms.cli import train
from pangu_ms.cli.main import main

train.require_readable = lambda *arguments: None  # imports mindspore: two seconds for records that can be read
sys.exit(main(sys.argv[1:]))
"""


def start(records, output, overrides, *options):
    python, _, _, *words = command(records, output, overrides, *options)
    return subprocess.Popen([python, "-c", LAUNCHER, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process, output, step):
    while not (output / "metrics.jsonl").exists() or max(losses(output), default=0) < step:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def test_only_what_a_cpu_executes_is_begun(records, tiny_overrides, tmp_path, capsys):
    from pangu_ms.cli.main import main
    from pangu_ms.train.loop import train

    def told(*overrides):
        assert (
            main(["train", "--data", str(records), "--output", str(tmp_path / "new"), *tiny_overrides, *overrides]) == 2
        )
        return capsys.readouterr().err

    for field, others in {
        "model_parallel=2": [],
        "pipeline_stage=2": ["parallel.micro_batch_num=2"],
        "optimizer_shard=true": [],
    }.items():
        assert re.search(
            rf"parallel.{field}: a CPU trains with data_parallel alone; rehearse",
            told(f"parallel.{field}", *others),
            re.IGNORECASE,
        )
    assert "vocab_size" in told("parallel.data_parallel=2", "model.vocab_size=64")  # told once, before ranks start
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="this job has 1 process"):
        train(
            load_config("alpha/tiny", [*tiny_overrides, "parallel.data_parallel=2"]),
            records,
            tmp_path / "new",
            progress=False,
        )


def test_a_resumed_run_may_share_its_global_batch_out_anew():
    from pangu_ms.train.resume import require_same_run

    def config(batch_size, data_parallel):
        return load_config(
            "alpha/tiny",
            [
                f"train.batch_size={batch_size}",
                f"parallel.data_parallel={data_parallel}",
                "parallel.devices_per_server=4",
            ],
        )

    require_same_run(config(8, 1), config(4, 2), "checkpoint")
    with pytest.raises(ConfigError, match="must stay 8.*add train.batch_size=4"):
        require_same_run(config(8, 1), config(8, 2), "checkpoint")


def test_the_learning_rate_sees_the_global_batch():
    from pangu_ms.train.schedule import peak_learning_rate

    shared = [
        load_config(
            "alpha/tiny",
            ["optimizer.base_batch_tokens=1024", f"train.batch_size={8 // n}", f"parallel.data_parallel={n}"],
        )
        for n in (1, 2, 8)
    ]
    assert {peak_learning_rate(config) for config in shared} == {peak_learning_rate(shared[0])}
