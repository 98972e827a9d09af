"""Trains a PanGu model with mindformers.Trainer, from a MindFormers YAML that has a `pangu:` section."""

import json
from pathlib import Path
from typing import Any

from pangu_ms.core import yaml_file
from pangu_ms.core.errors import ConfigError
from pangu_ms.mindformers import register
from pangu_ms.mindformers.data import step_dataset
from pangu_ms.mindformers.settings import resolve


def load_yaml(name: str) -> dict[str, Any]:
    """Read a MindFormers YAML, given its path or the name of a YAML in this package. A relative base_config becomes
    absolute.

    Raises:
        ConfigError: there is no such file or name, or the file is not a YAML mapping.
    """
    shipped = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
    path = Path(name) if Path(name).is_file() else shipped.get(name)
    if path is None:
        raise ConfigError(f"{name}: no such file; name a MindFormers YAML or a shipped one: {', '.join(shipped)}")
    tree = yaml_file.read(path, ConfigError)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__}; a MindFormers configuration is a mapping")
    bases = tree.get("base_config", [])
    if bases:
        tree["base_config"] = [
            str((path.parent / base).resolve()) for base in ([bases] if isinstance(bases, str) else bases)
        ]
    return tree


def override(tree: dict[str, Any], text: str) -> None:
    """Apply an override "section.field=value" to a configuration tree.

    Raises:
        ConfigError: the text has another form, or names a section that is a value.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text}: an override has the form section.field=value, for example pangu.train.steps=20")
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{text}: {parent} is a value, not a section")
    try:
        tree[leaf] = yaml_file.parse(value) if value else ""
    except yaml_file.YamlError as error:
        raise ConfigError(f"{text}: the value is not YAML: {error}; put a text in quotes") from None


def train(config_file: Path) -> None:
    """Run mindformers.Trainer on a YAML. MindFormers must not have been imported earlier with another output directory.

    Raises:
        ConfigError: MindFormers or `resolve` refuses the configuration.
    """
    register()
    from mindformers import MindFormerConfig, Trainer, build_context

    try:
        config = MindFormerConfig(str(config_file))
    except (KeyError, TypeError, ValueError) as error:  # MindFormers' template: unknown keys of its own sections
        raise ConfigError(f"{config_file}: {error.args[0] if error.args else error}") from None
    resolve(config, f"{config_file}: pangu")
    build_context(config)
    Trainer(config).train()


def resolved_tree(
    name: str, overrides: list[str], output: Path, data: str | None = None, resume: str | None = None
) -> dict[str, Any]:
    """The YAML with the user's overrides and paths applied. It is checked together with its records, as far as this is
    possible without MindFormers.

    Args:
        name: as in `load_yaml`.
        overrides: as in `override`; applied in order.
        output: directory of the run.
        data: directory of records, instead of pangu.data.records.
        resume: checkpoint directory to resume from.

    Raises:
        ConfigError, DataError: see load_yaml, override, settings.resolve and data.step_dataset; or `resume` is not a
            checkpoint directory.
    """
    tree = load_yaml(name)
    for text in overrides:
        override(tree, text)
    if data:
        override(tree, f"pangu.data.records={json.dumps(str(Path(data).resolve()))}")
    if resume:
        if not (Path(resume) / "common.json").is_file():
            raise ConfigError(
                f"{resume}: no checkpoint to resume from; name a directory OUTPUT/checkpoint/iteration_N with a"
                " common.json"
            )
        tree |= {"load_checkpoint": str(Path(resume).resolve()), "resume_training": True}
    tree["output_dir"] = str(output)
    if "base_config" not in tree:  # otherwise the tree is incomplete until MindFormers merges the bases
        step_dataset(resolve(tree, f"{name}: pangu"))
    return tree
