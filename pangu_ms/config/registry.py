"""The model families. A new family is a line here, its fields in config/, its mathematics in models/ and its YAML
files."""

import importlib
from dataclasses import dataclass
from typing import Any

from pangu_ms.config.alpha import AlphaConfig
from pangu_ms.config.base import ModelConfig
from pangu_ms.config.pi import PiConfig


@dataclass(frozen=True)
class Family:
    """Where a family's parts are; all but `config` are "module:object", imported when first used."""

    config: type[ModelConfig]
    model: str
    names: str
    rules: str


FAMILIES = {
    "alpha": Family(
        AlphaConfig,
        "pangu_ms.models.alpha:PanguAlpha",
        "pangu_ms.checkpoint.names_alpha:FORMATS",
        "pangu_ms.parallel.rules:ALPHA",
    ),
    "pi": Family(
        PiConfig, "pangu_ms.models.pi:PanguPi", "pangu_ms.checkpoint.names_pi:FORMATS", "pangu_ms.parallel.rules:PI"
    ),
}


def load_object(reference: str) -> Any:
    """Import "module:object"."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
