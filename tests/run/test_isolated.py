"""Children import nothing from the working directory, whatever lies there: modules of the standard library, of others,
of ours."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_ms.core import isolated

ROOT = Path(__file__).parents[2]
SOURCES = ("pangu_ms", "ascend_ops", "run")
OTHERS = [
    "run",
    "yaml",
    "numpy",
    "psutil",
    "mindspore",
    "sentencepiece",
    "jieba",
    "tqdm",
    "pydantic",
    "sitecustomize",
    "usercustomize",
]
OURS = ["pangu_ms", "pangu_run", "ascend_ops", "console", "errors", "files"]
POISON = (
    "open(__file__ + '.imported', 'w').close()\nraise SystemExit('imported from the working directory: ' + __name__)\n"
)
PANGU = """
import os, runpy, sys
os.environ["PYTHONPATH"] = os.pathsep + os.environ.get("PYTHONPATH", "")  # as `PYTHONPATH=$PYTHONPATH:DIR` leaves it
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""A console script: a file elsewhere, and its directory the first place to import from."""
WORKERS = """
import json
from pangu_ms.data.workers import Workers
with Workers(2, json.loads, "[]") as workers:
    print([workers.submit(len, [1] * n).result() for n in range(3)])
"""


@pytest.fixture
def run(tmp_path):
    """Run a console script in a directory in which every module has a namesake that leaves a trace when it is
    imported."""
    directory = tmp_path / "work"
    directory.mkdir()
    for name in {*sys.stdlib_module_names, *OTHERS, *OURS}:
        (directory / f"{name}.py").write_text(POISON)
    (tmp_path / "pangu").write_text(PANGU)

    def start(*words, command=(sys.executable, str(tmp_path / "pangu")), **variables):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | variables
        done = subprocess.run(
            [*command, *map(str, words)], cwd=directory, env=environment, capture_output=True, text=True, timeout=300
        )
        imported = sorted(path.name for path in directory.glob("*.imported"))
        assert not imported and done.returncode == 0, (imported, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout

    return start


def test_a_launch_and_its_ranks(run, tmp_path):
    spec = {"output": str(tmp_path / "out"), "steps": 3}
    run(
        "tests.faults.light_launch",
        json.dumps(spec),
        PYTHONPATH=f"{ROOT}:{ROOT / 'run'}",
        LIGHT_NAME=f"light-{tmp_path}",
        LIGHT_PAUSE="0.01",
    )
    assert json.loads((tmp_path / "out/job/status.json").read_text())["exit_code"] == 0


def test_what_is_asked_of_the_program(run, tmp_path):
    """`pangu launch` and `pangu manifest` ask children about the words."""
    words = ["train", "--config", "alpha/tiny", "--output", tmp_path / "out", "parallel.data_parallel=2"]
    assert len(json.loads(run("pangu_ms", "launch", "--dry-run", "--json", *words))) == 2
    assert "usage: pangu train" in run("pangu_ms", "launch", "train", "--help")


def test_train_sh(run, tmp_path):
    words = ["--help"]
    for path in ("", ":", f":{ROOT}::"):
        assert "pangu train" in run(
            "train", *words, command=[str(ROOT / "run/train.sh")], PYTHON=sys.executable, PYTHONPATH=path
        )


def test_encoding_a_corpus(run, tmp_path, text_file, records):
    words = [
        "--corpus",
        text_file,
        "--tokenizer",
        records / "tokenizer",
        "--seq-length",
        32,
        "--num-workers",
        2,
        "--output",
        tmp_path / "records",
    ]
    run("pangu_ms", "data", "prepare", *words)


@pytest.mark.slow
def test_rehearsing_a_plan(run):
    small = [
        "model.vocab_size=384",
        "model.hidden_size=32",
        "model.num_layers=2",
        "model.num_heads=4",
        "model.seq_length=32",
        "train.batch_size=2",
    ]
    run(
        "pangu_ms",
        "plan",
        "rehearse",
        "--config",
        "alpha/tiny",
        *small,
        "parallel.data_parallel=2",
        "runtime.device=Ascend",
    )


@pytest.mark.slow
def test_training_and_all_that_follows(run, tmp_path, records, tiny_overrides):
    words = ["--config", "alpha/tiny", *tiny_overrides, "--data", records]
    run("pangu_ms", "train", *words, "parallel.data_parallel=2", "--output", tmp_path / "two")
    run("pangu_ms", "launch", "--device", "cpu", "--num-ranks", 2, "train", *words, "--output", tmp_path / "launched")
    run("pangu_ms", "export", tmp_path / "two", "--output", tmp_path / "package", "--batch-size", 1)
    run(tmp_path / "package/run.pyz", "--prompt", "def", "--max-new-tokens", 2, command=[sys.executable])


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12"])
def test_every_python_leaves_the_working_directory_out(run, version, tmp_path):
    """PYTHONSAFEPATH begins with 3.11: nothing may hang on it."""
    python = shutil.which(f"python{version}")
    if not python or subprocess.run([python, "-V"], capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    (tmp_path / "use_workers.py").write_text(WORKERS)
    path = f"{ROOT}:{ROOT / 'run'}"
    assert run("use_workers", command=[python, isolated.__file__], PYTHONPATH=f"{path}:{tmp_path}") == "[0, 1, 2]\n"


def test_the_interpreter_is_started_in_one_place():
    """Else it is named in messages, in the listing of --dry-run, to find what is installed beside it, and to run a file
    by its path, which looks beside that file."""
    named, forbidden = set(), ("multiprocessing", "concurrent.futures.process")
    for path in (path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if "sys.executable" in text:
            named.add(path.name)
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {*forbidden, "concurrent.futures.ProcessPoolExecutor"} & set(names), path
    assert named == {"isolated.py", "launch.py", "quickstart.py", "program.py", "manifest_serve.py"}
