"""What every model family's configuration is made of: its fields, its parameters without their values, and the answers
to what the planner, the converters and the studies ask of a model. No mindspore import."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from pangu_ms.core.fields import (
    STRICT,
    Dtype,
    Float,
    Int,
    divisors,
    require,
    require_at_most,
    require_positive,
)

MOST_LAYERS = 4096  # the deepest models have some hundreds
MASK_BYTES = 4
"""Of one element's dropout factor, which the composed operator keeps in float32 (ascend_ops/random_masks.py)."""


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """What is known of one parameter without its values."""

    axes: tuple[str, ...]
    """Logical axis of each dimension, such as ("ffn", "embed"); its length is `ModelConfig.axis_sizes()[axis]`."""
    mean: float | tuple[float, ...] = 0.0
    """Initial mean; a tuple has one for each line of the first dimension."""
    std: float | tuple[float, ...] = 0.0
    """Initial standard deviation, likewise."""
    decay: bool = False
    """Whether weight decay applies: to matrices and embeddings, not to biases, norms and activation parameters (spec
    A3.1)."""
    trainable: bool = True
    """False: it has no gradient and no moments, and training leaves it as it is. It is a weight all the same:
    initialised, saved, loaded, resharded, exported."""
    dtype: Literal["float32", "int32"] = "float32"
    """As it is kept and stored; a table of whole numbers is int32 and not trainable."""

    def __post_init__(self) -> None:
        assert self.dtype == "float32" or not self.trainable, "whole numbers have no gradient"


@dataclasses.dataclass(frozen=True)
class ExtraInput:
    """An input of a model beside ids, positions, segments and loss mask: one array for each batch."""

    axes: tuple[Literal["batch", "sequence"], ...]
    """Of each dimension; the first is "batch", by which replicas and micro-batches cut it."""
    dtype: Literal["float32", "int32"] = "int32"

    def __post_init__(self) -> None:
        assert self.axes[:1] == ("batch",)

    def shape(self, batch_size: int, seq_length: int) -> tuple[int, ...]:
        """Of the array."""
        sizes = {"batch": batch_size, "sequence": seq_length}
        return tuple(sizes[axis] for axis in self.axes)


