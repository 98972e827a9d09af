"""Quantized checkpoints: the matrices of a model in int8 or bfloat16, everything else as it was. No mindspore import.

    ROOT/step-00000100/
        model.safetensors       the matrices of `ModelConfig.packed_matrices` in int8 [out, in], row after row, each
                                with the float32 scales of its outputs: `NAME.weight` and `NAME.weight_scale` [out],
                                whose product is the weight; or in bfloat16, without scales. All others as they were
        manifest.json           says so: "quantized": {"weights": "int8", "source": {"checkpoint": its path, "step",
                                "manifest_sha256"}}

and the other files of a checkpoint (see store.py). int8 are the numbers that `pangu generate --weights int8` makes of
the same weights at load: multiples of the largest magnitude of each output over 127. They are in no order of a kernel.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascend_ops.errors import OperatorError
from ascend_ops.packing import QuantizedWeight, quantized_rows, row_scales
from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.derive import LazyTensor, Opened, write_tensors
from pangu_ms.checkpoint.lazy import Stored
from pangu_ms.checkpoint.safetensors_file import Spec
from pangu_ms.core.dtypes import bits, to_bfloat16
from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.derived import single_parameters
from pangu_ms.models.common.stacks import stack_of

DTYPES = store.QUANTIZED_DTYPES
CODES = {"int8": "I8", "bfloat16": "BF16"}
"""safetensors' names of the dtypes."""
_VALUES_AT_ONCE = 4 << 20  # of a matrix, 16 MB in float32


def scale_name(matrix: str) -> str:
    """The name of the scales of a matrix."""
    return f"{matrix}_scale"


def quantize(checkpoint: store.Checkpoint, root: Path, weights: str = "int8", progress: bool = False) -> dict[str, Any]:
    """Write the quantized form of a checkpoint, atomically: some rows of one matrix are in memory at a time.

    Args:
        checkpoint: the source.
        root: directory of the new checkpoint, which must be empty or not exist.
        weights: int8 or bfloat16.
        progress: show a bar.

    Returns:
        `output`, the new step's directory; `weights`; `matrices`, how many were rounded; `bytes`, those of all tensors
        before and after; `experts_bytes`, those of stacks, which stay as they were.

    Raises:
        CheckpointError: the checkpoint is quantized, its tensors are not those of its configuration, or a matrix holds
            what is no number.
        OutputError: `root` has other content, or the disk has not enough room.
    """
    if weights not in DTYPES:
        raise CheckpointError(f"weights={weights}: must be one of {', '.join(DTYPES)}")
    if checkpoint.quantized:
        raise CheckpointError(
            f"{checkpoint.path}: is quantized already, to {checkpoint.quantized}; rounding twice loses more; name the"
            " checkpoint it was made from"
        )
    opened = Opened.of(checkpoint)
    matrices = set(opened.model.packed_matrices())
    tensors: dict[str, LazyTensor] = {}
    before = in_stacks = 0
    for name, *_ in single_parameters(opened.model):
        spec = opened.spec(name)
        before += spec.nbytes
        in_stacks += spec.nbytes if stack_of(name) else 0
        if name in matrices:
            tensors |= _int8(opened, name) if weights == "int8" else _bfloat16(opened, name)
        else:
            tensors[name] = LazyTensor(spec, lambda name=name: opened.read(name))  # type: ignore[misc]
    kind = {store.QUANTIZED: {"weights": weights, "source": opened.origin()}}
    output = write_tensors(
        root,
        checkpoint.step,
        tensors,
        checkpoint.state(),
        opened.config,
        checkpoint.tokenizer_path(),
        progress,
        kind,
    )
    return {
        "output": str(output),
        "weights": weights,
        "matrices": len(matrices),
        "bytes": [before, sum(tensor.spec.nbytes for tensor in tensors.values())],
        "experts_bytes": in_stacks,
    }


def _int8(opened: Opened, name: str) -> dict[str, LazyTensor]:
    """A matrix and its scales. The scales are written first: they need all numbers once, and the matrix once more."""
    rows, columns = opened.spec(name).shape
    scale = np.empty(rows, np.float32)

    def scales() -> np.ndarray:
        for part, values in _parts(opened, name):
            try:
                scale[part] = row_scales(values)
            except OperatorError:
                raise _not_finite(opened, name, "int8") from None
        return scale

    def integers() -> np.ndarray:
        matrix = np.empty((rows, columns), np.int8)
        for part, values in _parts(opened, name):
            matrix[part] = quantized_rows(values, scale[part])
        return matrix

    return {
        scale_name(name): LazyTensor(Spec("F32", (rows,)), scales),
        name: LazyTensor(Spec("I8", (rows, columns)), integers),
    }


