"""The Slurm script under stand-ins for srun, scontrol and pangu."""

import signal

import pytest

from tests.run.manifest.schemas import sbatch_options
from tests.run.manifest.tools import LAUNCH, TRAIN, WORDS, calls, execute, signals, written


@pytest.fixture
def slurm(capsys, tools):
    """Execute the Slurm script of NASTY words, as sbatch does."""
    script = tools / "job.sh"
    script.write_text(written(capsys, "slurm", *WORDS, "--env", "EXTRA=v $w", "--max-requeues", "5"))
    return lambda **options: execute(
        tools, ["bash", str(script)], SLURM_JOB_ID="42", SLURM_JOB_NODELIST="n[1-2]", **options
    )


def requeues(heard):
    return [event["scontrol"] for event in heard if "scontrol" in event]


def test_slurm_reserves_what_the_plan_needs(capsys, plan):
    options = sbatch_options(
        written(capsys, "slurm", *WORDS, "--partition", "a b", "--time", "2:00:00", "--grace", "120")
    )
    wanted = {
        "nodes": "2",
        "ntasks-per-node": "1",
        "gres": "npu:8",
        "signal": "B:USR1@120",
        "requeue": "",
        "partition": "a b",
        "time": "2:00:00",
    }
    assert options | wanted == options and options["job-name"] == "pangu-alpha-13b" and "exclusive" in options
    assert plan.asked == [TRAIN]


def test_slurm_says_how_a_job_is_cancelled_with_its_state_saved(capsys):
    """Plain scancel would kill all of it after 30 s; the signal that the script is told to be sent is one that it waits
    for."""
    text = written(capsys, "slurm", *WORDS)
    assert "# Cancel it with `scancel --batch --signal=TERM JOB`" in text.split("\nset -u\n")[0] and "' TERM\n" in text


def test_slurm_starts_one_launcher_on_each_host_with_the_words_unchanged(slurm):
    process, heard = slurm()
    assert process.returncode == 0, process.err
    assert sorted(calls(heard)) == [
        ["launch", "--server-id", host, "--hosts", "n1,n2", *LAUNCH] for host in ("n1", "n2")
    ]
    assert {event["extra"] for event in heard} == {"v $w"}


@pytest.mark.parametrize(
    "code,count,requeued", [(75, "0", 1), (75, "4", 1), (75, "5", 0), (1, "0", 0), (2, "0", 0), (137, "0", 0)]
)
def test_slurm_requeues_what_stopped_with_its_state_saved_and_nothing_else(slurm, code, count, requeued):
    process, heard = slurm(CODE=str(code), SLURM_RESTART_COUNT=count)
    assert process.returncode == code and requeues(heard) == ["requeue 42"] * requeued
    assert ("submit it again" in process.err) == (count == "5")


@pytest.mark.parametrize("number,requeued", [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_slurm_passes_a_signal_on_and_does_not_revive_a_cancelled_job(slurm, number, requeued):
    process, heard = slurm(WAIT="1", stop=number, starters=2)
    assert signals(heard) == ["SIGUSR1", "SIGUSR1"]
    assert process.returncode == 75 and requeues(heard) == ["requeue 42"] * requeued
