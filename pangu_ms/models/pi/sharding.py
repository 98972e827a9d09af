"""Sharding rules of PanGu-pi."""

from pangu_ms.models.common.sharding import COMMON, Rules

RULES: Rules = COMMON | {
    "kv_heads": ("mp",),
    "siaf_term": (),
    "bottleneck": (),  # a branch is E / 32 wide: cutting it would cost an all-reduce to save 1/mp of 3 % of the work
    "one": (),
}
