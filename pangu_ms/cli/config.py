"""`pangu config`: what a configuration resolves to, what its fields mean (show), and other shapes of the same size
(iso)."""

import argparse
import dataclasses
import difflib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pangu_ms.config import iso
from pangu_ms.config.load import config_to_dict, dump_config, load_config, presets
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import NewDirectory, Parser
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.registry import FAMILIES
from pangu_ms.train.schedule import peak_learning_rate

ISO_NOTES = """
* the given config
tables: share of embeddings and head; PanGu-pi Pro recommends less than 20 %
MFLOP/token: forward pass, {formula}"""

OVERRIDES_HELP = (
    "runtime.device=CPU or model.compute_dtype=float32 use a checkpoint elsewhere than where it was trained"
)


def add_config_arguments(parser: argparse.ArgumentParser, default: str | None = "alpha/tiny") -> None:
    """Give a verb `--config NAME` and dotted overrides."""
    parser.add_argument(
        "--config",
        action=_Config,
        default=default,
        metavar="NAME",
        help="YAML file or shipped config (default: %(default)s)",
    )
    overrides = parser.add_argument(
        "overrides",
        nargs="*",
        action=_Overrides,
        metavar="section.field=value",
        help="override a field, e.g. train.steps=100",
    )
    overrides.takes_name = default is not None


def add_override_arguments(parser: argparse.ArgumentParser, text: str = OVERRIDES_HELP) -> None:
    """Give a verb that takes its configuration from a checkpoint dotted overrides; `text` is their help."""
    parser.add_argument("overrides", nargs="*", action=_Overrides, metavar="section.field=value", help=text)