def _bfloat16(opened: Opened, name: str) -> dict[str, LazyTensor]:
    spec = Spec("BF16", opened.spec(name).shape)

    def rounded() -> np.ndarray:
        matrix = np.empty(spec.shape, spec.dtype)
        for part, values in _parts(opened, name):
            matrix[part] = bits(to_bfloat16(values))
            if ((matrix[part] & 0x7F80) == 0x7F80).any():  # the exponent of infinity and NaN
                raise _not_finite(opened, name, "bfloat16")
        return matrix

    return {name: LazyTensor(spec, rounded)}


def _parts(opened: Opened, name: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows of a matrix at a time, in float32."""
    tensor = opened.stored[name]
    rows, columns = tensor.shape
    at_once = max(1, _VALUES_AT_ONCE // columns)
    for first in range(0, rows, at_once):
        part = slice(first, min(first + at_once, rows))
        values = tensor.spec.values(tensor.read((part, slice(0, columns))))
        yield part, np.ascontiguousarray(values, np.float32)


def _not_finite(opened: Opened, name: str, weights: str) -> CheckpointError:
    return CheckpointError(
        f"{opened.checkpoint.path}: {name} has values that are not finite in {weights}; a matrix must hold numbers; use"
        " another checkpoint"
    )


@dataclass(frozen=True)
class QuantizedTensors:
    """The tensors of a quantized checkpoint, which stay on the disk."""

    where: str
    """The checkpoint, for messages."""
    weights: str
    """dtype of the matrices."""
    matrices: frozenset[str]
    stored: Stored

    @classmethod
    def of(cls, checkpoint: store.Checkpoint) -> "QuantizedTensors":
        """Open a quantized checkpoint.

        Raises:
            CheckpointError: names, shapes or dtypes of the tensors are not those of the model in this form.
        """
        where, weights, model = str(checkpoint.path), checkpoint.quantized, checkpoint.config().model
        matrices, stored = model.packed_matrices(), checkpoint.stored_as_is()
        expected = model.parameter_shapes()
        if weights == "int8":
            expected = expected | {scale_name(name): expected[name][:1] for name in matrices}
        store.check_names_and_shapes(where, stored, expected)
        wanted = dict.fromkeys(matrices, CODES[weights])
        wanted |= {scale_name(name): "F32" for name in matrices if weights == "int8"}
        for name, code in wanted.items():
            if stored[name].spec.code != code:
                raise CheckpointError(
                    f"{where}: {name} is {stored[name].spec.dtype_name}; in a checkpoint that is quantized to {weights}"
                    f" it must be {Spec(code, ()).dtype_name}; use another checkpoint"
                )
        return cls(where, weights, frozenset(matrices), stored)

    def matrix(self, name: str) -> QuantizedWeight | np.ndarray:
        """Read a matrix: numbers and scales of int8, or float32 with the values of bfloat16.

        Raises:
            CheckpointError: a scale is damaged, or a number is none that `quantize` writes.
        """
        if self.weights != "int8":
            return self.stored[name].values()
        values, scale = self.stored[name].values(), self.stored[scale_name(name)].values()
        wrong = ~np.isfinite(scale) | (scale < 0)
        if wrong.any():
            row = int(wrong.argmax())
            raise CheckpointError(
                f"{self.where}: {scale_name(name)}[{row}] is {scale[row]}; a scale must be a number of at least 0; use"
                " another checkpoint"
            )
        zero = np.flatnonzero(scale == 0)
        if zero.size and values[zero].any():
            row = int(zero[values[zero].any(1).argmax()])
            raise CheckpointError(
                f"{self.where}: {scale_name(name)}[{row}] is 0, and its row of {name} holds other numbers than 0; a"
                " scale of 0 is that of a row of zeros; use another checkpoint"
            )
        if values.min() < -127:
            raise CheckpointError(
                f"{self.where}: {name} holds -128; its numbers must be -127 to 127; use another checkpoint"
            )
        return QuantizedWeight(values, scale)

    def others(self) -> dict[str, np.ndarray]:
        """Read the tensors that were not quantized."""
        own = self.matrices | {scale_name(name) for name in self.matrices}
        return {name: tensor.values() for name, tensor in self.stored.items() if name not in own}


def not_rounded(checkpoint: store.Checkpoint) -> Iterable[tuple[str, np.ndarray]]:
    """The tensors of any checkpoint without those that were quantized."""
    return QuantizedTensors.of(checkpoint).others().items() if checkpoint.quantized else checkpoint.each()
