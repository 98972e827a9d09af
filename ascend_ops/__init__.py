"""The operator library: one function for each operator, whichever backend computes it.

import ascend_ops
y = ascend_ops.gelu(x, bias)                 in a graph or eagerly
with ascend_ops.use("composed"): ...         force a backend; or ASCEND_OPS_BACKEND=composed
ascend_ops.explain()                         which backend each operator uses here, and why

Each public name is imported at its first use, so that `errors`, `table`, `library`, `cache`, `host` and `packing` can
be used without mindspore.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ascend_ops import backend
    from ascend_ops.activations import (
        fast_gelu,
        gelu,
        gelu_erf,
        series_activation,
        silu,
        swiglu,
    )
    from ascend_ops.addition import add, add_to_stream, fork
    from ascend_ops.attention import causal_attention
    from ascend_ops.backend import BACKENDS, PORTABLE, Choice, choose, explain, has_bfloat16_products, use
    from ascend_ops.decoding import cached_attention
    from ascend_ops.errors import OperatorError
    from ascend_ops.host import host_adamw
    from ascend_ops.layout import Axes, Devices, as_rows, from_rows, is_laid_out, lay_out, on_own_slices, placed
    from ascend_ops.loss import softmax_cross_entropy, token_logprobs
    from ascend_ops.matmul import grouped_matmul, linear, logits
    from ascend_ops.norms import layer_norm, rms_norm
    from ascend_ops.optimizer import adamw, squared_norm, squared_norms
    from ascend_ops.packed import packed_glu, packed_linear, packed_linears, packed_rows, packed_tensors
    from ascend_ops.packing import PackedWeight, QuantizedWeight, pack, quantized_rows, row_scales, unpack
    from ascend_ops.quantized import quantized_embedding, quantized_linear
    from ascend_ops.random_masks import dropout, dropout_seed
    from ascend_ops.rotary import rotary_embedding, rotary_table
    from ascend_ops.routing import moe_combine, moe_dispatch, rre_route

__all__ = [
    "BACKENDS",
    "Choice",
    "Axes",
    "Devices",
    "OperatorError",
    "PORTABLE",
    "PackedWeight",
    "QuantizedWeight",
    "adamw",
    "add",
    "add_to_stream",
    "as_rows",
    "backend",
    "cached_attention",
    "causal_attention",
    "choose",
    "dropout",
    "dropout_seed",
    "explain",
    "fast_gelu",
    "fork",
    "from_rows",
    "gelu",
    "gelu_erf",
    "grouped_matmul",
    "has_bfloat16_products",
    "host_adamw",
    "is_laid_out",
    "lay_out",
    "layer_norm",
    "linear",
    "logits",
    "moe_combine",
    "moe_dispatch",
    "on_own_slices",
    "pack",
    "packed_glu",
    "packed_linear",
    "packed_linears",
    "packed_rows",
    "packed_tensors",
    "placed",
    "quantized_embedding",
    "quantized_linear",
    "quantized_rows",
    "rms_norm",
    "rotary_embedding",
    "rotary_table",
    "row_scales",
    "rre_route",
    "series_activation",
    "silu",
    "softmax_cross_entropy",
    "squared_norm",
    "squared_norms",
    "swiglu",
    "token_logprobs",
    "unpack",
    "use",
]

_NAMES = {
    "activations": ("fast_gelu", "gelu", "gelu_erf", "series_activation", "silu", "swiglu"),
    "addition": ("add", "add_to_stream", "fork"),
    "attention": ("causal_attention",),
    "backend": ("BACKENDS", "PORTABLE", "Choice", "choose", "explain", "has_bfloat16_products", "use"),
    "decoding": ("cached_attention",),
    "errors": ("OperatorError",),
    "host": ("host_adamw",),
    "layout": ("Axes", "Devices", "as_rows", "from_rows", "is_laid_out", "lay_out", "on_own_slices", "placed"),
    "loss": ("softmax_cross_entropy", "token_logprobs"),
    "matmul": ("grouped_matmul", "linear", "logits"),
    "norms": ("layer_norm", "rms_norm"),
    "optimizer": ("adamw", "squared_norm", "squared_norms"),
    "packed": ("packed_glu", "packed_linear", "packed_linears", "packed_rows", "packed_tensors"),
    "packing": ("PackedWeight", "QuantizedWeight", "pack", "quantized_rows", "row_scales", "unpack"),
    "quantized": ("quantized_embedding", "quantized_linear"),
    "random_masks": ("dropout", "dropout_seed"),
    "rotary": ("rotary_embedding", "rotary_table"),
    "routing": ("moe_combine", "moe_dispatch", "rre_route"),
}
"""Module -> the public names that it defines."""
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "backend":
        return importlib.import_module("ascend_ops.backend")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ascend_ops.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
