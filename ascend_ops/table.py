"""The table of kernels. All other descriptions of a kernel are generated from its entry, or checked against it.

An entry gives inputs, outputs, dtypes and attributes of one device function. From it come the registration with
MindSpore for CPU and Ascend (custom.py), the C++ shape and dtype inference of the CPU library (library.py), and the
aclnn signature that Ascend C sources must have (tests/ascend_ops/ascendc). No mindspore here.

A shape is a list of terms: `x` stands for all dimensions of input x, `x[:-1]` for all but the last, `x[0]` for one
dimension, and `3` for that number. The dtype `T` stands for the floating type of the call (float32, float16 or
bfloat16), the same wherever it appears; `P` stands for the type of a packed weight, `C` for that of cached keys and
values.

The per-channel parameters of a kernel (bias, weight, scale, shift) are float32 whatever T is; they have one value per
channel or one value for all channels.
"""

import itertools
from dataclasses import dataclass

FLOATS = ("float32", "float16", "bfloat16")
PACKED = ("float32", "bfloat16", "uint8")
"""Types of a packed weight (packing.py); uint8 holds int8 plus 128."""
CACHED = {"float32": FLOATS, "float16": ("float16",), "bfloat16": ("bfloat16",)}
"""Types of cached keys and values, by the floating type of the call."""

ACTIVATION_CODES = {"gelu": 0, "gelu_erf": 1, "fast_gelu": 2, "silu": 3}
"""Values of the attribute `activation`."""


@dataclass(frozen=True)
class Input:
    """One tensor that a kernel reads; `written` marks a parameter that it updates in place."""

    name: str
    dtype: str = "T"
    written: bool = False


@dataclass(frozen=True)
class Output:
    """One tensor that a kernel returns."""

    name: str
    shape: str
    dtype: str = "T"


@dataclass(frozen=True)
class Attribute:
    """A constant of a call. A CPU kernel receives all of them, in this order, as one float32 tensor after its
    inputs."""

    name: str
    type: str
    """int or float."""


