"""Sharding rules: which mesh axes cut each logical axis. What all families share; each adds its own axes.

The logical axes of parameters are those of `ModelConfig.parameters()`; batch and sequence are those of activations. ()
means whole on every device.
"""

Rules = dict[str, tuple[str, ...]]

COMMON: Rules = {
    "batch": ("dp", "ep"),  # expert devices hold their own part of the batch
    "sequence": (),  # of norms and residuals; ("mp",) with sequence_parallel
    "vocab": (),  # ("mp",) with vocab_embedding=row
    "embed": (),
    "heads": ("mp",),
    "ffn": ("mp",),
}
