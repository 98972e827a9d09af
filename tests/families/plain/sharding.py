"""Sharding rules of a plain decoder."""

from pangu_ms.models.common.sharding import COMMON, Rules

RULES: Rules = COMMON | {"position": ()}
