"""`pangu config ACTION`: show a resolved configuration and what its fields mean, and find model shapes of equal
size."""

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from pangu_ms.cli import options
from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.config import iso
from pangu_ms.config.load import config_to_dict, dump_config, load_config, presets
from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.models.registry import FAMILIES
from pangu_ms.train.schedule import peak_learning_rate

ACTIONS = {
    "show": ("pangu_ms.cli.config:show_parser", "print a resolved config and the model's size"),
    "iso": ("pangu_ms.cli.config:iso_parser", "find deeper or wider shapes with the same number of parameters"),
}
ISO_NOTES = """
* the given config
tables: share of embeddings and head; PanGu-pi Pro recommends less than 20 %
MFLOP/token: forward pass, {formula}"""


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu config", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("config", __doc__, ACTIONS, argv)


def show_parser() -> Parser:
    """The options of `pangu config show`."""
    parser = Parser(prog="pangu config show")
    options.add_config(parser)
    options.add_json(parser)
    parser.add_argument("--fields", action="store_true", help="list every field with its default and meaning")
    parser.add_argument("--list", action="store_true", help="list the shipped configs with their sizes")
    parser.set_defaults(run=run_show)
    return parser


def iso_parser() -> Parser:
    """The options of `pangu config iso`. Numbers are parsed later by `_number`, whose error messages say what is
    expected."""
    parser = Parser(prog="pangu config iso", description=ACTIONS["iso"][1])
    options.add_config(parser)
    parser.add_argument("--parameters", metavar="N", help="target size, such as 1.2e9 (default: the config's)")
    text = "numbers of layers to try (default: a quarter to twice the config's)"
    parser.add_argument("--depths", metavar="L,L,...", help=text)
    parser.add_argument(
        "--expansions", metavar="R,R,...", help="ratios ffn_hidden_size / hidden_size (default: the config's)"
    )
    parser.add_argument("--head-dim", metavar="D", help="size of an attention head (default: the config's)")
    parser.add_argument("--multiple", metavar="N", default="8", help="feed-forward widths are multiples of N")
    text = "largest relative difference from the target size; feed-forward widths are adapted to meet it"
    parser.add_argument("--tolerance", metavar="SHARE", default="0.01", help=text)
    options.add_new_directory(parser, "--write", "new directory for a YAML per shape within the tolerance")
    options.add_json(parser)
    parser.set_defaults(run=run_iso)
    return parser