@dataclasses.dataclass(frozen=True)
class Activation:
    """A tensor that a layer's forward pass leaves for its backward pass."""

    name: str
    bytes: int
    """Of one sequence, on one device."""
    selective: bool = False
    """Whether recompute=selective computes it again."""
    count: int = 1
    """Equal tensors in it; 0 marks what has no gradient."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ModelConfig:
    """Fields that every PanGu model has; a family adds its own, names its parameters and answers the questions below.

    A field that only some families have is a property here, with the value that it has for the others: whoever reads it
    asks no family. A family that has the field declares it, and the declaration takes the property's place.
    """

    ADDITIONS: ClassVar[dict[str, Any]] = {}
    """Fields that add parts to a model without changing what it computes: the default of `pangu model upgrade`. Empty:
    the family has no such parts."""
    FIELDS_OF_PARTS: ClassVar[dict[str, str]] = {}
    """The beginning of a parameter's name, behind its layer's prefix -> the fields that decide whether it exists, as a
    message names them."""

    vocab_size: Int
    """Rows of the word table; must equal the tokenizer's number of pieces."""
    hidden_size: Int
    """Width E of the residual stream."""
    num_layers: Int
    """Number of layers; alpha counts its query layer (spec A1)."""
    num_heads: Int
    """Attention heads; must divide hidden_size, unless the family lets head_dim be given. A wrong number loads
    silently: it changes no shape (spec A2)."""
    ffn_hidden_size: Int = 0
    """Width F of the feed-forward network; 0 means 4 * hidden_size for alpha, and 8/3 * hidden_size rounded up to a
    multiple of 256 for pi."""
    seq_length: Int = 1024
    """Context length in tokens, and rows of the position tables."""
    compute_dtype: Dtype = "float32"
    """dtype of matrix products and the residual stream; norms, softmax and loss stay float32. A CPU has no bfloat16
    products."""
    init_std: Float = 0.02
    """Standard deviation of the normal initialisation (spec A1.7 lists 0.01 and 0.02)."""
    init_rule: Literal["constant", "depth_scaled", "layer_scaled"] = "constant"
    """init_std of the projections that write to the residual stream: as it is (pi Pro found that best, spec E2.2),
    divided by sqrt(2 * num_layers) (GPT-2; spec A1.7, OLD and HF), or in layer i from 0 by sqrt(2 * (i + 1))
    (InternLM)."""
    family: str
    """The model family, by its name in pangu_ms/models/registry.py. Every config states it."""

    def __post_init__(self) -> None:
        if self.ffn_hidden_size == 0:
            self._resolve("ffn_hidden_size", self.default_ffn_hidden_size())
        require_positive(
            self, "vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size", "seq_length", "init_std"
        )
        require_at_most(self, MOST_LAYERS, "num_layers")

    def _resolve(self, field: str, value: Any) -> None:
        """Replace a 0 that stands for a computed value."""
        object.__setattr__(self, field, value)

    def _require_heads_divide_hidden_size(self) -> None:
        require(
            self.hidden_size % self.num_heads == 0,
            "num_heads",
            f"={self.num_heads}: must divide hidden_size={self.hidden_size}; use one of {divisors(self.hidden_size)}",
        )

    def default_ffn_hidden_size(self) -> int:
        """What ffn_hidden_size=0 stands for."""
        return 4 * self.hidden_size

    @property
    def head_dim(self) -> int:
        """Size D of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values, each shared by num_heads / num_kv_heads query heads."""
        return self.num_heads

    @property
    def num_experts(self) -> int:
        """Experts of a layer; 0 without any."""
        return 0

    @property
    def dropout(self) -> float:
        """Probability with which training drops a value."""
        return 0.0

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The fields of the family, in the order in which a configuration is written."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def axis_sizes(self) -> dict[str, int]:
        """Length of each logical axis; a family adds its own to these."""
        return {
            "vocab": self.vocab_size,
            "embed": self.hidden_size,
            "heads": self.num_heads * self.head_dim,
            "kv_heads": self.num_kv_heads * self.head_dim,
            "ffn": self.ffn_hidden_size,
        }

    def extra_inputs(self) -> dict[str, ExtraInput]:
        """What the model reads beside ids, positions, segments and loss mask, by name: the last arguments of its
        `construct`, in this order. data/extra_inputs.py makes the arrays."""
        return {}

    def layer_names(self) -> list[str]:
        """Prefix of the parameter names of each layer, from the first to the last."""
        return [f"blocks.{i}" for i in range(self.num_layers)]

    def layer_parameters(self, layer: int) -> dict[str, ParameterSpec]:
        """The parameters of one layer by their name behind its prefix, in the model's order."""
        raise NotImplementedError

    def outer_parameters(self) -> tuple[dict[str, ParameterSpec], dict[str, ParameterSpec]]:
        """The parameters before the layers, and those behind them."""
        raise NotImplementedError

    def outer_parameter_layers(self) -> dict[str, tuple[int, ...]]:
        """The layers beside which each outer parameter is read, 0 for the first and -1 for the last: a pipeline keeps
        it on their stages."""
        raise NotImplementedError

    def feed_forward_activations(
        self, layer: int, element_bytes: int, model_parallel: int, sequence_parallel: int
    ) -> list[Activation]:
        """What a layer keeps for its backward pass beside its norms, queries, keys, values and attention, which the
        planner knows (see planner/memory.py): the feed-forward network, and whatever the family adds to a layer.

        Args:
            layer: from 0.
            element_bytes: of one value in the compute dtype.
            model_parallel: devices that share heads and feed-forward channels.
            sequence_parallel: devices that share the positions of the residual stream.

        Returns:
            Tensors of one sequence on one device, with recompute=none.
        """
        raise NotImplementedError

    def fields_for_hidden_size(self, hidden_size: int) -> dict[str, Any]:
        """Fields that another hidden size forces to change, with values as near to the present ones as it allows."""
        return {}

    def fields_free_in_students(self) -> set[str]:
        """Fields that a model which inherits this one's weights may have otherwise: sizes, what only new weights see,
        and what shows in the names of parameters. Any other field changes what the same weights mean."""
        sizes = {"vocab_size", "seq_length", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size"}
        return sizes | {"compute_dtype", "init_std", "init_rule"}

    def require_student(self, student: "ModelConfig") -> None:
        """Rules of the family for a model of it that inherits this one's weights.

        Raises:
            ConfigError: the student cannot inherit.
        """

    def require_same_function(self, student: "ModelConfig") -> None:
        """Rules of the family for a model of it, of this one's sizes, that is to compute at first what this one does.

        Raises:
            ConfigError: the parts that the student adds would change the function.
        """

    def parameters(self) -> dict[str, ParameterSpec]:
        """Every parameter of the model, in the model's order."""
        before, behind = self.outer_parameters()
        layers = {
            f"{prefix}.{name}": spec
            for i, prefix in enumerate(self.layer_names())
            for name, spec in self.layer_parameters(i).items()
        }
        return before | layers | behind

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the model with its shape, in the model's order. All matrices are [out, in]."""
        sizes = self.axis_sizes()
        return {name: tuple(sizes[axis] for axis in spec.axes) for name, spec in self.parameters().items()}

    def trainable_parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """`parameter_shapes` of those that training changes."""
        shapes = self.parameter_shapes()
        return {name: shapes[name] for name, spec in self.parameters().items() if spec.trainable}

    def num_parameters(self) -> int:
        """Number of values, those that training leaves as they are included."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def matrix(self, out_axis: str, in_axis: str) -> ParameterSpec:
        """A matrix or table."""
        return ParameterSpec((out_axis, in_axis), std=self.init_std, decay=True)

    def residual_matrix(self, in_axis: str, layer: int) -> ParameterSpec:
        """A matrix of a layer that writes to the residual stream."""
        depth = {"constant": 0.5, "depth_scaled": self.num_layers, "layer_scaled": layer + 1}[self.init_rule]
        return ParameterSpec(("embed", in_axis), std=self.init_std / math.sqrt(2 * depth), decay=True)


def bias(axis: str) -> ParameterSpec:
    """A bias or shift: 0 at first."""
    return ParameterSpec((axis,))


def gain(axis: str) -> ParameterSpec:
    """The scale of a norm: 1 at first."""
    return ParameterSpec((axis,), mean=1.0)