@dataclass(frozen=True)
class Kernel:
    """One device function: `Name` in the CPU library, `aclnnName` on Ascend."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    attributes: tuple[Attribute, ...] = ()
    ascendc: bool = False
    """Whether an Ascend C kernel of this name exists in ascendc/."""

    def dtype_rows(self) -> tuple[tuple[str, ...], ...]:
        """The legal dtypes of inputs and outputs together: one row for each float type, or a single one when T is not
        used; and these for each type of a packed weight or a cache, when P or C is used."""
        ports: tuple[Input | Output, ...] = (*self.inputs, *self.outputs)
        dtypes = [port.dtype for port in ports]
        floats, packed = FLOATS if "T" in dtypes else ("",), PACKED if "P" in dtypes else ("",)
        rows = []
        for t, p in itertools.product(floats, packed):
            for c in CACHED[t] if "C" in dtypes else ("",):
                meant = {"T": t, "P": p, "C": c}
                rows.append(tuple(meant.get(dtype, dtype) for dtype in dtypes))
        return tuple(rows)

    def aclnn_signature(self) -> tuple[tuple[str, str], ...]:
        """(C type, name) of the arguments of aclnnNameGetWorkspaceSize up to its workspace size: inputs, attributes,
        outputs."""
        inputs = tuple(("const aclTensor *", p.name) for p in self.inputs)
        attributes = tuple(({"int": "int64_t", "float": "double"}[a.type], a.name) for a in self.attributes)
        return inputs + attributes + tuple(("const aclTensor *", p.name) for p in self.outputs)


def _f32(*names: str) -> tuple[Input, ...]:
    return tuple(Input(name, "float32") for name in names)


def _same(*names: str) -> tuple[Output, ...]:
    """Gradients of float32 inputs: `scale` -> output `dscale` of the same shape."""
    return tuple(Output("d" + name, name, "float32") for name in names)


_ACTIVATION = (Attribute("activation", "int"),)
_NORM = (Attribute("eps", "float"),)
_SERIES = _f32("bias", "scale", "shift")  # bias [C] or [1]; scale and shift [n, C] or [n, 1]
_GATED = _f32("gate_bias", "up_bias", "scale", "shift")
_ROW_STATISTIC = "x[:-1]"

KERNELS = {
    kernel.name: kernel
    for kernel in (
        # Activations. One pair serves gelu, gelu_erf, fast_gelu and silu (n = 1, scale 1, shift 0) and the
        # series of them. y = sum_i act(scale_i * (x + bias) + shift_i)
        Kernel("SeriesActivation", (Input("x"), *_SERIES), (Output("y", "x"),), _ACTIVATION, ascendc=True),
        Kernel(
            "SeriesActivationGrad",
            (Input("dy"), Input("x"), *_SERIES),
            (Output("dx", "x"), *_same("bias", "scale", "shift")),
            _ACTIVATION,
            ascendc=True,
        ),
        # y = (sum_i act(scale_i * (gate + gate_bias) + shift_i)) * (up + up_bias); silu with n = 1 is SwiGLU
        Kernel("SeriesGlu", (Input("gate"), Input("up"), *_GATED), (Output("y", "gate"),), _ACTIVATION, ascendc=True),
        Kernel(
            "SeriesGluGrad",
            (Input("dy"), Input("gate"), Input("up"), *_GATED),
            (Output("dgate", "gate"), Output("dup", "gate"), *_same("gate_bias", "up_bias", "scale", "shift")),
            _ACTIVATION,
            ascendc=True,
        ),
        # Norms over the last axis. The Add forms normalise total = x + residual; the gradient of total is that of both.
        Kernel(
            "LayerNorm",
            (Input("x"), *_f32("weight", "bias")),
            (Output("y", "x"), Output("mean", _ROW_STATISTIC, "float32"), Output("rstd", _ROW_STATISTIC, "float32")),
            _NORM,
        ),
        Kernel(
            "AddLayerNorm",
            (Input("x"), Input("residual"), *_f32("weight", "bias")),
            (
                Output("y", "x"),
                Output("total", "x"),
                Output("mean", _ROW_STATISTIC, "float32"),
                Output("rstd", _ROW_STATISTIC, "float32"),
            ),
            _NORM,
        ),
        # dtotal: the gradient of the sum itself, in addition to that of the normalised value
        Kernel(
            "LayerNormGrad",
            (Input("dy"), Input("x"), *_f32("weight", "mean", "rstd")),
            (Output("dx", "x"), Output("dweight", "weight", "float32"), Output("dbias", "weight", "float32")),
        ),
        Kernel(
            "AddLayerNormGrad",
            (Input("dy"), Input("dtotal"), Input("total"), *_f32("weight", "mean", "rstd")),
            (Output("dx", "total"), Output("dweight", "weight", "float32"), Output("dbias", "weight", "float32")),
        ),
        Kernel(
            "RmsNorm",
            (Input("x"), *_f32("weight")),
            (Output("y", "x"), Output("rstd", _ROW_STATISTIC, "float32")),
            _NORM,
        ),
        Kernel(
            "AddRmsNorm",
            (Input("x"), Input("residual"), *_f32("weight")),
            (Output("y", "x"), Output("total", "x"), Output("rstd", _ROW_STATISTIC, "float32")),
            _NORM,
        ),
        Kernel(
            "RmsNormGrad", (Input("dy"), Input("x"), *_f32("weight", "rstd")), (Output("dx", "x"), *_same("weight"))
        ),
        Kernel(
            "AddRmsNormGrad",
            (Input("dy"), Input("dtotal"), Input("total"), *_f32("weight", "rstd")),
            (Output("dx", "total"), *_same("weight")),
        ),
        # loss[t] = mask[t] != 0 ? logsumexp(logits[t]) - logits[t, labels[t]] : 0; a masked label may be anything
        Kernel(
            "SoftmaxCrossEntropy",
            (Input("logits"), Input("labels", "int32"), *_f32("mask")),
            (Output("loss", "labels", "float32"), Output("logsumexp", "labels", "float32")),
        ),
        Kernel(
            "SoftmaxCrossEntropyGrad",
            (Input("dloss", "float32"), Input("logits"), Input("labels", "int32"), *_f32("mask", "logsumexp")),
            (Output("dlogits", "logits"),),
        ),
        # logprob[t] = logits[t, targets[t]] - logsumexp(logits[t]), best[t] = argmax; 0 and -1 where targets[t] < 0
        Kernel(
            "TokenLogprobs",
            (Input("logits"), Input("targets", "int32")),
            (Output("logprob", "targets", "float32"), Output("best", "targets", "int32")),
        ),
        # q [B, Q, H, D], k and v [B, K, G, D], H a multiple of G; key j is seen by query i when k_index[j] <=
        # q_index[i] and their segments agree the last two dimensions of q, k and v may be one: `heads` [H]
        # gives the number of query heads by its length
        Kernel(
            "CausalAttention",
            (
                Input("q"),
                Input("k"),
                Input("v"),
                *(Input(n, "int32") for n in ("q_index", "k_index", "q_segment", "k_segment", "heads", "dropout_seed")),
            ),
            (Output("out", "q"), Output("logsumexp", "q[0] heads q[1]", "float32")),
            (Attribute("scale", "float"), Attribute("dropout_rate", "float")),
        ),
        Kernel(
            "CausalAttentionGrad",
            (
                *(Input(n) for n in ("dout", "q", "k", "v")),
                *(Input(n, "int32") for n in ("q_index", "k_index", "q_segment", "k_segment", "heads", "dropout_seed")),
                Input("out"),
                Input("logsumexp", "float32"),
            ),
            (Output("dq", "q"), Output("dk", "k"), Output("dv", "v")),
            (Attribute("scale", "float"), Attribute("dropout_rate", "float")),
        ),
        # k and v [N, G * D] are written into row positions[n] of slot slots[n] of keys and values [S * R, G * D]; then
        # query q [Q, H * D] attends to the rows 0 to query_positions of its slot. A slot below 0: nobody's row, which
        # writes nothing and gives 0.
        Kernel(
            "CachedAttention",
            (
                *(Input(n) for n in ("q", "k", "v")),
                *(Input(n, "C", written=True) for n in ("keys", "values")),
                *(Input(n, "int32") for n in ("positions", "slots", "query_positions", "query_slots")),
            ),
            (Output("out", "q"),),
            (Attribute("scale", "float"), Attribute("num_heads", "int"), Attribute("num_slots", "int")),
        ),
        # One pass: m, v and p are updated from gradient * factor. controls = (lr, factor), float32 [2]. A line k of the
        # first dimension with norms[k] = 0 is left as it is; norms [1] holding 1 updates everything.
        Kernel(
            "AdamW",
            (
                *(Input(n, "float32", written=True) for n in ("parameter", "m", "v")),
                Input("gradient"),
                *_f32("controls", "norms"),
            ),
            (Output("done", "1", "float32"),),
            tuple(Attribute(n, "float") for n in ("beta1", "beta2", "eps", "weight_decay")),
        ),
        Kernel("SquaredNorm", (Input("x"),), (Output("y", "1", "float32"),)),
        Kernel("SquaredNorms", (Input("x"),), (Output("y", "x[0]", "float32"),)),
        # Routing. order[i] = flat slot (token * top_k + choice) that stands in sorted row i; the sort by
        # expert is stable.
        Kernel(
            "RreRoute",
            tuple(Input(n, "int32") for n in ("domain", "ids", "table")),
            (Output("expert", "ids", "int32"),),
            ascendc=True,
        ),
        # only the length of `experts` [num_experts] is used; it gives the number of experts, on which a shape can
        # depend
        Kernel(
            "MoeDispatch",
            (Input("x"), Input("expert", "int32"), Input("experts", "int32")),
            (Output("rows", "expert x[1]"), Output("order", "expert", "int32"), Output("counts", "experts", "int32")),
            ascendc=True,
        ),
        # y[t] = sum_c weights[t, c] * rows[position of slot t * top_k + c]
        Kernel(
            "MoeCombine",
            (Input("rows"), Input("order", "int32"), *_f32("weights")),
            (Output("y", "weights[0] rows[1]"),),
            ascendc=True,
        ),
        Kernel(
            "MoeCombineGrad",
            (Input("dy"), Input("rows"), Input("order", "int32"), *_f32("weights")),
            (Output("drows", "rows"), *_same("weights")),
        ),
        Kernel("Add", (Input("x"), Input("y")), (Output("total", "x"),)),
        # y = x * (hash of seed and element index says keep) / (1 - rate); the gradient is Dropout of dy
        Kernel("Dropout", (Input("x"), Input("seed", "int32")), (Output("y", "x"),), (Attribute("rate", "float"),)),
        # x [B, S, H * D] or [B, S, H, D], cos_sin [B, S, D]: (x1 cos - sign x2 sin, x2 cos + sign x1 sin) of
        # the halves of each head; the gradient has -sign
        Kernel("RotaryEmbedding", (Input("x"), *_f32("cos_sin")), (Output("y", "x"),), (Attribute("sign", "float"),)),
        # y = x W^T + bias with float32 weight [out, in] and bias [out], or [1] holding 0 for none
        Kernel("Linear", (Input("x"), *_f32("weight", "bias")), (Output("y", "x[:-1] weight[0]"),)),
        Kernel(
            "LinearGrad",
            (Input("dy"), Input("x"), *_f32("weight", "bias")),
            (Output("dx", "x"), *_same("weight", "bias")),
        ),
        # rows of expert e, counts[e] of them in order, times weight[e] [out, in] plus bias[e] [out]; bias [1] holding 0
        # for none
        Kernel(
            "GroupedMatmul",
            (Input("x"), Input("weight", "float32"), Input("counts", "int32"), *_f32("bias")),
            (Output("y", "x[0] weight[1]"),),
        ),
        Kernel(
            "GroupedMatmulGrad",
            (Input("dy"), Input("x"), Input("weight", "float32"), Input("counts", "int32"), *_f32("bias")),
            (Output("dx", "x"), *_same("weight", "bias")),
        ),
        # y = activation(x W^T + bias) with a packed weight of [out, in] and its scale [out]; bias [out], or [1] holding
        # 0 for none; the activation -1 is none
        Kernel(
            "PackedLinear",
            (Input("x"), Input("weight", "P"), *_f32("scale", "bias")),
            (Output("y", "x[:-1] scale"),),
            _ACTIVATION,
        ),
        # The products of x with several weights, whose blocks stand behind one another; scale and bias are those of all
        # outputs. Only the lengths of first, second and third are used: the outputs of each weight.
        *(
            Kernel(
                f"PackedLinear{len(names)}",
                (Input("x"), Input("weight", "P"), *_f32("scale", "bias", *names)),
                tuple(Output("y_" + name, f"x[:-1] {name}") for name in names),
            )
            for names in (("first", "second"), ("first", "second", "third"))
        ),
        # y = phi(x G^T) * (x U^T) with the blocks of G [out, in], then those of U; scale [2, out]; phi as in SeriesGlu
        Kernel(
            "PackedGlu",
            (Input("x"), Input("weight", "P"), *_f32("scale", "series_scale", "series_shift")),
            (Output("y", "x[:-1] scale[1]"),),
            _ACTIVATION,
        ),
        # rows ids of a packed weight; only the length of `channels` [in] is used
        Kernel(
            "PackedRows",
            (Input("ids", "int32"), Input("weight", "P"), *_f32("scale", "channels")),
            (Output("y", "ids channels", "float32"),),
        ),
    )
}


@dataclass(frozen=True)
class Operator:
    """One function of the public API, and the kernels and built-in operators that can compute it."""

    summary: str
    inputs: tuple[str, ...]
    """Names of its tensors, as in error messages."""
    kernels: tuple[str, ...]
    """Its kernels, forward first. The CPU library has all of them; an Ascend C kernel exists where `Kernel` says so."""
    builtin: str = ""
    """MindSpore's own operator for it on Ascend, if there is one."""
    builtin_socs: tuple[str, ...] = ("ascend910", "ascend910b", "ascend910_93")
    """Chips that the built-in is documented for."""
    onednn: bool = False
    """Whether the CPU kernel uses the oneDNN library that MindSpore contains."""


