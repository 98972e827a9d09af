"""Sharding rules: which mesh axes shard each logical axis. COMMON has the rules of all families; each family adds its
own axes.

The logical axes of parameters are those of `ModelConfig.parameters()`; batch and sequence are those of activations. ()
means not sharded: whole on every device.
"""

Rules = dict[str, tuple[str, ...]]

COMMON: Rules = {
    "batch": ("dp", "ep"),  # expert devices hold their own part of the batch
    "sequence": (),  # axis of norms and the residual stream; ("mp",) with sequence_parallel
    "vocab": (),  # ("mp",) with vocab_embedding=row
    "embed": (),
    "heads": ("mp",),
    "ffn": ("mp",),
}