def field_descriptions(section: type) -> dict[str, str]:
    """The string under each field in the source of a section's class or of its base classes, by the field's name."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in itertools.pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(description))):
                    found[name] = description
    return found


def fields() -> list[dict[str, Any]]:
    """One row per field: dotted name, family, whether it is required, default, description."""
    schema = TypeAdapter(RunConfig).json_schema()
    families = {family.config.__name__: name for name, family in FAMILIES.items()}
    rows = []
    for section in dataclasses.fields(RunConfig):
        reference = schema["properties"][section.name]
        names = [r["$ref"].rsplit("/", 1)[1] for r in reference.get("oneOf", [reference]) if "$ref" in r]
        for name in names:
            required = schema["$defs"][name].get("required", ())
            section_class = FAMILIES[families[name]].config if name in families else section.type
            assert isinstance(section_class, type)
            texts = field_descriptions(section_class)
            for key, field in schema["$defs"][name]["properties"].items():
                description = texts.get(key, "")
                row = {
                    "name": f"{section.name}.{key}",
                    "family": families.get(name),
                    "required": key in required,
                }
                default = field.get("default", None if key in required else {})  # a factory's default is no part of it
                # Where the source wraps a description says nothing to a reader of the output.
                rows.append(row | {"default": default, "description": " ".join(description.split())})
    return rows


def field_lines() -> list[str]:
    """The fields as text, two lines per field."""
    return [
        f"{row['name']} {'(required)' if row['required'] else '= ' + str(row['default'])}\n    {row['description']}"
        for row in fields()
    ]


def run_show(args: Namespace) -> int:
    """`pangu config show`."""
    if args.fields:
        print_result(fields(), "\n".join(field_lines()), args.json)
    elif args.list:
        sizes = {name: load_config(name).model.num_parameters() for name in presets()}
        rows = [(name, f"{size / 1e6:,.1f} M parameters") for name, size in sizes.items()]
        print_result(sizes, "\n".join(table_lines(None, rows, "<>")), args.json)
    else:
        config = load_config(args.config, args.overrides)
        size, lr = config.model.num_parameters(), peak_learning_rate(config)
        result = config_to_dict(config) | {"num_parameters": size, "effective_lr": lr}
        heading = f"# {config.model.family}, {size:,} parameters, peak learning rate {lr:.4g}"
        print_result(result, f"{heading}\n{dump_config(config).rstrip()}", args.json)
    return 0


def run_iso(args: Namespace) -> int:
    """`pangu config iso`."""
    config = load_config(args.config, args.overrides)
    model = config.model
    search = iso.Search(
        target=_number("--parameters", args.parameters, _whole, model.num_parameters()),
        head_dim=_number("--head-dim", args.head_dim, _whole, model.head_dim),
        multiple=_number("--multiple", args.multiple, _whole),
        tolerance=_number("--tolerance", args.tolerance, float),
    )
    depths = _numbers("--depths", args.depths, _whole, iso.default_depths(model.num_layers))
    expansions = _numbers("--expansions", args.expansions, float, [model.ffn_hidden_size / model.hidden_size])
    shapes = iso.find_shapes(model, search, depths, expansions)
    written = iso.write_shapes(args.write, args.config, config, shapes) if args.write else []
    own = iso.Shape.of(model, search)
    result = {"config": args.config} | vars(search) | {"given": own.row()}
    result["shapes"] = [shape.row() | {"given": shape == own} for shape in shapes]
    result |= {"flops_formula": iso.FLOPS_FORMULA, "written": written}
    lines = [*_table(own, shapes, search), ISO_NOTES.format(formula=iso.FLOPS_FORMULA).strip()]
    if written:
        lines.append(f"written to {args.write}: {', '.join(written)}")
    print_result(result, "\n".join(lines), args.json)
    return 0


def _table(own: iso.Shape, shapes: list[iso.Shape], search: iso.Search) -> list[str]:
    """The shapes as a table; the given config comes first, unless the search found it too."""
    heading = f"{search.target:,} parameters wanted, within {search.tolerance:.4g} of it"
    head = ("", "layers", "hidden", "heads", "ffn", "ffn/hidden", "parameters", "difference", "tables", "MFLOP/token")
    rows = [_row(shape, shape == own) for shape in (shapes if own in shapes else [own, *shapes])]
    return [heading, *table_lines((*head, ""), rows, "<>>>>>>>>><")]


def _row(shape: iso.Shape, given: bool) -> tuple[object, ...]:
    row, model = shape.row(), shape.model
    num_kv_heads = row.get("num_kv_heads", model.num_heads)
    heads = f"{model.num_heads}/{num_kv_heads}" if num_kv_heads != model.num_heads else str(model.num_heads)
    return (
        "*" if given else "",
        model.num_layers,
        model.hidden_size,
        heads,
        model.ffn_hidden_size,
        f"{model.ffn_hidden_size / model.hidden_size:.3f}",
        f"{shape.num_parameters:,}",
        f"{shape.difference:+.2%}",
        f"{shape.table_share:.2%}",
        f"{shape.flops_per_token / 1e6:,.1f}",
        "" if shape.within_tolerance else "outside the tolerance",
    )


def _whole(text: str) -> int:
    number = float(text)  # 1.2e9 is a whole number
    if not number.is_integer():
        raise ValueError
    return int(number)


def _numbers(option: str, text: str | None, kind: Callable[[str], Any], default: list[Any]) -> list[Any]:
    """The positive numbers of a list such as "4,8,12", each once."""
    if text is None:
        return default
    return list(dict.fromkeys(_number(f"{option}={text}", item, kind) for item in text.split(",")))


def _number(option: str, text: str | None, kind: Callable[[str], Any], default: Any = None) -> Any:
    if text is None:
        return default
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        what = "whole numbers" if kind is _whole else "numbers"
        raise ConfigError(f"{option}: found {text!r}; it takes positive {what}, separated by commas in a list")
    return number
