"""The `pangu:` section and the command line, without MindFormers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pangu_ms
from pangu_ms.cli.mindformers import main
from pangu_ms.core.errors import ConfigError
from pangu_ms.mindformers.settings import publish, resolve
from pangu_ms.mindformers.train import load_yaml, override
from pangu_ms.models.registry import FAMILIES

PACKAGE = Path(pangu_ms.__file__).parent


@pytest.fixture
def tree():
    return load_yaml("alpha_tiny")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_yaml_is_our_tiny_model(family):
    from pangu_ms.config import load_config

    tree = load_yaml(f"{family}_tiny")
    run = resolve(tree)
    assert run.model == load_config(f"{family}/tiny").model
    assert (run.train.steps, run.train.batch_size, run.train.seed, run.runtime.device) == (100, 8, 1, "CPU")
    publish(tree, run)
    published = tree["model"]["model_config"]
    assert (published["hidden_size"], published["family"], published["type"]) == (192, family, "PanguConfig")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pangu.model.hiden_size=64", "pangu: model.hiden_size: unknown key; did you mean hidden_size?"),
        ("pangu.date.seed=3", "pangu: date: unknown key; did you mean data?"),
        ("pangu.train.stepps=3", "did you mean steps?"),
        ("pangu.data.record=x", "did you mean records?"),
        ("pangu.model.num_heads=5", "must divide hidden_size=192"),
        ("pangu.train.batch_size=4", "set runner_config.batch_size"),
        ("pangu.train.eval_every=4", "no counterpart"),
        ("pangu.optimizer.lr=1", "set optimizer, lr_schedule"),
        ("pangu.train=null", "train.steps: is required"),
        ("pangu=null", "needs a mapping"),
        ("model.model_config.hidden_size=128", "move it to pangu.model.hidden_size"),
        ("train_dataset.data_loader.type=MindDataset", "named in pangu.data.records"),
        ("runner_config.epochs=2", "runner_config.epochs=2: "),
        ("runner_config.gradient_accumulation_steps=2", "MindFormers ignores it"),
        ("runner_config.sink_mode=true", "runner_config.sink_mode=True: "),
        ("runner_wrapper.type=MFTrainOneStepCell", "use 'PanguTrainOneStepCell'"),
        ("use_parallel=true", "use_parallel=True: "),
        ("run_mode=predict", "use 'train'"),
        ("trainer.type=CausalLanguageModelingTrainer", "use 'PanguTrainer'"),
        ("model.arch.type=LlamaForCausalLM", "use 'PanguForCausalLM'"),
        ("runner_config.batch_size=0", "train.batch_size=0: must be positive"),
        ("do_eval=true", "pangu eval"),
    ],
)
def test_a_mistake_is_refused_with_its_place(tree, change, message):
    override(tree, change)
    with pytest.raises(ConfigError) as error:
        resolve(tree)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["alpha_tiny", "pangu.model.hiden_size=64"],
        ["nowhere.yaml"],
        ["alpha_tiny"],
        ["--data", "nowhere"],
        ["--resume", "nowhere"],
        ["alpha_tiny", "steps"],
    ],
)
def test_the_command_refuses_before_it_writes(tmp_path, capsys, arguments):
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_help_names_the_default(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "default: alpha_tiny" in capsys.readouterr().out


def test_a_base_config_is_found_beside_the_file(tmp_path):
    (tmp_path / "child.yaml").write_text(yaml.safe_dump({"base_config": "../base.yaml"}))
    assert load_yaml(str(tmp_path / "child.yaml"))["base_config"] == [str((tmp_path / "../base.yaml").resolve())]


def test_only_this_package_imports_mindformers():
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            if any(name.split(".")[0] == "mindformers" for name in names):
                importers.add(path.parent.name)
    assert importers == {"mindformers"}


def test_importing_the_package_does_not_import_mindformers(tmp_path):
    code = (
        "import sys, pangu_ms.mindformers.settings, pangu_ms.mindformers.data, pangu_ms.mindformers.__main__; print({'mindformers', 'mindspore'} &"
        " set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "set()"
    )
