"""Packs the matrices of a model for generation: float32, bfloat16 or int8, in the layout of ascend_ops.packed_linear.

The cells of a family's model stay; those that multiply by a matrix are replaced, several of one input by one cell: the
projections of an attention, and gate and up. Matrices of experts, slotted word tables, and tables of which only rows
are read stay float32. On Ascend matrices of int8 stay in rows, for MindSpore's own product.
"""

from collections.abc import Iterator, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import initializer

import ascend_ops
from ascend_ops.packing import QuantizedWeight, pack, packed_shape
from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.quantized import QuantizedTensors
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import runtime
from pangu_ms.models.build import build_model, fill, weights
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.layers import (
    Attention,
    Embedding,
    GatedNetwork,
    Linear,
    Logits,
    Operator,
    ShardedWeight,
    zeros,
)

DTYPES = ("float32", "bfloat16", "int8")
"""Of packed weights."""


class PackedMatrix(nn.Cell):
    """A cell with the packed matrices [out, in] of one or several cells, filled by `fill_packed`."""

    def __init__(self, of: Sequence[ShardedWeight], dtype: str):
        super().__init__()
        self.path = of[0].weight.name.removesuffix("weight")
        """What the names of its parameters begin with."""
        self.sources = tuple(cell.weight.name for cell in of)
        """The tensors of a checkpoint that it holds: matrices, then the biases of several."""
        self.sizes = tuple(cell.weight.shape[0] for cell in of)
        self.num_inputs = of[0].weight.shape[1]
        shapes = [packed_shape(size, self.num_inputs, dtype) for size in self.sizes]
        stored = {"float32": ms.float32, "bfloat16": ms.bfloat16, "int8": ms.uint8}[dtype]
        shape = (sum(one[0] for one in shapes), *shapes[0][1:])
        self.weight = Parameter(initializer("zeros", shape, stored), name="weight", requires_grad=False)
        self.scale = Parameter(initializer("ones", self.scale_shape()), name="scale", requires_grad=False)
        self.bias: Parameter | None = None
        self.dtype = dtype

    def fill(self, values: Sequence[np.ndarray | QuantizedWeight]) -> None:
        """Set the matrices from float32 numbers, or from numbers that are quantized to int8."""
        weight, scale = ascend_ops.packed_tensors(*(pack(one, self.dtype) for one in values))
        self.weight.set_data(weight)
        self.scale.set_data(scale.reshape(self.scale.shape))

    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scales of all outputs."""
        return (sum(self.sizes),)

    def made(self) -> list[Parameter]:
        """The parameters that no checkpoint has by their name."""
        return [self.weight, self.scale]


class PackedLinear(PackedMatrix):
    """A Linear with a packed weight."""

    def __init__(self, of: Linear, dtype: str, activation: str = ""):
        super().__init__([of], dtype)
        self.bias, self.activation = of.bias, activation

    def construct(self, x):
        return ascend_ops.packed_linear(x, self.weight, self.scale, self.bias)

    def activated(self, x, activation, channels="ffn"):
        """See Linear; the activation is the one that the cell has had from the beginning."""
        return ascend_ops.packed_linear(x, self.weight, self.scale, self.bias, self.activation)


class PackedLinears(PackedMatrix):
    """Linear cells of one input, as one product: [..., in] -> a tensor for each."""

    def __init__(self, of: Sequence[Linear], dtype: str):
        super().__init__(of, dtype)
        if of[0].bias is not None:
            self.bias = zeros("bias", sum(self.sizes))
            self.sources += tuple(name.removesuffix("weight") + "bias" for name in self.sources)

    def made(self) -> list[Parameter]:
        """See PackedMatrix."""
        return super().made() + ([] if self.bias is None else [self.bias])

    def construct(self, x):
        return ascend_ops.packed_linears(x, self.weight, self.scale, self.sizes, self.bias)


class PackedGlu(PackedMatrix):
    """phi(gate) * up of two Linear cells, as one product; `scale` and `shift` are those of a series, or None."""

    def __init__(self, of: Sequence[Linear], dtype: str, activation: str):
        super().__init__(of, dtype)
        self.activation = activation

    def scale_shape(self) -> tuple[int, ...]:
        """See PackedMatrix."""
        return (2, self.sizes[0])

    def construct(self, x, scale, shift):
        return ascend_ops.packed_glu(x, self.weight, self.scale, scale, shift, self.activation)


class PackedEmbedding(PackedMatrix):
    """An Embedding with a packed table."""

    def construct(self, ids_BS):
        return ascend_ops.packed_rows(ids_BS, self.weight, self.scale, self.num_inputs)


class PackedLogits(nn.Cell):
    """Logits by the packed table of another cell."""

    def __init__(self, owner: PackedMatrix):
        super().__init__()
        self.scale = owner.scale

    def construct(self, x_BSE, table):
        return ascend_ops.packed_linear(x_BSE, table, self.scale)


class QuantizedMatrix(PackedMatrix):
    """A matrix of int8 [out, in] as files hold it, for Ascend, where MindSpore has a product with it."""

    def __init__(self, of: ShardedWeight, dtype: str):
        super().__init__([of], dtype)
        self.weight = Parameter(initializer("zeros", of.weight.shape, ms.int8), name="weight", requires_grad=False)

    def fill(self, values: Sequence[np.ndarray | QuantizedWeight]) -> None:
        """See PackedMatrix."""
        one = values[0]
        if not isinstance(one, QuantizedWeight):
            scale = ascend_ops.row_scales(one)
            one = QuantizedWeight(ascend_ops.quantized_rows(one, scale), scale)
        self.weight.set_data(Tensor(one.values))
        self.scale.set_data(Tensor(one.scale))


class QuantizedLinear(QuantizedMatrix):
    """A Linear with a weight of int8."""

    def __init__(self, of: Linear, dtype: str):
        super().__init__(of, dtype)
        self.bias = of.bias

    def construct(self, x):
        return ascend_ops.quantized_linear(x, self.weight, self.scale, self.bias)

    def activated(self, x, activation, channels="ffn"):
        """See Linear."""
        return activation(ascend_ops.quantized_linear(x, self.weight, self.scale), self.bias, channels)


class QuantizedEmbedding(QuantizedMatrix):
    """An Embedding with a table of int8."""

    def construct(self, ids_BS):
        return ascend_ops.quantized_embedding(ids_BS, self.weight, self.scale)


class QuantizedLogits(PackedLogits):
    """Logits by the int8 table of another cell."""

    def construct(self, x_BSE, table):
        return ascend_ops.quantized_linear(x_BSE, table, self.scale)


class Joined(nn.Cell):
    """Stands for a Linear cell that another cell computes, too."""


def load_packed_model(checkpoint: store.Checkpoint, config: RunConfig) -> nn.Cell:
    """The model of a quantized checkpoint, without a cache, which computes what generation computes.

    Raises:
        CheckpointError: its tensors are not those of its configuration, or damaged.
    """
    runtime.start(config.runtime.device)
    model = build_model(config.model)
    pack_cells(model, config.model, checkpoint.quantized)
    fill_packed(checkpoint, model, config.model, checkpoint.quantized)
    return model


def pack_cells(model: nn.Cell, config: ModelConfig, dtype: str) -> None:
    """Replace the cells of a model whose matrices are packed (`ModelConfig.packed_matrices`); `fill_packed` sets their
    values."""
    in_rows = dtype == "int8" and ms.get_context("device_target") == "Ascend"
    if not in_rows:
        _join_cells(model, dtype)
    matrices = config.packed_matrices()
    table = "head.weight" if "head.weight" in matrices else "word_embedding.weight"
    owner = None
    for parent, name, cell in list(_cells(model)):
        if type(cell) not in (Linear, Embedding) or cell.weight.name not in matrices:
            continue
        packed: PackedMatrix
        if type(cell) is Embedding:
            packed = QuantizedEmbedding(cell, dtype) if in_rows else PackedEmbedding([cell], dtype)
        elif in_rows:
            packed = QuantizedLinear(cell, dtype)
        else:
            activation = parent.name_cells().get("activation")
            packed = PackedLinear(cell, dtype, activation.function.__name__ if type(activation) is Operator else "")
        _replace(parent, name, packed)
        owner = packed if table in packed.sources else owner
    for parent, name, cell in list(_cells(model)):
        if type(cell) is Logits and owner is not None:
            _replace(parent, name, QuantizedLogits(owner) if in_rows else PackedLogits(owner))
    sources = (cell.sources for _, cell in model.cells_and_names() if isinstance(cell, PackedMatrix))
    missed = set(matrices).difference(*sources)
    assert not missed, f"{missed}: the cell of a packed matrix must be a Linear or the Embedding"
    for _, cell in model.cells_and_names():
        if isinstance(cell, PackedMatrix):
            for part, parameter in cell._params.items():
                # MindSpore renames the parameters of a cell that becomes an attribute of another.
                parameter.name = cell.path + part


def _join_cells(model: nn.Cell, dtype: str) -> None:
    """Make one cell of the Linear cells that have one input."""
    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, Attention):
            joined = ("query", "key", "value") if cell.reads_one_input else ("key", "value")
            _join(cell, joined, PackedLinears([getattr(cell, name) for name in joined], dtype))
            cell.joined = len(joined)
        elif isinstance(cell, GatedNetwork) and cell.is_one_product:
            _join(cell, ("gate", "up"), PackedGlu([cell.gate, cell.up], dtype, cell.activation))
            cell.joined = True


def _join(parent: nn.Cell, names: Sequence[str], packed: PackedMatrix) -> None:
    packed.path = packed.path.removesuffix(f"{names[0]}.") + "_".join(names) + "."
    _replace(parent, names[0], packed)
    for name in names[1:]:
        _replace(parent, name, Joined())


def fill_packed(checkpoint: store.Checkpoint, model: nn.Cell, config: ModelConfig, dtype: str) -> None:
    """Load a checkpoint's weights into a model whose cells are packed. Matrix after matrix is read and packed, so that
    the weights are never in memory twice.

    Raises:
        CheckpointError: names or shapes of the tensors are not those of `config`.
    """
    quantized = QuantizedTensors.of(checkpoint) if checkpoint.quantized else None
    stored = {} if quantized else checkpoint.stored()  # read one by one: peak memory is that of the packed weights
    tensors = quantized.others() if quantized else {}
    if not quantized:
        store.check_names_and_shapes(str(checkpoint.path), stored, config.parameter_shapes())

    def read(name: str) -> np.ndarray:
        return stored[name].values() if name in stored else tensors[name]

    def matrix(name: str) -> np.ndarray | QuantizedWeight:
        return quantized.matrix(name) if quantized else read(name).astype(np.float32, copy=False)

    filled = set()
    for _, cell in model.cells_and_names():
        if not isinstance(cell, PackedMatrix):
            continue
        matrices, biases = cell.sources[: len(cell.sizes)], cell.sources[len(cell.sizes) :]
        cell.fill([matrix(name) for name in matrices])
        if biases and cell.bias is not None:
            cell.bias.set_data(Tensor(np.concatenate([read(name) for name in biases]).astype(np.float32)))
        filled |= {parameter.name for parameter in cell.made()}
    for parameter in weights(model):
        if parameter.name not in filled:
            fill([parameter], {parameter.name: read(parameter.name)})


def _cells(model: nn.Cell) -> Iterator[tuple[nn.Cell, str, nn.Cell]]:
    """(parent, name in it, cell) for all cells below a model."""
    for parent in [model, *(cell for _, cell in model.cells_and_names())][1:]:
        for name, cell in parent.name_cells().items():
            yield parent, name, cell


def _replace(parent: nn.Cell, name: str, cell: nn.Cell) -> None:
    if isinstance(parent, nn.CellList):
        parent[int(name)] = cell
    else:
        setattr(parent, name, cell)
