"""Sharding rules of Pangu Pro MoE."""

from pangu_ms.models.common.sharding import Rules
from pangu_ms.models.pi.sharding import RULES as PI

RULES: Rules = PI | {
    "expert": ("ep",),
    "expert_ffn": ("mp",),
    "router": (),  # every device chooses the experts of its own tokens
}
