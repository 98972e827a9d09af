"""Configuration: sizes against the specification, overrides, and what a user gets told."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic.dataclasses import dataclass, rebuild_dataclass

from pangu_ms.cli.main import main
from pangu_ms.config import RunConfig, dump_config, load_config
from pangu_ms.config.load import config_from_dict, presets
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.fields import STRICT, Int
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.registry import FAMILIES, Family

pytestmark = pytest.mark.fast

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
    assert (config.train.steps, config.train.batch_size, config.model.hidden_act, config.optimizer.lr) == (
        5,
        3,
        "gelu",
        0.01,
    )
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
        ("model.family=beta", "model.family=beta: unknown family; known: alpha"),
        ("model=3", "model=3: "),
        ("alpha.steps=3", "alpha: unknown key; known: model, tokenizer"),
        ("model.alpha=3", "model.alpha: unknown key"),
        ("data.held_out=1.5", "data.held_out=1.5: must be in [0, 1)"),
        ("train.steps.x=1", "steps"),
        ("train.steps=[", "train.steps=[: the value is not YAML: expected the node content"),
        ("train.steps=2024-13-01", "train.steps=2024-13-01: the value is not YAML: month must be in 1..12"),
        ("data.records=\x01", "the value is not YAML: special characters are not allowed"),
        ("data.mixture={zh:1,en:2}", "data.mixture.zh:1=None: has no value; YAML needs a space after the colon"),
        ("data.mixture={no: 1}", 'YAML reads no, on, null and numbers as something else: put it in quotes, such as "n'),
        ("data.mixture=zh", "data.mixture='zh': must be a mapping, such as {zh: 0.3, code: 0.7}"),
        ("train.steps=true", "train.steps=True: input should be a valid integer"),
        ("train.seed=false", "train.seed=False: input should be a valid integer"),
        ("model.num_layers=true", "model.num_layers=True: input should be a valid integer"),
        ("optimizer.lr=true", "optimizer.lr=True: input should be a valid number"),
        ("optimizer.decay_steps=50", "optimizer.decay_steps=50: must exceed warmup_steps=50"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message, capsys):
    assert main(["config", "show", "--config", "alpha/tiny", "train.batch_size=8", override]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("pangu config: ")


OUT_OF_RANGE = {
    "guard.spike_window": (0, "must be positive"),
    "guard.max_skipped": (0, "must be positive"),
    "guard.spike_factor": (-2.0, 0.5, 1.0, "must exceed 1, or ordinary steps are skipped; 0 switches the check off"),
    "loss_scale.initial": (-1.0, 0.0, "must be positive"),
    "loss_scale.factor": (0.5, 1.0, "must exceed 1"),
    "loss_scale.window": (0, "must be positive"),
    "optimizer.beta1": (-0.1, 1.0, "must be in [0, 1)"),
    "optimizer.beta2": (-0.1, 1.0, "must be in [0, 1)"),
    "optimizer.eps": (-1.0, 0.0, "must be positive"),
    "optimizer.weight_decay": (-0.1, "must not be negative; 0 switches decay off"),
    "optimizer.clip_norm": (-1.0, "must not be negative; 0 switches clipping off"),
    "optimizer.power": (-1.0, 0.0, "must be positive"),
    "optimizer.warmup_steps": (-1, "must not be negative"),
    "optimizer.decay_steps": (-1, "must not be negative; 0 means train.steps"),
    "train.eval_batches": (0, "must be positive"),
    "train.eval_every": (-1, "must not be negative; 0 means only at the end"),
    "train.save_every": (-1, "must not be negative; 0 means only at the end"),
    "train.keep_checkpoints": (-1, "must not be negative; 0 keeps all"),
    "train.seed": (-1, "must not be negative"),
    "data.seed": (-1, "must not be negative"),
    "tokenizer.vocab_size": (0, "must be positive"),
    "model.layer_norm_eps": (-1.0, 0.0, "must be positive"),
    "model.init_std": (-1.0, 0.0, "must be positive"),
}


@pytest.mark.parametrize(
    "field, value, rule", [(field, value, rule) for field, (*values, rule) in OUT_OF_RANGE.items() for value in values]
)
def test_a_number_out_of_range_is_refused_with_its_rule(field, value, rule):
    with pytest.raises(ConfigError) as error:
        load_config("alpha/tiny", [f"{field}={value}"])
    assert f": {field}={value}: {rule}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "guard.spike_factor=0",
        "guard.spike_factor=1.5",
        "optimizer.beta1=0",
        "optimizer.weight_decay=0",
        "optimizer.clip_norm=0",
        "train.seed=0",
    ]
    + [
        "train.keep_checkpoints=0",
        "optimizer.warmup_steps=0",
        "optimizer.decay_steps=51",
        "train.steps=30",
        "optimizer.eps=1e-6",
        "optimizer.lr=1",
    ],
)
def test_the_edges_of_the_ranges_are_allowed(override):
    section, field = override.partition("=")[0].split(".")
    assert getattr(getattr(load_config("alpha/tiny", [override]), section), field) == float(override.partition("=")[2])


def test_a_constant_rate_has_no_decay_to_check():
    assert (
        load_config("alpha/tiny", ["optimizer.schedule=constant", "optimizer.decay_steps=50"]).optimizer.decay_steps
        == 50
    )


def float_fields():
    config = load_config("alpha/tiny")
    sections = [(s.name, getattr(config, s.name)) for s in dataclasses.fields(config)]
    return [
        f"{name}.{f.name}"
        for name, section in sections
        for f in dataclasses.fields(section)
        if isinstance(getattr(section, f.name), float)
    ]


@pytest.mark.parametrize("field", float_fields())
def test_no_float_is_infinite_or_no_number(field):
    for value in (".nan", ".inf", "-.inf", "nan"):
        with pytest.raises(ConfigError, match=f"{field}=.*: input should be a finite number"):
            load_config("alpha/tiny", [f"{field}={value}"])


@dataclass(frozen=True, config=STRICT, kw_only=True)
class DummyConfig(ModelConfig):
    """A second family with a field of its own."""

    family: Literal["dummy"] = "dummy"
    num_experts: Int = 4


@pytest.fixture
def dummy_family(monkeypatch):
    with monkeypatch.context() as patch:
        for part, names in {"": {}, ".config": {"CONFIG": DummyConfig}}.items():
            module = types.ModuleType(f"dummy{part}")
            vars(module).update(names)
            patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(FAMILIES, "dummy", Family("dummy"))
        rebuild_dataclass(RunConfig, force=True)
        yield
    rebuild_dataclass(RunConfig, force=True)


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4}


@pytest.mark.parametrize("model", [{}, SIZES])
def test_a_config_states_its_family(model):
    with pytest.raises(ConfigError) as error:
        config_from_dict({"model": model}, "a.yaml")
    assert str(error.value) == f"a.yaml: model.family: is required; known: {', '.join(FAMILIES)}"


def test_the_family_chooses_the_class_and_its_keys(dummy_family, tmp_path):
    def load(**model):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": SIZES | model}))
        return load_config(str(tmp_path / "c.yaml"))

    config = load(family="dummy", num_experts=8)
    assert isinstance(config.model, DummyConfig) and config.model.num_experts == 8
    assert type(load(family="alpha").model) is FAMILIES["alpha"].config
    (tmp_path / "dump.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "dump.yaml")) == config
    mistakes = [
        ({"family": "dummy", "num_expert": 8}, "model.num_expert: unknown key; did you mean num_experts?"),
        ({"family": "dummy", "dropuot": 0.1}, "model.dropuot: unknown key; known: "),
        ({"family": "alpha", "dropuot": 0.1}, "model.dropuot: unknown key; did you mean dropout?"),
        ({"family": "dummy", "num_heads": 0}, "model.num_heads=0: must be positive"),
        ({"family": "alpha", "num_heads": 5}, "model.num_heads=5: must divide"),
        ({"family": "dumy"}, "model.family=dumy: unknown family; did you mean dummy?"),
        ({}, f"model.family: is required; known: {', '.join(FAMILIES)}"),
    ]
    for model, message in mistakes:
        with pytest.raises(ConfigError) as error:
            load(**model)
        assert f"c.yaml: {message}" in str(error.value)


def test_mistakes_in_files(tmp_path, capsys):
    cases = {
        "not a mapping": ("- 1\n", "a config is a mapping"),
        "not yaml": ("model: [\n", ":2: not YAML"),
        "circle": (f"base: {tmp_path}/c.yaml\n", "in a circle"),
        "missing": ("model:\n  family: alpha\n", "hidden_size: is required"),
        "no date": ("train: 2024-13-01\n", "not YAML: month must be in 1..12"),
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


@pytest.mark.parametrize("name", ["nowhere", "a" * 300, "a\0b"])
def test_a_name_that_is_no_config_is_one_line(name, capsys):
    assert main(["config", "show", "--config", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.count("alpha/tiny") <= 1


def test_the_shipped_configs_are_listed_once():
    with pytest.raises(ConfigError) as error:
        load_config("zzz")
    assert str(error.value) == f"zzz: no such file or shipped config; shipped: {', '.join(presets())}"


def test_a_path_that_may_not_be_read(monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)  # root, who may run the tests, can read every directory
    with pytest.raises(ConfigError, match=r"^closed/a.yaml: cannot be read \(Permission denied\)$"):
        load_config("closed/a.yaml")


def test_show_prints_what_load_reads(capsys):
    assert main(["config", "show", "train.steps=9"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["steps"] == 9


def test_every_field_has_a_description(capsys):
    assert main(["config", "show", "--fields"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train.steps = 1000" in lines and "model.hidden_size (required)" in lines
    assert [name for name, text in zip(lines[::2], lines[1::2]) if not text.strip()] == []


@pytest.mark.parametrize(
    "command",
    [
        "import pangu_ms",
        "import pangu_ms.cli.main as c; c.main(['--help'])",
        "import pangu_ms.config; pangu_ms.config.load_config('alpha/tiny')",
        "from pangu_ms.models.registry import FAMILIES as f; [(x.config, x.rules, x.formats) for x in f.values()]",
    ],
)
def test_no_mindspore_where_none_is_needed(command):
    code = f"{command}\nimport sys\nassert not {{'mindspore', 'mindformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("scaled, rule", [(True, "depth_scaled"), (False, "constant")])
def test_a_checkpoint_from_before_init_rule_is_read(tmp_path, scaled, rule):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": SIZES | {"family": "alpha", "init_depth_scaled": scaled}})
    )
    assert load_config(str(tmp_path / "config.yaml")).model.init_rule == rule