class _Config(argparse.Action):
    """Of `--config NAME`; the last one counts, but not against a name without the option."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        _require_one(values, getattr(namespace, "config_word", values))
        namespace.config = namespace.config_option = values


class _Overrides(argparse.Action):
    """Refuses words of another form, such as a second file from a shell's pattern; `pangu plan show alpha/13b` means
    --config."""

    takes_name = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        names = [
            word
            for word in values
            if self.takes_name and (word.removeprefix("configs/").removesuffix(".yaml") in presets() or _is_yaml(word))
        ]
        for name in names:
            _require_one(name, getattr(namespace, "config_option", name), getattr(namespace, "config_word", name))
            namespace.config = namespace.config_word = name
        namespace.overrides = [word for word in values if word not in names]
        for word in namespace.overrides:
            if "=" not in word.lstrip("="):
                near = difflib.get_close_matches(word, presets(), 1) if self.takes_name else []
                hint = f" (or did you mean --config {near[0]}?)" if near else ""
                raise ConfigError(
                    f"{word}: is no override; an override has the form section.field=value, for example"
                    f" runtime.device=CPU{hint}"
                )


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and "=" not in Path(word).name and Path(word).is_file()


def _require_one(name: str, *others: str) -> None:
    for other in others:
        if other != name:
            raise ConfigError(f"{name}: {other} is named as the configuration, too; a run has one; leave one out")


def fields() -> list[dict[str, Any]]:
    """Each field: dotted name, whether it is required, default, description."""
    schema = TypeAdapter(RunConfig).json_schema()
    inherited = TypeAdapter(ModelConfig).json_schema()[
        "properties"
    ]  # pydantic does not pass a base class's descriptions on
    families = {family.config.__name__: name for name, family in FAMILIES.items()}
    rows = []
    for section in dataclasses.fields(RunConfig):
        reference = schema["properties"][section.name]
        names = [r["$ref"].rsplit("/", 1)[1] for r in reference.get("oneOf", [reference]) if "$ref" in r]
        for name in names:
            for key, field in schema["$defs"][name]["properties"].items():
                description = field.get("description") or inherited.get(key, {}).get("description", "")
                row = {
                    "name": f"{section.name}.{key}",
                    "family": families.get(name),
                    "required": "default" not in field,
                }
                rows.append(row | {"default": field.get("default"), "description": description})
    return rows


def field_lines() -> list[str]:
    """Two lines per field, for the eye."""
    return [
        f"{row['name']} {'(required)' if row['required'] else '= ' + str(row['default'])}\n    {row['description']}"
        for row in fields()
    ]


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = Parser(prog="pangu config")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    show = verbs.add_parser(
        "show",
        help="print a resolved config and the model's size",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_config_arguments(show)
    show.add_argument("--json", action="store_true", help="machine-readable output")
    show.add_argument("--fields", action="store_true", help="list every field with its default and meaning")
    show.add_argument("--list", action="store_true", help="list the shipped configs with their sizes")
    show.set_defaults(run=run_show)
    _add_iso(verbs)
    args = parser.parse_args(argv)
    args.run(args)
    return 0


def _add_iso(verbs: Any) -> None:
    summary = "depth against width: shapes with the same number of parameters"
    parser = verbs.add_parser(
        "iso", help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--parameters",
        metavar="N",
        help="target size, such as 1.2e9 (default: the config's)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--depths",
        metavar="L,L,...",
        help="numbers of layers (default: a quarter to twice the config's)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--expansions",
        metavar="R,R,...",
        help="ffn_hidden_size / hidden_size (default: the config's)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--head-dim", metavar="D", help="size of an attention head (default: the config's)", default=argparse.SUPPRESS
    )
    parser.add_argument("--multiple", metavar="N", default="8", help="feed-forward widths are multiples of it")
    parser.add_argument(
        "--tolerance",
        metavar="SHARE",
        default="0.01",
        help="largest difference from the target; a feed-forward width gives way to it",
    )
    parser.add_argument(
        "--write",
        action=NewDirectory,
        metavar="DIR",
        help="new directory for a YAML per shape within the tolerance",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run_iso)


def run_show(args: argparse.Namespace) -> None:
    """`pangu config show`."""
    if args.fields:
        print(json.dumps(fields()) if args.json else "\n".join(field_lines()))
    elif args.list:
        sizes = {name: load_config(name).model.num_parameters() for name in presets()}
        print(
            json.dumps(sizes)
            if args.json
            else "\n".join(f"{name:<16} {size / 1e6:>12,.1f} M parameters" for name, size in sizes.items())
        )
    else:
        config = load_config(args.config, args.overrides)
        size, lr = config.model.num_parameters(), peak_learning_rate(config)
        if args.json:
            print(json.dumps(config_to_dict(config) | {"num_parameters": size, "effective_lr": lr}))
        else:
            print(
                f"# {config.model.family}, {size:,} parameters, peak learning rate {lr:.4g}\n{dump_config(config)}",
                end="",
            )


def run_iso(args: argparse.Namespace) -> None:
    """`pangu config iso`."""
    given = vars(args)
    config = load_config(args.config, args.overrides)
    model = config.model
    search = iso.Search(
        target=(
            _number("--parameters", given["parameters"], _whole) if "parameters" in given else model.num_parameters()
        ),
        head_dim=_number("--head-dim", given["head_dim"], _whole) if "head_dim" in given else model.head_dim,
        multiple=_number("--multiple", args.multiple, _whole),
        tolerance=_number("--tolerance", args.tolerance, float),
    )
    depths = (
        _numbers("--depths", given["depths"], _whole) if "depths" in given else iso.default_depths(model.num_layers)
    )
    expansions = (
        _numbers("--expansions", given["expansions"], float)
        if "expansions" in given
        else [model.ffn_hidden_size / model.hidden_size]
    )
    shapes = iso.find_shapes(model, search, depths, expansions)
    written = iso.write_shapes(Path(args.write), args.config, config, shapes) if "write" in given else []
    own = iso.Shape.of(model, search)
    if args.json:
        rows = [shape.row() | {"given": shape == own} for shape in shapes]
        print(
            json.dumps(
                {"config": args.config}
                | vars(search)
                | {"given": own.row(), "shapes": rows, "flops_formula": iso.FLOPS_FORMULA, "written": written}
            )
        )
        return
    print("\n".join(_table(own, shapes, search)) + ISO_NOTES.format(formula=iso.FLOPS_FORMULA))
    if written:
        print(f"written to {args.write}: {', '.join(written)}")


def _table(own: iso.Shape, shapes: list[iso.Shape], search: iso.Search) -> list[str]:
    """The given config first, unless the search found it."""
    widths = {
        "layers": 6,
        "hidden": 6,
        "heads": 7,
        "ffn": 7,
        "ffn/hidden": 10,
        "parameters": 17,
        "difference": 10,
        "tables": 7,
        "MFLOP/token": 13,
    }
    lines = [
        f"{search.target:,} parameters wanted, within {search.tolerance:.4g} of it",
        "  " + " ".join(f"{name:>{w}}" for name, w in widths.items()),
    ]
    for shape in shapes if own in shapes else [own, *shapes]:
        row, model = shape.row(), shape.model
        heads = (
            f"{model.num_heads}/{row['num_kv_heads']}"
            if row.get("num_kv_heads", model.num_heads) != model.num_heads
            else str(model.num_heads)
        )
        lines.append(
            f"{'*' if shape == own else ' '} {model.num_layers:>6} {model.hidden_size:>6} {heads:>7}"
            f" {model.ffn_hidden_size:>7} {model.ffn_hidden_size / model.hidden_size:>10.3f}"
            f" {shape.num_parameters:>17,} {shape.difference:>+10.2%} {shape.table_share:>7.2%}"
            f" {shape.flops_per_token / 1e6:>13,.1f}{'' if shape.within_tolerance else '  outside the tolerance'}"
        )
    return lines


def _whole(text: str) -> int:
    number = float(text)  # 1.2e9 is a whole number
    if not number.is_integer():
        raise ValueError
    return int(number)


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The positive numbers of a list such as "4,8,12", each once."""
    return list(dict.fromkeys(_number(f"{option}={text}", item, kind) for item in text.split(",")))


def _number(option: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        what = "whole numbers" if kind is _whole else "numbers"
        raise ConfigError(f"{option}: found {text!r}; it takes positive {what}, separated by commas in a list")
    return number
