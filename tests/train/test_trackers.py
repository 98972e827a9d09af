"""Metrics beside metrics.jsonl. SwanLab and Weights & Biases are stand-ins that write down how they are called: nothing
here reaches a network."""

import json

import pytest

from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.core.errors import OutputError
from pangu_ms.train.trackers import open_trackers, require_trackers

SWANLAB = """
import pathlib
calls = []
def init(project, experiment_name, config, logdir):
    print("swanlab: hello")
    pathlib.Path(logdir).mkdir(exist_ok=True)
    calls.append(["init", project, experiment_name, config["model"]["family"]])
def log(data, step):
    calls.append(["log", step, data])
def finish():
    calls.append(["finish"])
"""
WANDB = """
import pathlib
calls = []
class Run:
    def log(self, data, step):
        calls.append(["log", step, data])
    def finish(self):
        calls.append(["finish"])
def init(project, name, config, dir, reinit):
    print("wandb: hello")
    (pathlib.Path(dir) / "wandb").mkdir(exist_ok=True)
    calls.append(["init", project, name, config["model"]["family"]])
    return Run()
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Modules of those names, in front of any that are installed."""
    import sys

    (tmp_path / "packages").mkdir()
    for name, source in (("swanlab", SWANLAB), ("wandb", WANDB)):
        (tmp_path / f"packages/{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    import swanlab
    import wandb

    yield {"swanlab": swanlab, "wandb": wandb}
    for name in ("swanlab", "wandb"):
        sys.modules.pop(name)


@pytest.mark.usefixtures("compiled_models")
def test_trackers_are_given_what_the_metrics_hold_and_a_run_goes_on_beside_their_files(
    stand_ins, records, tiny_overrides, tmp_path, capsys
):
    run = tmp_path / "run"
    words = ["train", "--config", "alpha/tiny", *tiny_overrides, "train.steps=2", "--data", str(records)]
    words += ["--output", str(run), "--tracker", "swanlab", "--tracker", "wandb", "--json"]
    assert main([*words, "--stop-at", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 1  # stdout holds the result alone
    assert {"swanlog", "wandb"} <= {path.name for path in run.iterdir()}
    assert main([*words, "--resume"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for module in stand_ins.values():
        assert [call[0] for call in module.calls] == ["init", "log", "finish", "init", "log", "log", "finish"]
        assert module.calls[0] == ["init", "pangu-ms", "run", "alpha"]
        logged = [{"step": call[1]} | call[2] for call in module.calls if call[0] == "log"]
        assert logged == rows


def test_a_server_that_fails_does_not_end_the_run(stand_ins, tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    config = load_config("alpha/tiny")
    (tracker,) = open_trackers(["swanlab"], tmp_path, 0, config)
    tracker.log(0, {"loss": 2.0})
    monkeypatch.setattr(stand_ins["swanlab"], "log", refuse)
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
    tracker.finish()
    assert [call[0] for call in stand_ins["swanlab"].calls] == ["init", "log"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == "--tracker swanlab: failed, and gets no more metrics in this session: no route to host"
    monkeypatch.setattr(stand_ins["wandb"], "init", refuse)
    with pytest.raises(OutputError, match="^--tracker wandb: cannot begin: no route to host; mend that, or leave"):
        open_trackers(["wandb"], tmp_path, 0, config)


@pytest.mark.parametrize("name", ["swanlab", "wandb", "tensorboard"])
def test_a_package_that_is_not_installed_is_one_line_before_the_start(name, monkeypatch, tmp_path, records, capsys):
    import importlib.util

    real, package = importlib.util.find_spec, {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda found, *rest: None if found == package else real(found))
    option = "--tensorboard" if name == "tensorboard" else f"--tracker {name}"
    with pytest.raises(OutputError, match=f"^{option}: {package} is not installed; run: pip install "):
        require_trackers([name])
    words = ["--config", "alpha/tiny", "--data", str(records), "--output", str(tmp_path / "run"), "--tracker", name]
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert f"{package} is not installed" in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_known_is_told_with_those_that_are(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", "alpha/tiny", "--output", "run", "--tracker", "mlflow"])
    assert "tensorboard" in capsys.readouterr().err
