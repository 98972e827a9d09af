"""Loads a YAML file, applies dotted overrides and validates the result as a RunConfig. Errors name the file, the key
and the nearest known key."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pangu_ms.config.schema import RunConfig
from pangu_ms.core import format_version, yaml_file
from pangu_ms.core.errors import ConfigError
from pangu_ms.models.registry import FAMILIES

FORMAT_VERSION = 1
_SHOWN = 200  # characters of a wrong value that a message shows
_PACKAGE = Path(__file__).resolve().parents[1]
PRESET_DIRECTORIES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # installed | checkout


def presets() -> dict[str, Path]:
    """Shipped configurations by name, such as "alpha/tiny"."""
    found = {}
    for directory in PRESET_DIRECTORIES:
        for path in sorted(directory.glob("*/*.yaml")):
            found[path.relative_to(directory).with_suffix("").as_posix()] = path
    return found


def find_config(name: str) -> Path:
    """A YAML file by path, or a shipped one by name: "alpha/tiny" or "configs/alpha/tiny.yaml".

    Raises:
        ConfigError: neither exists, or the path cannot be followed.
    """
    try:
        if Path(name).is_file():
            return Path(name)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    known = presets()
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short in known:
        return known[short]
    raise ConfigError(f"{name}: no such file or shipped config{_nearest(short, known, 'shipped')}")


def load_config(name: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Load a configuration and apply overrides such as "train.steps=100".

    A file may start from another one: `base: alpha/tiny`.

    Raises:
        ConfigError: unknown file or key, wrong type, or values that do not fit together.
    """
    path = find_config(name)
    tree = _with_new_names(_read_with_base(path, ()))
    for override in overrides:
        _apply_override(tree, override)
    return config_from_dict(tree, str(path) if not overrides else f"{path} with {' '.join(overrides)}")


def config_from_dict(tree: dict[str, Any], where: str) -> RunConfig:
    """Validate a tree of plain values; `where` begins each message."""
    try:
        return TypeAdapter(RunConfig).validate_python(tree)
    except ValidationError as error:
        reasons = dict.fromkeys(_explain(item) for item in error.errors())
        raise ConfigError(f"{where}: {'; '.join(reasons)}") from None


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Every field, resolved, as plain values."""
    return dataclasses.asdict(config)


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(
        {format_version.KEY: FORMAT_VERSION} | config_to_dict(config), sort_keys=False, allow_unicode=True
    )


def replace(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """A copy with some fields of some sections changed: replace(config, train={"steps": 10})."""
    changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **changed)


def _read_with_base(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: base: the files name each other in a circle; remove one base line")
    tree = yaml_file.read(path, ConfigError)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__}; a config is a mapping with a `model:` section")
    format_version.require_known(tree.pop(format_version.KEY, format_version.FIRST), FORMAT_VERSION, path, ConfigError)
    base = tree.pop("base", None)
    if base is None:
        return tree
    return _merge(_read_with_base(find_config(str(base)), (*seen, path.resolve())), tree)


def _with_new_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Translate fields that earlier versions wrote into checkpoints to their present names: init_depth_scaled became
    one of the values of init_rule."""
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("init_depth_scaled"), bool):
        rule = {"init_rule": "depth_scaled" if model["init_depth_scaled"] else "constant"}
        tree = tree | {"model": {key: value for key, value in model.items() if key != "init_depth_scaled"} | rule}
    return tree


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k for k in over if isinstance(over[k], dict) and isinstance(base.get(k), dict)}
    return base | {k: _merge(base[k], over[k]) if k in both else over[k] for k in over}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override}: an override has the form section.field=value, for example train.steps=100")
    *parents, leaf = key.split(".")
    for parent in parents:
        if not isinstance(tree.setdefault(parent, {}), dict):
            raise ConfigError(f"{override}: {parent} is a value, not a section")
        tree = tree[parent]
    try:
        tree[leaf] = yaml_file.parse(text) if text else ""
    except yaml_file.YamlError as error:
        raise ConfigError(f"{override}: the value is not YAML: {error}; put a text in quotes") from None


def _explain(item: ErrorDetails) -> str:
    location = [str(part) for part in item["loc"]]
    # pydantic inserts the family's name after `model` into the location; no file has it there.
    family = location.pop(1) if location[:1] == ["model"] and len(location) > 1 else None
    key = ".".join(location)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key{_nearest(location[-1], _fields_at(location[:-1], family))}"
    if item["type"] == "union_tag_not_found":
        return f"{key}.family: is required; known: {', '.join(FAMILIES)}"
    if item["type"] == "union_tag_invalid":
        return f"{key}.family={item['ctx']['tag']}: unknown family{_nearest(item['ctx']['tag'], FAMILIES)}"
    if item["type"] in ("missing", "missing_argument"):
        return f"{key}: is required and was not given"
    if item["type"] == "value_error":
        error = item["ctx"]["error"]
        return f"{key + '.' if key else ''}{error}"
    found = repr(item["input"])
    return f"{key}={found if len(found) <= _SHOWN else found[:_SHOWN] + '...'}: {_reason(item, location)}"


def _reason(item: ErrorDetails, location: list[str]) -> str:
    """What is wrong with a value, in words of YAML where pydantic's are those of Python."""
    if item["type"] == "dict_type":
        return "must be a mapping, such as {zh: 0.3, code: 0.7}"
    if item["type"] in ("tuple_type", "list_type"):
        return "must be a list in brackets, such as [zh, code]"
    if item["type"] == "string_type" and not isinstance(item["input"], (list, dict)):
        return 'must be a text; YAML reads no, on, null and numbers as something else: put it in quotes, such as "no"'
    if item["input"] is None and ":" in location[-1]:
        return "has no value; YAML needs a space after the colon"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}"


def _fields_at(location: list[str], family: str | None) -> list[str]:
    section: Any = RunConfig
    if location:
        section = (
            FAMILIES[family].config
            if family
            else next(f.type for f in dataclasses.fields(RunConfig) if f.name == location[0])
        )
    return [f.name for f in dataclasses.fields(section)]


def _nearest(word: str, known: Any, label: str = "known") -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; {label}: {', '.join(known)}" if known else ""
