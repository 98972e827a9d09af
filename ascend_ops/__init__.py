"""The seam to the hardware: one function for each operator, whichever backend computes it.

    import ascend_ops
    y = ascend_ops.gelu(x, bias)                 in a graph or eagerly
    with ascend_ops.use("composed"): ...         force a backend; or ASCEND_OPS_BACKEND=composed
    ascend_ops.explain()                         which backend each operator takes here, and why
"""

from ascend_ops.activations import fast_gelu, gelu, gelu_erf, series_activation, silu, swiglu
from ascend_ops.backend import BACKENDS, Choice, choose, explain, use
from ascend_ops.errors import OperatorError
