"""`python -m pangu_ms.mindformers`: train a PanGu model with mindformers.Trainer from a MindFormers YAML that has a `pangu:`
section."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from pangu_ms.core import files, runtime, yaml_file
from pangu_ms.core.console import tell, user_errors
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.mindformers import register
from pangu_ms.mindformers.data import step_dataset
from pangu_ms.mindformers.settings import resolve

USER_ERROR = 2
DEFAULT = "alpha_tiny"


def load_yaml(name: str) -> dict[str, Any]:
    """A MindFormers YAML by path, or one that is shipped here by name; a relative base_config is made absolute.

    Raises:
        ConfigError: neither exists, or it is not a YAML mapping.
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
    """Apply "section.field=value" to a tree.

    Raises:
        ConfigError: another form, or a section that is a value.
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
    """Run mindformers.Trainer on a YAML. MindFormers must not have been imported with another output directory before.

    Raises:
        ConfigError: MindFormers or we refuse the configuration.
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


def main(argv: list[str]) -> int:
    """Entry of the module."""
    parser = Parser(prog="python -m pangu_ms.mindformers", description=__doc__)
    yaml_help = f"MindFormers YAML with a pangu: section, or a shipped one by name (default: {DEFAULT})"
    parser.add_argument("yaml", nargs="?", default=DEFAULT, metavar="YAML", help=yaml_help)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help="e.g. pangu.train.steps=20 runner_config.batch_size=4",
    )
    parser.add_argument(
        "--data",
        metavar="RECORDS",
        help="directory written by `pangu data prepare`; default: pangu.data.records of the YAML",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="new directory for config.yaml, checkpoint/, log/ and strategy/"
    )
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="go on from a directory OUTPUT/checkpoint/iteration_N, in the same --output or a new one",
    )
    args = parser.parse_intermixed_args(argv)
    runtime.quiet()
    try:
        output = Path(args.output).resolve()
        tree = resolved_tree(args, output)
        if not args.resume:
            files.require_free(output)
        files.write_text(output / "config.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        os.environ["LOCAL_DEFAULT_PATH"] = str(output)  # where MindFormers puts its logs from its import on
        train(output / "config.yaml")
    except user_errors() as error:
        tell(f"pangu_ms.mindformers: {error}")
        return USER_ERROR
    print(f"{output}: done; checkpoints in {output / 'checkpoint'}")
    return 0


def resolved_tree(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """The YAML with what the command line says, checked with its records as far as that needs no MindFormers.

    Raises:
        ConfigError, DataError: see load_yaml, override, settings.resolve and data.step_dataset; or --resume names no
            checkpoint.
    """
    tree = load_yaml(args.yaml)
    for text in args.overrides:
        override(tree, text)
    if args.data:
        override(tree, f"pangu.data.records={json.dumps(str(Path(args.data).resolve()))}")
    if args.resume:
        if not (Path(args.resume) / "common.json").is_file():
            raise ConfigError(
                f"{args.resume}: no checkpoint to resume from; name a directory OUTPUT/checkpoint/iteration_N with a"
                " common.json"
            )
        tree |= {"load_checkpoint": str(Path(args.resume).resolve()), "resume_training": True}
    tree["output_dir"] = str(output)
    if "base_config" not in tree:  # else MindFormers must merge first
        step_dataset(resolve(tree, f"{args.yaml}: pangu"))
    return tree


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
