"""`run/train.sh`: its words reach the launcher unchanged, from any directory, and the launcher's exit code comes back."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run/train.sh"
RECORDER = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"words": sys.argv[1:], "path": os.environ["PYTHONPATH"], "cwd": os.getcwd()}}))
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def run(tmp_path):
    """Run the script in an empty directory with an interpreter that records what it is given."""
    python = tmp_path / "my python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    (tmp_path / "else where").mkdir()

    def start(*words, script=SCRIPT, **variables):
        environment = os.environ | {"PYTHON": str(python)} | variables
        return subprocess.run([str(script), *words], cwd=tmp_path / "else where", env=environment, capture_output=True, text=True, timeout=20)

    return start


def heard(done):
    return json.loads(done.stdout)


def test_words_are_sorted_to_their_verb_and_stay_whole(run):
    done = run("--config", "a b.yaml", "--rank-table", "$t *.json", "x.y=1 2", "--smoke", "--max-restarts=5", "--output", "o'p", "--resume", "")
    launch, train = ["--rank-table", "$t *.json", "--smoke", "--max-restarts=5"], ["--config", "a b.yaml", "x.y=1 2", "--output", "o'p", "--resume", ""]
    assert heard(done)["words"] == ["-m", "run", "launch", *launch, "train", *train]


@pytest.mark.parametrize("dry_run", [True, False])
def test_json_goes_to_the_verb_that_prints(run, dry_run):
    words = heard(run("--json", "--output", "o", *(["--dry-run"] if dry_run else [])))["words"]
    assert (words.index("--json") < words.index("train")) == dry_run


def test_it_runs_where_the_caller_stands_and_finds_its_own_tree(run, tmp_path):
    link = tmp_path / "link.sh"
    link.symlink_to(SCRIPT)
    for script in (SCRIPT, link):
        report = heard(run("--output", "o", script=script, PYTHONPATH="/mine"))
        assert report["path"] == f"{SCRIPT.parents[1]}:/mine"
        assert report["cwd"] == str(tmp_path / "else where")


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_the_exit_code_is_the_launchers(run, code):
    assert run("--output", "o", CODE=str(code)).returncode == code


def test_mistakes_and_help(run):
    missing = run("--output", "o", "--hosts")
    assert (missing.returncode, missing.stdout) == (2, "") and "--hosts: has no value" in missing.stderr
    assert run().returncode == 2
    assert "usage: run/train.sh" in run("--help").stdout


def test_every_option_of_the_launcher_is_known():
    """Otherwise an option would go to `train`, which does not have it."""
    pytest.importorskip("run.launch_cli")
    done = subprocess.run([sys.executable, "-m", "run", "launch", "--help"], cwd=SCRIPT.parents[1], capture_output=True, text=True)
    options = set(re.findall(r"--[a-z][a-z-]+", done.stdout)) - {"--help", "--json"}
    known = re.findall(r"--[a-z][a-z-]+", "".join(line for line in SCRIPT.read_text().splitlines() if line.startswith(("flags", "valued"))))
    assert done.returncode == 0 and options <= set(known)


def test_the_real_interpreter_starts_the_launch_layer(tmp_path):
    """No stand-in: the module is found from a directory that has nothing, and another `run` directory there is no hindrance."""
    (tmp_path / "run").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHON": sys.executable}
    done = subprocess.run([str(SCRIPT), "--launch-help"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 or "run.launch_cli" in done.stderr