_SERIES_KERNELS = ("SeriesActivation", "SeriesActivationGrad")
_NORM_INPUTS = ("x", "weight", "bias", "residual")
_ATTENTION_INPUTS = ("q", "k", "v", "q_index", "k_index", "q_segment", "k_segment", "dropout_seed")
_NEWER = ("ascend910b", "ascend910_93")

OPERATORS = {
    "gelu": Operator("GELU, tanh form, of x + bias", ("x", "bias"), _SERIES_KERNELS, "gelu"),
    "gelu_erf": Operator(
        "GELU, exact, of x + bias", ("x", "bias"), _SERIES_KERNELS, "gelu(approximate='none')", _NEWER
    ),
    "fast_gelu": Operator("x sigmoid(1.702 x) of x + bias", ("x", "bias"), _SERIES_KERNELS, "fast_gelu"),
    "silu": Operator("x sigmoid(x) of x + bias", ("x", "bias"), _SERIES_KERNELS, "silu"),
    "series_activation": Operator(
        "PanGu-pi's sum of scaled and shifted activations", ("x", "scale", "shift", "bias"), _SERIES_KERNELS
    ),
    "swiglu": Operator(
        "silu (or its series) of a gate, times a value",
        ("gate", "up", "gate_bias", "up_bias", "scale", "shift"),
        ("SeriesGlu", "SeriesGluGrad"),
    ),
    "layer_norm": Operator(
        "LayerNorm of x, or of x + residual",
        _NORM_INPUTS,
        ("LayerNorm", "LayerNormGrad", "AddLayerNorm", "AddLayerNormGrad"),
        "LayerNorm",
    ),
    "rms_norm": Operator(
        "RMSNorm of x, or of x + residual",
        ("x", "weight", "residual"),
        ("RmsNorm", "RmsNormGrad", "AddRmsNorm", "AddRmsNormGrad"),
        "RmsNorm",
        _NEWER,
    ),
    "softmax_cross_entropy": Operator(
        "loss of each token over [T, V] logits, masked",
        ("logits", "labels", "mask"),
        ("SoftmaxCrossEntropy", "SoftmaxCrossEntropyGrad"),
    ),
    "token_logprobs": Operator(
        "log-probability of a token over each row of logits, and the likeliest token",
        ("logits", "targets"),
        ("TokenLogprobs",),
    ),
    "causal_attention": Operator(
        "attention within segments, memory linear in the sequence",
        _ATTENTION_INPUTS,
        ("CausalAttention", "CausalAttentionGrad"),
        "flash_attention_score",
        _NEWER,
    ),
    "cached_attention": Operator(
        "writes keys and values into slots of a cache, then attends to them; for inference",
        ("q", "k", "v", "keys", "values", "positions", "slots", "query_positions", "query_slots"),
        ("CachedAttention",),
    ),
    "adamw": Operator(
        "AdamW update of a parameter and its moments in one pass",
        ("parameter", "m", "v", "gradient", "norms"),
        ("AdamW",),
        "AdamWeightDecay",
    ),
    "squared_norm": Operator("sum of squares", ("x",), ("SquaredNorm",)),
    "squared_norms": Operator("sum of squares of each index of the first dimension", ("x",), ("SquaredNorms",)),
    "rre_route": Operator("expert of each token by a fixed table", ("domain", "ids", "table"), ("RreRoute",)),
    "moe_dispatch": Operator("tokens sorted by expert, with counts", ("x", "expert"), ("MoeDispatch", "MoeCombine")),
    "moe_combine": Operator(
        "expert outputs back in token order, weighted", ("rows", "order", "weights"), ("MoeCombine", "MoeCombineGrad")
    ),
    "grouped_matmul": Operator(
        "each expert's rows times its weight, plus its bias",
        ("x", "weight", "counts", "bias"),
        ("GroupedMatmul", "GroupedMatmulGrad"),
        "GroupedMatmulV4",
        _NEWER,
        onednn=True,
    ),
    "add": Operator("sum of two tensors of one shape", ("x", "y"), ("Add",), "Add"),
    "dropout": Operator("dropout by a hash, the same when repeated", ("x", "seed"), ("Dropout",)),
    "rotary_embedding": Operator(
        "rotary position embedding, rotate-half form",
        ("x", "cos_sin"),
        ("RotaryEmbedding",),
        "rotary_position_embedding",
        _NEWER,
    ),
    "linear": Operator(
        "x W^T + bias in the dtype of x, weight in float32",
        ("x", "weight", "bias"),
        ("Linear", "LinearGrad"),
        "MatMul",
        onednn=True,
    ),
    "packed_linear": Operator(
        "activation of x W^T + bias; weight packed for inference: float32, bfloat16, int8",
        ("x", "weight", "scale", "bias"),
        ("PackedLinear",),
    ),
    "packed_linears": Operator(
        "the products of x with two or three packed weights",
        ("x", "weight", "scale", "bias"),
        ("PackedLinear2", "PackedLinear3"),
    ),
    "packed_glu": Operator(
        "silu (or its series) of a product with a packed weight, times another product",
        ("x", "weight", "scale", "series_scale", "series_shift"),
        ("PackedGlu",),
    ),
    "packed_rows": Operator("rows of a packed weight, by their numbers", ("ids", "weight", "scale"), ("PackedRows",)),
}
