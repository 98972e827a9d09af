"""Packs the matrices of a model for generation: float32, bfloat16 or int8, in the layout of ascend_ops.packed_linear.

The cells of a family's model stay; those that multiply by a matrix are replaced. Matrices of experts, slotted word
tables, and tables of which only rows are read stay float32.
"""

from collections.abc import Iterator

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
from pangu_ms.models.common.layers import Embedding, Linear, Logits

DTYPES = ("float32", "bfloat16", "int8")
"""Of packed weights."""


class PackedMatrix(nn.Cell):
    """A cell with a packed matrix [out, in], filled by `fill_packed`."""

    def __init__(self, of: nn.Cell, dtype: str):
        super().__init__()
        num_outputs, self.num_inputs = of.weight.shape
        shape = packed_shape(num_outputs, self.num_inputs, dtype)
        stored = {"float32": ms.float32, "bfloat16": ms.bfloat16, "int8": ms.uint8}[dtype]
        self.weight = Parameter(initializer("zeros", shape, stored), requires_grad=False)
        self.scale = Parameter(initializer("ones", (num_outputs,)), requires_grad=False)
        self.dtype = dtype

    def fill(self, values: np.ndarray | QuantizedWeight) -> None:
        """Set the matrix from float32 numbers, or from numbers that are quantized to int8."""
        weight, scale = ascend_ops.packed_tensors(pack(values, self.dtype))
        self.weight.set_data(weight)
        self.scale.set_data(scale)


class PackedLinear(PackedMatrix):
    """A Linear with a packed weight."""

    def __init__(self, of: Linear, dtype: str):
        super().__init__(of, dtype)
        self.bias = of.bias

    def construct(self, x):
        return ascend_ops.packed_linear(x, self.weight, self.scale, self.bias)

    def without_bias(self, x):
        """See Linear."""
        return ascend_ops.packed_linear(x, self.weight, self.scale)


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

    def __init__(self, of: nn.Cell, dtype: str):
        super().__init__(of, dtype)
        self.weight = Parameter(initializer("zeros", of.weight.shape, ms.int8), requires_grad=False)

    def fill(self, values: np.ndarray | QuantizedWeight) -> None:
        """See PackedMatrix."""
        if not isinstance(values, QuantizedWeight):
            scale = ascend_ops.row_scales(values)
            values = QuantizedWeight(ascend_ops.quantized_rows(values, scale), scale)
        self.weight.set_data(Tensor(values.values))
        self.scale.set_data(Tensor(values.scale))


class QuantizedLinear(QuantizedMatrix):
    """A Linear with a weight of int8."""

    def __init__(self, of: Linear, dtype: str):
        super().__init__(of, dtype)
        self.bias = of.bias

    def construct(self, x):
        return ascend_ops.quantized_linear(x, self.weight, self.scale, self.bias)

    def without_bias(self, x):
        """See Linear."""
        return ascend_ops.quantized_linear(x, self.weight, self.scale)


class QuantizedEmbedding(QuantizedMatrix):
    """An Embedding with a table of int8."""

    def construct(self, ids_BS):
        return ascend_ops.quantized_embedding(ids_BS, self.weight, self.scale)


class QuantizedLogits(PackedLogits):
    """Logits by the int8 table of another cell."""

    def construct(self, x_BSE, table):
        return ascend_ops.quantized_linear(x_BSE, table, self.scale)


def _classes(dtype: str) -> tuple[type[PackedMatrix], type[PackedMatrix], type[PackedLogits]]:
    """Cells that stand for a Linear, an Embedding and Logits."""
    if dtype == "int8" and ms.get_context("device_target") == "Ascend":
        return QuantizedLinear, QuantizedEmbedding, QuantizedLogits
    return PackedLinear, PackedEmbedding, PackedLogits


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
    linear, embedding, logits = _classes(dtype)
    matrices = config.packed_matrices()
    table = "head.weight" if "head.weight" in matrices else "word_embedding.weight"
    owner = None
    names: dict[str, Parameter] = {}
    for parent, name, cell in list(_cells(model)):
        if type(cell) in (Linear, Embedding) and cell.weight.name in matrices:
            path = cell.weight.name.removesuffix("weight")
            packed = linear(cell, dtype) if type(cell) is Linear else embedding(cell, dtype)
            names |= {path + part: packed._params[part] for part in packed._params}
            _replace(parent, name, packed)
            owner = packed if path + "weight" == table else owner
    for parent, name, cell in list(_cells(model)):
        if type(cell) is Logits and owner is not None:
            _replace(parent, name, logits(owner))
    missed = set(matrices) - names.keys()
    assert not missed, f"{missed}: the cell of a packed matrix must be a Linear or the Embedding"
    for name, parameter in names.items():
        parameter.name = name  # MindSpore renames the parameters of a cell that becomes an attribute of another


def fill_packed(checkpoint: store.Checkpoint, model: nn.Cell, config: ModelConfig, dtype: str) -> None:
    """Load a checkpoint's weights into a model whose cells are packed.

    Raises:
        CheckpointError: names or shapes of the tensors are not those of `config`.
    """
    matrices = {cell.weight.name: cell for _, cell in model.cells_and_names() if isinstance(cell, PackedMatrix)}
    scales = {cell.scale.name for cell in matrices.values()}
    quantized = QuantizedTensors.of(checkpoint) if checkpoint.quantized else None
    tensors = quantized.others() if quantized else checkpoint.tensors()
    if not quantized:
        store.check_names_and_shapes(str(checkpoint.path), tensors, config.parameter_shapes())
    for name, cell in matrices.items():
        values = quantized.matrix(name) if quantized else tensors[name]
        cell.fill(values.astype(np.float32, copy=False) if isinstance(values, np.ndarray) else values)
    fill([one for one in weights(model) if one.name not in matrices.keys() | scales], tensors)


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
