"""`pangu config show`: what a configuration resolves to, and what its fields mean."""

import argparse
import dataclasses
import json

from pydantic import TypeAdapter

from pangu_ms.config.base import ModelConfig
from pangu_ms.config.load import config_to_dict, dump_config, load_config, presets
from pangu_ms.config.schema import RunConfig


def add_config_arguments(parser: argparse.ArgumentParser, default: str | None = "alpha/tiny") -> None:
    """Give a verb `--config NAME` and dotted overrides."""
    parser.add_argument("--config", default=default, metavar="NAME", help="YAML file or shipped config (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="override a field, e.g. train.steps=100")


def field_lines() -> list[str]:
    """One line per field: dotted name, default, description."""
    schema = TypeAdapter(RunConfig).json_schema()
    inherited = TypeAdapter(ModelConfig).json_schema()["properties"]  # pydantic does not pass a base class's descriptions on
    lines = []
    for section in dataclasses.fields(RunConfig):
        reference = schema["properties"][section.name]
        names = [r["$ref"].rsplit("/", 1)[1] for r in reference.get("oneOf", [reference]) if "$ref" in r]
        for name in names:
            for key, field in schema["$defs"][name]["properties"].items():
                default = f"= {field['default']}" if "default" in field else "(required)"
                description = field.get("description") or inherited.get(key, {}).get("description", "")
                lines.append(f"{section.name}.{key} {default}\n    {description}")
    return lines


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(prog="pangu config")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    show = verbs.add_parser("show", help="print a resolved config and the model's size", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_config_arguments(show)
    show.add_argument("--json", action="store_true", help="machine-readable output")
    show.add_argument("--fields", action="store_true", help="list every field with its default and meaning")
    show.add_argument("--list", action="store_true", help="list the shipped configs with their sizes")
    args = parser.parse_args(argv)
    if args.fields:
        print("\n".join(field_lines()))
    elif args.list:
        sizes = {name: load_config(name).model.num_parameters() for name in presets()}
        print(json.dumps(sizes) if args.json else "\n".join(f"{name:<16} {size / 1e6:>12,.1f} M parameters" for name, size in sizes.items()))
    else:
        config = load_config(args.config, args.overrides)
        if args.json:
            print(json.dumps(config_to_dict(config) | {"num_parameters": config.model.num_parameters()}))
        else:
            print(f"# {config.model.family}, {config.model.num_parameters():,} parameters\n{dump_config(config)}", end="")
    return 0
