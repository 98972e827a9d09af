"""Sharding rules of PanGu-Sigma."""

from pangu_ms.models.alpha.sharding import RULES as ALPHA
from pangu_ms.models.common.sharding import Rules

RULES: Rules = ALPHA | {
    "expert": ("ep",),
    "slot": (),
    "domain": (),  # routing tables: every device looks up the experts of its own tokens
    "token": (),
}
