"""Configuration: sizes against the specification, overrides, and what a user gets told."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from pangu_ms.cli import main
from pangu_ms.config import dump_config, load_config
from pangu_ms.config.load import presets
from pangu_ms.errors import ConfigError

# Specification A2, in billions; 200B is computed there too.
PUBLISHED_SIZES = {"alpha/350m": 0.3454, "alpha/2_6b": 2.6253, "alpha/13b": 12.80, "alpha/200b": 206.9}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_parameter_counts_are_the_specification_s(name):
    model = load_config(name).model
    L, d, V, S = model.num_layers, model.hidden_size, model.vocab_size, model.seq_length
    assert model.num_parameters() == L * (12 * d * d + 13 * d) + V * d + 2 * S * d + 2 * d  # the formula of A2
    digits = len(str(PUBLISHED_SIZES[name]).split(".")[1])
    assert round(model.num_parameters() / 1e9, digits) == PUBLISHED_SIZES[name]


def test_the_zoo_s_1_3b_is_a_quarter_of_a_billion():
    config = load_config("alpha/350m", ["model.num_layers=16", "model.num_heads=32"])
    assert round(config.model.num_parameters() / 1e9, 4) == 0.2446


def test_the_small_configs_have_the_size_of_their_names():
    assert 9.5e6 < load_config("alpha/10m").model.num_parameters() < 10.5e6
    assert load_config("alpha/tiny").model.num_parameters() < 4e6


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_dump_reads_back_as_the_same_config(name, tmp_path):
    config = load_config(name, ["train.steps=7"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_overrides_win_and_nothing_overrides_the_user(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: alpha/tiny\ntrain:\n  steps: 5\noptimizer:\n  lr: 1e-2\n")
    config = load_config(str(tmp_path / "mine.yaml"), ["train.batch_size=3", "model.hidden_act=gelu"])
    assert (config.train.steps, config.train.batch_size, config.model.hidden_act, config.optimizer.lr) == (5, 3, "gelu", 0.01)
    assert config.model.hidden_size == load_config("alpha/tiny").model.hidden_size


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config("alpha/tiny").train.steps = 3


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.step=3", "train.step: unknown key; did you mean steps?"),
        ("model.hiden_size=3", "model.hiden_size: unknown key; did you mean hidden_size?"),
        ("optimiser.lr=3", "optimiser: unknown key; did you mean optimizer?"),
        ("train.steps=many", "train.steps='many'"),
        ("model.hidden_act=relu", "model.hidden_act='relu'"),
        ("model.num_heads=7", "model.num_heads=7: must divide hidden_size=192; use one of 1, 2, 3,"),
        ("train.accumulation_steps=3", "train.accumulation_steps=3: must divide batch_size=8"),
        ("model.family=beta", "beta"),
        ("model.compute_dtype=bfloat16", "model.compute_dtype=bfloat16: MindSpore's CPU kernels"),
        ("data.held_out=1.5", "data.held_out=1.5: must be in [0, 1)"),
        ("train.steps", "an override has the form section.field=value"),
        ("train.steps.x=1", "steps"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message, capsys):
    assert main(["config", "show", "--config", "alpha/tiny", "train.batch_size=8", override]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("pangu config: ")


def test_mistakes_in_files(tmp_path, capsys):
    cases = {
        "not a mapping": ("- 1\n", "a config is a mapping"),
        "not yaml": ("model: [\n", ":2: not YAML"),
        "circle": (f"base: {tmp_path}/c.yaml\n", "in a circle"),
        "missing": ("model:\n  family: alpha\n", "hidden_size: is required"),
    }
    for text, message in cases.values():
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(str(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_bytes(b"model: \xff\n")
    with pytest.raises(ConfigError, match="byte 7 is not UTF-8"):
        load_config(str(tmp_path / "c.yaml"))
    with pytest.raises(ConfigError, match="did you mean alpha/tiny"):
        load_config("alpha/tyny")


def test_show_prints_what_load_reads(capsys):
    assert main(["config", "show", "train.steps=9"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["steps"] == 9


def test_every_field_has_a_description(capsys):
    assert main(["config", "show", "--fields"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train.steps = 1000" in lines and "model.hidden_size (required)" in lines
    assert [name for name, text in zip(lines[::2], lines[1::2]) if not text.strip()] == []


@pytest.mark.parametrize("command", ["import pangu_ms", "import pangu_ms.cli as c; c.main(['--help'])", "import pangu_ms.config; pangu_ms.config.load_config('alpha/tiny')"])
def test_no_mindspore_where_none_is_needed(command):
    code = f"{command}\nimport sys\nassert not {{'mindspore', 'mindformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
