"""Sharding rules of PanGu-alpha."""

from pangu_ms.models.common.sharding import COMMON, Rules

RULES: Rules = COMMON | {
    "position": (),  # position and query tables: 1,024 rows, read by every device
}
