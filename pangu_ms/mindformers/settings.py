"""Checks the `pangu:` section of a MindFormers YAML with our own configuration code. No mindspore or mindformers
import.

The section has the form of our own configurations. It holds what MindFormers has no setting for: `model` (all fields),
`data` (all fields) and `train.steps`. Everything else is set in MindFormers' own sections: batch size, seed, optimizer,
schedule, device and checkpoints. In the YAML `model.model_config` holds only a type; `publish` copies the model's
fields into it, where MindFormers and its callbacks read them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pangu_ms.config.load import config_from_dict
from pangu_ms.config.schema import RunConfig, TrainConfig
from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig

OURS = ("model", "data", "train")
"""Sections of our configuration that the `pangu:` section may have."""
MINDFORMERS_SETTING = {
    "batch_size": "runner_config.batch_size",
    "seed": "seed",
    "save_every": "save_checkpoint_steps of the callback CheckpointMonitor",
    "keep_checkpoints": "keep_checkpoint_max of the callback CheckpointMonitor",
    "log_every": "per_print_times of the callback MFLossMonitor",
    "optimizer": "optimizer, lr_schedule and runner_wrapper",
    "loss_scale": "runner_wrapper.scale_sense",
    "runtime": "context",
}
"""Fields and sections of our configuration -> the MindFormers setting that takes their place."""


def resolve(config: Mapping[str, Any], where: str = "pangu") -> RunConfig:
    """Check a MindFormers configuration and convert it to ours.

    Args:
        config: the whole configuration, as a MindFormerConfig or plain mappings. Sections that MindFormers fills in may
            be missing.
        where: what each error message about the `pangu:` section begins with.

    Returns:
        Our configuration, made from the `pangu:` section and from the batch size, seed and device of MindFormers'
        sections. The sections optimizer, guard and loss_scale hold our defaults and have no effect.

    Raises:
        ConfigError: a key is unknown or misplaced, a value is wrong, or a MindFormers setting would have no effect or
            fail here.
    """
    section = _plain(config.get("pangu"))
    if not isinstance(section, dict):
        raise ConfigError(
            f"{where}: found {section!r}; PanguTrainer needs a mapping with model, data and train.steps; see"
            " pangu_ms/mindformers/alpha_tiny.yaml"
        )
    runner, context = _section(config, "runner_config"), _section(config, "context")
    _require_in_place(section, where)
    train = section.get("train")
    if not isinstance(train, dict) or "steps" not in train:
        raise ConfigError(
            f"{where}: train.steps: is required and was not given; it is the length of the run in optimizer steps"
        )
    # The defaults of batch_size, seed and device_target are those of MindFormers.
    given = {"batch_size": runner.get("batch_size", 1), "seed": config.get("seed", 1)}
    device = context.get("device_target", "Ascend")
    run = config_from_dict(section | {"train": train | given, "runtime": {"device": device}}, where)
    _require_supported(config, runner, device)
    _reject_duplicate_settings(config, run.model)
    return run


def publish(config: dict[str, Any], run: RunConfig) -> None:
    """Write the model's fields and the seed of its initial values to `model.model_config`."""
    config["model"]["model_config"].update(dataclasses.asdict(run.model) | {"initial_seed": run.train.seed})


def _require_in_place(section: dict[str, Any], where: str) -> None:
    """Refuse fields that exist in our configuration but are set in MindFormers' sections. `config_from_dict` refuses
    unknown fields."""
    known = {field.name for field in dataclasses.fields(RunConfig)}
    train = section.get("train")
    train_keys = train if isinstance(train, dict) else ()  # `resolve` refuses any other type
    misplaced = [key for key in section if key in known and key not in OURS]
    train_fields = {field.name for field in dataclasses.fields(TrainConfig)}
    misplaced += [f"train.{key}" for key in train_keys if key in train_fields and key != "steps"]
    for key in misplaced:
        setting = MINDFORMERS_SETTING.get(key.rsplit(".", 1)[-1])
        advice = "has no counterpart in MindFormers' Trainer; remove it"
        raise ConfigError(f"{where}: {key}: {f'MindFormers decides it; set {setting}' if setting else advice}")


def _require_supported(config: Mapping[str, Any], runner: Mapping[str, Any], device: str) -> None:
    """Refuse settings that MindFormers would ignore, or on which it would fail without naming them."""
    wrapper = _section(config, "runner_wrapper").get("type", "MFTrainOneStepCell")
    model = _section(config, "model")
    rules = [
        ("run_mode", config.get("run_mode"), ("finetune", "train"), "it chooses which sections MindFormers reads"),
        ("trainer.type", _section(config, "trainer").get("type"), ("PanguTrainer",), "it reads the pangu: section"),
        (
            "model.model_config.type",
            _section(model, "model_config").get("type"),
            ("PanguConfig",),
            "pangu.model has its fields",
        ),
        ("model.arch.type", _section(model, "arch").get("type"), ("PanguForCausalLM",), "pangu.model has its fields"),
        ("use_parallel", config.get("use_parallel"), (None, False), "pangu_ms.mindformers runs on one device"),
        ("use_legacy", config.get("use_legacy"), (None, True), "the model is not of MindFormers' core classes"),
        ("do_eval", config.get("do_eval"), (None, False), "evaluate the checkpoint with `pangu eval`"),
        (
            "calculate_per_token_loss",
            config.get("calculate_per_token_loss"),
            (None, False),
            "the loss is already the mean over the tokens that count",
        ),
        ("micro_batch_interleave_num", config.get("micro_batch_interleave_num"), (None, 1), "the step is not cut"),
        ("runner_config.epochs", runner.get("epochs"), (None, 1), "the run is one epoch of pangu.train.steps steps"),
        (
            "runner_config.stop_step",
            runner.get("stop_step"),
            (None, 0),
            "MindFormers ignores it; set pangu.train.steps",
        ),
        (
            "runner_config.gradient_accumulation_steps",
            runner.get("gradient_accumulation_steps"),
            (None, 1),
            "MindFormers ignores it on one device",
        ),
    ]
    order = _section(_section(config, "pangu"), "data").get("order")
    rules += [
        (
            "pangu.data.order",
            order,
            (None, ""),
            "a resumed MindFormers run cannot tell that it changed; train such a round with `pangu train`",
        )
    ]
    if device == "CPU":
        rules += [
            ("runner_config.sink_mode", runner.get("sink_mode", True), (False,), "a CPU has no data sinking"),
            (
                "runner_wrapper.type",
                wrapper,
                ("PanguTrainOneStepCell",),
                "the overflow check of MindFormers' wrapper has no CPU kernel",
            ),
        ]
    for key, value, allowed, reason in rules:
        if value not in allowed:
            raise ConfigError(f"{key}={value!r}: {reason}; use {allowed[-1]!r}")


def _reject_duplicate_settings(config: Mapping[str, Any], model: ModelConfig) -> None:
    """Refuse MindFormers settings that contradict or repeat what the `pangu:` section says."""
    for key, value in _section(_section(config, "model"), "model_config").items():
        if key in model.field_names() and value != getattr(model, key):
            raise ConfigError(
                f"model.model_config.{key}={value!r}: the model's fields stand in pangu.model; move it to"
                f" pangu.model.{key}"
            )
    if _section(config, "train_dataset").get("data_loader"):
        raise ConfigError("train_dataset.data_loader: the records are named in pangu.data.records; remove it")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _plain(value: Any) -> Any:
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
