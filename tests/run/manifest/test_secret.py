"""The job's secret: where several launchers need one, each file sees to it, and no file that others read has it."""

import json

import pytest
import yaml

from pangu_run.cli.manifest import main
from pangu_run.manifest.plan import Plan
from tests.run.manifest.schemas import SECRET, faults
from tests.run.manifest.tools import MOUNT, OF_RUNS, WORDS, execute, written

NAME = "PANGU_JOB_SECRET"


@pytest.mark.parametrize("kind", ["ascendjob", "volcano"])
def test_kubernetes_gets_a_fresh_secret_that_all_pods_name(capsys, kind):
    words = [*WORDS, *MOUNT, "--kind", kind, "--namespace", "team", "--job-name", "x" * 48]
    values = set()
    for _ in range(2):
        secret, job = yaml.safe_load_all(written(capsys, "volcano", *words))
        values.add(secret["stringData"][NAME])
        assert faults(secret, SECRET) == [] and secret["metadata"]["namespace"] == job["metadata"]["namespace"]
        groups = job["spec"]["tasks"] if kind == "volcano" else job["spec"]["replicaSpecs"].values()
        pods = [group["template"]["spec"] for group in groups]
        named = {"name": NAME, "valueFrom": {"secretKeyRef": {"name": secret["metadata"]["name"], "key": NAME}}}
        assert all(named in pod["containers"][0]["env"] for pod in pods) and secret["stringData"][
            NAME
        ] not in json.dumps(job)
    assert len(values) == 2 and all(len(value) == 64 for value in values)


def test_a_file_with_a_secret_is_its_owners_alone(tmp_path):
    for kind, extra, mode in (("volcano", MOUNT, 0o600), ("slurm", [], 0o644)):
        assert main([kind, *WORDS, *extra, "--output", str(tmp_path / kind)]) == 0
        assert (tmp_path / kind).stat().st_mode & 0o777 & ~0o22 == mode


def slurm(capsys, tools, **variables):
    """The secrets of the launchers of one start."""
    (tools / "job.sh").write_text(written(capsys, "slurm", *WORDS))
    process, heard = execute(
        tools, ["bash", str(tools / "job.sh")], SLURM_JOB_ID="42", SLURM_JOB_NODELIST="n[1-2]", **variables
    )
    assert process.returncode == 0, process.err
    found = [event["secret"] for event in heard if "words" in event]
    assert len(found) == 2 and not any(
        secret in " ".join(event["words"]) for event in heard for secret in found if "words" in event
    )
    return set(found)


def test_slurm_makes_one_for_each_start_and_takes_the_users(capsys, tools):
    (first,), (second,) = slurm(capsys, tools), slurm(capsys, tools)
    assert first != second and len(first) == len(second) == 64 and int(first, 16)
    assert slurm(capsys, tools, **{NAME: "the user's own secret"}) == {"the user's own secret"}


def test_who_has_one_host_needs_none_and_modelarts_is_told(capsys, plan):
    assert NAME in written(capsys, "modelarts", *WORDS)
    plan.value = Plan(1, 8, on_ascend=True)
    for kind in OF_RUNS:
        text = written(capsys, kind, *WORDS, *(MOUNT if kind == "volcano" else []))
        assert NAME not in text and "kind: Secret" not in text


@pytest.mark.parametrize("kind", OF_RUNS)
def test_a_secret_among_the_variables_is_refused_and_not_shown(capsys, kind):
    assert main([kind, *WORDS, *(MOUNT if kind == "volcano" else []), "--env", f"{NAME}=do not show this"]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.count("\n") == 1
        and f"--env {NAME}: would stand in a file" in err
        and "do not show" not in err
    )
