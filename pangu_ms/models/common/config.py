"""The base class of every model family's configuration: common fields, descriptions of the parameters without their
values, and methods that tell the planner, the converters and the studies about a model. No mindspore import."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np

MOST_LAYERS = 4096  # far above the deepest models, which have some hundreds of layers
MASK_BYTES = 4
"""Bytes of the dropout factor of one element, which the composed operator keeps in float32
(ascend_ops/random_masks.py)."""


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """Description of one parameter without its values."""

    axes: tuple[str, ...]
    """Logical axis of each dimension, such as ("ffn", "embed"); its length is `ModelConfig.axis_sizes()[axis]`. A
    parameter whose first axis is "expert" or "slot" is a stack: see stacks.py."""
    mean: float | tuple[float, ...] = 0.0
    """Initial mean; a tuple has one value for each index of the first dimension."""
    std: float | tuple[float, ...] = 0.0
    """Initial standard deviation; a tuple as for `mean`."""
    decay: bool = False
    """Whether weight decay applies: to matrices and embeddings, not to biases, norms and activation parameters (spec
    A3.1)."""
    trainable: bool = True
    """False for a parameter without gradient and moments, which training does not change. It is still a weight: it is
    initialised, saved, loaded, resharded and exported."""
    lazy: bool = False
    """For a stack, whether an update leaves members without a gradient alone (see OptimizerConfig.lazy_experts), and
    uses OptimizerConfig.expert_eps."""
    dtype: Literal["float32", "int32"] = "float32"
    """dtype in memory and in checkpoints; a table of integers is int32 and not trainable."""

    def __post_init__(self) -> None:
        assert self.dtype == "float32" or not self.trainable, "whole numbers have no gradient"


@dataclasses.dataclass(frozen=True)
class ExtraInput:
    """An input of a model in addition to ids, positions, segments and loss mask: one array for each batch."""

    axes: tuple[Literal["batch", "sequence"], ...]
    """Axis of each dimension; the first is "batch", along which replicas and micro-batches split the array."""
    dtype: Literal["float32", "int32"] = "int32"

    def __post_init__(self) -> None:
        assert self.axes[:1] == ("batch",)

    def shape(self, batch_size: int, seq_length: int) -> tuple[int, ...]:
        """Shape of the array."""
        sizes = {"batch": batch_size, "sequence": seq_length}
        return tuple(sizes[axis] for axis in self.axes)


@dataclasses.dataclass(frozen=True)
class Activation:
    """A tensor that a layer's forward pass leaves for its backward pass."""

    name: str
    bytes: int
    """Bytes for one sequence, on one device."""
    selective: bool = False
    """Whether recompute=selective computes it again."""
    count: int = 1
    """Number of equal tensors that `bytes` counts together; 0 for an activation without a gradient."""
    routed: bool = False
    """Whether it has a line for each row that experts get, with the padding of those that other devices send."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class ModelConfig:
    """Fields that every PanGu model has; a family adds its own fields and defines its parameters and the methods below.

    A field that only some families have is a property here, with the value that holds for the other families, so that a
    reader need not know the family. A family with the field declares it, which overrides the property.
    """

    ADDITIONS: ClassVar[dict[str, Any]] = {}
    """Field values that add parts to a model without changing what it computes: the default changes of `pangu model
    upgrade`. Empty if the family has no such parts."""
    BASE_FAMILY: ClassVar[str] = ""
    """Family whose checkpoints `pangu model upgrade` turns into models of this family that compute the same."""
    FIELDS_OF_PARTS: ClassVar[dict[str, str]] = {}
    """Maps the beginning of a parameter's name (without its layer's prefix) to the fields that decide whether it
    exists, as text for a message."""

    vocab_size: Int
    """Vocabulary size (rows of the word embedding table); must equal the tokenizer's number of pieces."""
    hidden_size: Int
    """Width E of the residual stream."""
    num_layers: Int
    """Number of layers; alpha counts its query layer (spec A1)."""
    num_heads: Int
    """Attention heads; must divide hidden_size, unless the family lets head_dim be given. A wrong number is not noticed
    when weights are loaded, since it changes no shape (spec A2)."""
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
    """Scaling of init_std for the projections that write to the residual stream. constant: unscaled (pi Pro found that
    best, spec E2.2); depth_scaled: divided by sqrt(2 * num_layers) (GPT-2; spec A1.7, OLD and HF); layer_scaled:
    divided by sqrt(2 * (i + 1)) in layer i, counted from 0 (InternLM)."""
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
        """Set a field whose given value 0 stands for a computed one."""
        object.__setattr__(self, field, value)

    def _require_heads_divide_hidden_size(self) -> None:
        require(
            self.hidden_size % self.num_heads == 0,
            "num_heads",
            f"={self.num_heads}: must divide hidden_size={self.hidden_size}; use one of {divisors(self.hidden_size)}",
        )

    def default_ffn_hidden_size(self) -> int:
        """The value of ffn_hidden_size if the given value is 0."""
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
    def experts_per_token(self) -> int:
        """Experts that a token uses in a layer with experts."""
        return 1

    def most_experts_on_a_rank(self, expert_parallel: int) -> int:
        """The most experts of one of `expert_parallel` ranks that a token can go to."""
        return min(self.experts_per_token, self.num_experts // expert_parallel)

    @property
    def num_balanced_groups(self) -> int:
        """Equal groups of experts, of each of which every token uses as many, so that devices with whole groups get as
        many rows each; 1 if the load of experts depends on the tokens."""
        return 1

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Numbers of experts of each group: a sequence uses experts of one group only. By default all experts are one
        group."""
        return (self.num_experts,) if self.num_experts else ()

    @property
    def group_of_domain(self) -> tuple[int, ...]:
        """Group of experts of each of `domains`; empty if there are no domains."""
        return ()

    @property
    def has_balance_loss(self) -> bool:
        """Whether the model can `with_balance_loss`, see models/registry.py."""
        return False

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that the model tells apart, in the order of their indices in the extra input "domain";
        empty if the model reads no domain."""
        return ()

    @property
    def default_domain(self) -> str:
        """Domain of prompts and texts that name none; empty: the first of `domains`."""
        return ""

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
        """Inputs of the model in addition to ids, positions, segments and loss mask, by name: they are the last
        arguments of its `construct`, in this order. data/extra_inputs.py makes the arrays."""
        return {}

    def layer_names(self) -> list[str]:
        """Prefix of the parameter names of each layer, from the first to the last."""
        return [f"blocks.{i}" for i in range(self.num_layers)]

    def layer_parameters(self, layer: int) -> dict[str, ParameterSpec]:
        """The parameters of one layer by their name without the layer's prefix, in the model's order."""
        raise NotImplementedError

    def initial_tables(self, token_counts: "np.ndarray | None" = None) -> "dict[str, np.ndarray]":
        """Initial values of the parameters that are tables of integers, int32 by name.

        Args:
            token_counts: int64 [domains, V], how often each token occurs in the training text of each domain; None if
                unknown.
        """
        return {}

    def members_of(self, domains: "Iterable[int]") -> dict[str, list[int]]:
        """The members of stacks that sequences of some domains can use, in rising order, by the axis of the stack;
        empty if the model has no stacks whose use depends on the domain.

        Args:
            domains: indices in `domains`.
        """
        return {}

    def with_members(self, numbers: dict[str, int]) -> "ModelConfig":
        """The model with stacks of other lengths, by axis: that of a working set, which holds some of the members and
        has other tables (`local_tables`)."""
        return self

    def local_tables(
        self, tables: "dict[str, np.ndarray]", domains: "Sequence[int]"
    ) -> "Iterator[tuple[str, int, np.ndarray]]":
        """The lines of tables for stacks that hold exactly `members_of(domains)`: name of the table, index of the
        domain, and its line with positions in these stacks in place of members.

        Args:
            tables: the model's own tables, by name.
            domains: indices in `domains`.
        """
        yield from ()

    @property
    def uses_token_counts(self) -> bool:
        """Whether `initial_tables` depends on the counts."""
        return False

    def outer_parameters(self) -> tuple[dict[str, ParameterSpec], dict[str, ParameterSpec]]:
        """The parameters before the layers, and those after them."""
        raise NotImplementedError

    def outer_parameter_layers(self) -> dict[str, tuple[int, ...]]:
        """For each outer parameter the layers on whose pipeline stages it must be held, because it is used beside them:
        0 is the first layer, -1 the last."""
        raise NotImplementedError

    def feed_forward_activations(
        self, layer: int, element_bytes: int, model_parallel: int, sequence_parallel: int
    ) -> list[Activation]:
        """Activations that a layer keeps for its backward pass in the feed-forward network and in whatever the family
        adds to a layer. The planner itself counts norms, queries, keys, values and attention (see planner/memory.py).

        Args:
            layer: number of the layer, from 0.
            element_bytes: bytes of one value in the compute dtype.
            model_parallel: devices that share heads and feed-forward channels.
            sequence_parallel: devices that share the positions of the residual stream.

        Returns:
            Tensors of one sequence on one device, with recompute=none.
        """
        raise NotImplementedError

    def fields_for_hidden_size(self, hidden_size: int) -> dict[str, Any]:
        """Fields that must change for another hidden size, with the nearest values that it allows."""
        return {}

    def fields_for_num_layers(self, num_layers: int) -> dict[str, Any]:
        """Fields that must change for another number of layers, with values that keep layers of every kind."""
        return {}

    def fields_for_smoke_run(self, hidden_size: int) -> dict[str, Any]:
        """Further fields that make a model of this hidden size small while it keeps all its parts."""
        return {}

    def fields_free_in_students(self) -> set[str]:
        """Fields in which a model that inherits this one's weights may differ: sizes, fields that affect only new
        weights, and fields that show in the names of parameters. Any other field changes what the same weights
        compute."""
        sizes = {"vocab_size", "seq_length", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size"}
        return sizes | {"compute_dtype", "init_std", "init_rule"}

    def require_student(self, student: "ModelConfig") -> None:
        """Check the family's rules for a student: a model of the family that inherits this one's weights.

        Raises:
            ConfigError: the student cannot inherit.
        """

    def require_same_function(self, student: "ModelConfig") -> None:
        """Check the family's rules for a student of the same sizes that must at first compute what this model computes.

        Raises:
            ConfigError: the parts that the student adds would change the function.
        """

    def parameters(self) -> dict[str, ParameterSpec]:
        """Every parameter of the model, in the model's order."""
        before, behind = self.outer_parameters()
        specs = dict(before)
        for i, prefix in enumerate(self.layer_names()):
            specs |= {f"{prefix}.{name}": spec for name, spec in self.layer_parameters(i).items()}
        return specs | behind

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the model with its shape, in the model's order. All matrices are [out, in]."""
        sizes = self.axis_sizes()
        return {name: tuple(sizes[axis] for axis in spec.axes) for name, spec in self.parameters().items()}

    def trainable_parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """`parameter_shapes` of the trainable parameters only."""
        shapes = self.parameter_shapes()
        return {name: shapes[name] for name, spec in self.parameters().items() if spec.trainable}

    def packed_matrices(self) -> list[str]:
        """Names of the matrices that inference may hold in another dtype: those whose products `pangu generate
        --weights` packs and `pangu quantize` rounds. Stacks of experts and slots, routers, and tables of which only
        rows are read are not among them."""
        specs = self.parameters()
        names = [name for name, spec in specs.items() if _is_packed(spec)]
        if "head.weight" in specs:
            names.remove("word_embedding.weight")
        return names

    def num_parameters(self) -> int:
        """Number of values in all parameters, trainable or not."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def matrix(self, out_axis: str, in_axis: str) -> ParameterSpec:
        """A matrix or table."""
        return ParameterSpec((out_axis, in_axis), std=self.init_std, decay=True)

    def residual_matrix(self, in_axis: str, layer: int) -> ParameterSpec:
        """A matrix of a layer that writes to the residual stream."""
        depth = {"constant": 0.5, "depth_scaled": self.num_layers, "layer_scaled": layer + 1}[self.init_rule]
        return ParameterSpec(("embed", in_axis), std=self.init_std / math.sqrt(2 * depth), decay=True)


def _is_packed(spec: ParameterSpec) -> bool:
    """Whether a parameter is a matrix or the table of words. (Parameters of activations have two dimensions, but no
    weight decay.)"""
    return len(spec.axes) == 2 and spec.decay and spec.axes[0] not in ("position", "router")


def bias(axis: str) -> ParameterSpec:
    """A bias or shift: 0 at first."""
    return ParameterSpec((axis,))


def gain(axis: str) -> ParameterSpec:
    """The scale of a norm: 1 at first."""
    return ParameterSpec((axis,), mean=1.0)


def stack(axis: str, spec: ParameterSpec, lazy: bool = False) -> ParameterSpec:
    """A stack of parameters (see stacks.py), each of which is `spec`."""
    return dataclasses.replace(spec, axes=(axis, *spec.axes), lazy=lazy)
