"""Foreign names of a plain decoder."""

from typing import Any

from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.config_json import require_understood
from pangu_ms.models.common.weights import MINDFORMERS, Format, Rule

from .config import PlainConfig

_FIELDS = tuple(name for name in PlainConfig.field_names() if name not in ("family", "init_std", "init_rule"))


def _huggingface(config: ModelConfig) -> list[Rule]:
    return [Rule(name, f"transformer.{name}") for name in config.parameters()]


def read_config(where: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Fields of PlainConfig from a config.json."""
    require_understood(where, tree, _FIELDS)
    return {"family": "plain"} | {name: tree[name] for name in _FIELDS if name in tree}


def write_config(config: PlainConfig) -> dict[str, Any]:
    """The inverse."""
    return {"model_type": "plain"} | {name: getattr(config, name) for name in _FIELDS}


FORMATS = {
    "huggingface": Format(_huggingface, model_types=("plain",), read_config=read_config, write_config=write_config),
    "mindformers": MINDFORMERS,
}
