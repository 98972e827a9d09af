"""One configuration object: YAML, then dotted overrides, then checks. No mindspore import."""

from pangu_ms.config.load import dump_config, find_config, load_config
from pangu_ms.config.schema import RunConfig

__all__ = ["RunConfig", "dump_config", "find_config", "load_config"]
