"""The model families. A new family is a line here, its fields in config/, its mathematics in models/ and its YAML
files."""

import importlib
from dataclasses import dataclass
from typing import Any

from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.pi.config import PiConfig


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
        "pangu_ms.models.alpha.model:PanguAlpha",
        "pangu_ms.models.alpha.weights:FORMATS",
        "pangu_ms.models.alpha.sharding:RULES",
    ),
    "pi": Family(
        PiConfig,
        "pangu_ms.models.pi.model:PanguPi",
        "pangu_ms.models.pi.weights:FORMATS",
        "pangu_ms.models.pi.sharding:RULES",
    ),
}


def load_object(reference: str) -> Any:
    """Import "module:object"."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)
