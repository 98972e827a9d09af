"""The seam to the hardware: one function for each operator, whichever backend computes it.

import ascend_ops
y = ascend_ops.gelu(x, bias)                 in a graph or eagerly
with ascend_ops.use("composed"): ...         force a backend; or ASCEND_OPS_BACKEND=composed
ascend_ops.explain()                         which backend each operator takes here, and why
"""

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
from ascend_ops.dropout import dropout, dropout_seed
from ascend_ops.errors import OperatorError
from ascend_ops.layout import Devices, as_rows, from_rows, is_laid_out, lay_out, placed
from ascend_ops.loss import softmax_cross_entropy
from ascend_ops.matmul import grouped_matmul, linear, logits
from ascend_ops.norms import layer_norm, rms_norm
from ascend_ops.optimizer import adamw, squared_norm
from ascend_ops.rotary import rotary_embedding, rotary_table
from ascend_ops.routing import moe_combine, moe_dispatch, rre_route

__all__ = [
    "BACKENDS",
    "Choice",
    "Devices",
    "OperatorError",
    "PORTABLE",
    "adamw",
    "as_rows",
    "add",
    "add_to_stream",
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
    "is_laid_out",
    "lay_out",
    "layer_norm",
    "linear",
    "logits",
    "moe_combine",
    "moe_dispatch",
    "placed",
    "rms_norm",
    "rotary_embedding",
    "rotary_table",
    "rre_route",
    "series_activation",
    "silu",
    "softmax_cross_entropy",
    "squared_norm",
    "swiglu",
    "use",
]
