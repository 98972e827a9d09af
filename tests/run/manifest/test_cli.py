"""What all kinds of manifest have: mistakes in one line, files written whole, the plan."""

import json
import re

import pytest

from pangu_ms.core.console import guarded
from pangu_ms.core.errors import LaunchError
from pangu_run.cli.manifest import main
from pangu_run.manifest.plan import Plan, of_program
from pangu_run.program import Program
from tests.run.manifest.tools import MOUNT, OF_RUNS, WORDS, written

MISTAKES = [
    ("slurm", ["--env", "1A=b"], "--env 1A=b: must be NAME=VALUE"),
    ("slurm", ["--env", "RANK_SIZE=8"], "--env RANK_SIZE=8: the launcher takes RANK_SIZE away"),
    ("slurm", ["--grace", "10"], "--grace 10: must be from 60"),
    ("slurm", ["--partition", "a\n#SBATCH --uid=0"], "--partition 'a\\n#SBATCH --uid=0': has a control character"),
    ("slurm", ["train.x=1\nrm"], "has a control character"),
    ("slurm", ["--master-port", "65535"], "--master-port 65535: must be from 1024 to 65534"),
    ("volcano", [*MOUNT, "--table-timeout", "-1"], "--table-timeout -1: must be from 0"),
    ("slurm", ["--time", "tomorrow"], "--time tomorrow: is not of Slurm's form"),
    ("slurm", ["--job-name", "My Job"], "--job-name My Job: must be"),
    ("volcano", [*MOUNT, "--memory", "lots"], "--memory lots: is not a quantity"),
    ("volcano", [*MOUNT, "--mount", "data:/x"], "--mount data:/x: must be HOST:PATH"),
    ("volcano", [*MOUNT, "--mount", "/other:/out"], "/out is mounted twice"),
    ("volcano", [*MOUNT, "--init-from", "/elsewhere"], "--init-from /elsewhere: lies in no --mount"),
    ("volcano", ["--mount", "/shared:/ou"], "lies in no --mount"),
    ("volcano", [*MOUNT, "--node-selector", "a"], "--node-selector a: must be KEY=VALUE"),
    ("volcano", [*MOUNT, "--namespace", "A"], "--namespace A: must be"),
    ("modelarts", ["--output-dir", "out"], "--output-dir out: must be an absolute path"),
]


@pytest.mark.parametrize("kind,words,says", MISTAKES)
def test_mistakes_are_one_line_and_write_nothing(capsys, tmp_path, kind, words, says):
    output = tmp_path / "file"
    assert guarded("pangu", lambda: main([kind, *WORDS, *words, "--output", str(output)])) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and out == "" and not output.exists()


@pytest.mark.parametrize("kind", ["slurm", "volcano", "modelarts"])
def test_a_cpu_run_asks_for_no_ascend_cluster(capsys, plan, kind):
    plan.value = Plan(1, 2, on_ascend=False)
    assert main([kind, *WORDS, *(MOUNT if kind == "volcano" else [])]) == 2
    assert "runtime.device=CPU" in capsys.readouterr().err


def test_a_config_file_that_the_job_cannot_see_is_refused(capsys, tmp_path, monkeypatch):
    (tmp_path / "x.yaml").write_text("base: alpha/tiny\n")
    (tmp_path / "context").mkdir()
    monkeypatch.chdir(tmp_path / "context")
    words = ["--config", str(tmp_path / "x.yaml"), "--output-dir", "/out/x"]
    for kind, extra, says in (
        ("volcano", MOUNT, "does not see this file"),
        ("modelarts", [], "does not see this file"),
        ("docker", [], "lies outside"),
    ):
        assert main([kind, *words, *extra]) == 2
        assert says in capsys.readouterr().err


def test_a_file_is_written_and_told(capsys, tmp_path):
    path = tmp_path / "deep" / "job.sh"
    told = written(capsys, "slurm", *WORDS, "--output", str(path))
    assert (
        told
        == f"{path}: 2 server(s) with 8 device(s) each; submit it with `sbatch {path}`, cancel it with `scancel --batch"
        " --signal=TERM JOB`\n"
    )
    report = json.loads(written(capsys, "slurm", *WORDS, "--json"))
    assert report["text"] == path.read_text() and (report["hosts"], report["devices_per_host"]) == (2, 8)


def test_unequal_servers_are_refused():
    assert of_program(Program(4, "CPU", [[1, 0], [0, 0], [0, 1], [1, 1]], 8)) == Plan(2, 2, on_ascend=False)
    with pytest.raises(LaunchError, match="3 ranks lie 2 on one server and 1 on another"):
        of_program(Program(3, "Ascend", [[0, 0], [0, 1], [1, 0]], 8))


def test_the_plan_comes_from_the_configuration(request):
    """The real program, asked in a process of its own first: the 200B plan's 128 devices."""
    from pangu_run.manifest.plan import plan_of

    words = ["--config", "alpha/200b_128x64gib", "runtime.device=Ascend", "--output", "/nowhere"]
    assert plan_of(words) == Plan(16, 8, True, "ascend910b")
    request.getfixturevalue("answering")
    assert plan_of([*words, "runtime.chip=ascend910"]).product == "910"
    with pytest.raises(LaunchError, match="alpha/nope: no such file or shipped config"):
        plan_of(["--config", "alpha/nope", "--output", "/nowhere"])


@pytest.mark.parametrize(("chip", "product"), [("ascend910", "910"), ("ascend910b", "910b"), ("", "910b")])
def test_a_plan_of_the_first_910_names_it(capsys, plan, chip, product):
    """Image, its base and label are of the plan's chip; that MindSpore may not run there is said."""
    plan.value = Plan(2, 8, True, chip)
    texts = {}
    for kind in OF_RUNS:
        assert main([kind, *WORDS, *(MOUNT if kind == "volcano" else [])]) == 0
        texts[kind], error = capsys.readouterr()
        assert ("unconfirmed" in error) == (product == "910") and error.count("\n") <= 1
    base = next(line for line in texts["docker"].splitlines() if line.startswith("ARG BASE="))
    assert re.search(r"-(910\w*)-", base)[1] == product
    assert set(re.findall(r"ring-controller.atlas: (.*)", texts["volcano"])) == {f"ascend-{product}"}
    tag = re.search(r"--tag (\S+)", texts["docker"])[1]
    assert f"image: {tag}\n" in texts["volcano"] and tag.endswith("-910") == (product == "910")
    assert "ascend-910b" in written(
        capsys, "volcano", *WORDS, *MOUNT, "--ring-controller", "ascend-910b"
    )  # as the user says


@pytest.mark.parametrize("kind", OF_RUNS)
def test_help_shows_defaults(capsys, kind):
    with pytest.raises(SystemExit):
        main([kind, "--help"])
    out = capsys.readouterr().out
    assert "(default: 300)" in out and "None" not in out and "==SUPPRESS==" not in out and "[]" not in out
