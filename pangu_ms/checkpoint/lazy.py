"""Tensors that are read in parts, and views of them: transposed, stacked, taken apart, in another dtype. No mindspore
import.

Every reader of weights gives such tensors by name; nothing is read until a part of one is written.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pangu_ms.checkpoint.safetensors_file import Spec, require_code, spec_of
from pangu_ms.core import dtypes
from pangu_ms.core.dtypes import BFLOAT16, bits, widened

Slices = tuple[slice, ...]
BYTES_AT_ONCE = 1 << 24
"""Largest part of a tensor that is read in one piece where all of it is wanted."""
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Readable(ABC):
    """A tensor that is read in parts."""

    spec: Spec
    """dtype and shape of the whole tensor."""

    @abstractmethod
    def read(self, wanted: Slices) -> np.ndarray:
        """Read a part of the tensor, in `spec.dtype`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self.spec.shape

    @property
    def all(self) -> Slices:
        """The argument of `read` for the whole tensor."""
        return tuple(slice(0, size) for size in self.shape)

    @property
    def T(self) -> "Readable":
        """The tensor with its dimensions reversed."""
        return Transposed(Spec(self.spec.code, self.shape[::-1]), self)

    def __iter__(self) -> Iterator["Readable"]:
        """The members along the first dimension, as iterating over an array gives them."""
        spec = Spec(self.spec.code, self.shape[1:])
        return (Member(spec, self, i) for i in range(self.shape[0]))

    @property
    def num_slices(self) -> int:
        """In how many slices the tensor lies on the disk."""
        return 1

    def values(self) -> np.ndarray:
        """The whole tensor; bfloat16 becomes float32."""
        return self.spec.values(self.read(self.all))

    def part(self, wanted: Slices) -> np.ndarray:
        """As `read`; but a bfloat16 has the numpy dtype BFLOAT16."""
        raw = self.read(wanted)
        return np.ascontiguousarray(raw).view(BFLOAT16).reshape(raw.shape) if self.spec.code == "BF16" else raw

    def array(self) -> np.ndarray:
        """The whole tensor; a bfloat16 has the numpy dtype BFLOAT16."""
        return self.part(self.all)

    def pieces(self, wanted: Slices) -> Iterator[np.ndarray]:
        """Read a part of the tensor piece by piece, in the order in which its values lie in a file."""
        return map(self.read, cut(wanted, self.spec.dtype.itemsize))


Stored = dict[str, Readable]


def cut(wanted: Slices, itemsize: int) -> Iterator[Slices]:
    """Cut a part of a tensor into pieces of at most BYTES_AT_ONCE, whose values follow each other in C order.

    Args:
        wanted: the part.
        itemsize: bytes of a value.
    """
    sizes = [s.stop - s.start for s in wanted]
    if not wanted or math.prod(sizes) * itemsize <= BYTES_AT_ONCE:
        yield wanted
        return
    first, *rest = wanted
    rows = BYTES_AT_ONCE // (math.prod(sizes[1:]) * itemsize)
    for start in range(first.start, first.stop, max(rows, 1)):
        row = slice(start, min(start + max(rows, 1), first.stop))
        yield from ((row, *inner) for inner in ([tuple(rest)] if rows else cut(tuple(rest), itemsize)))


@dataclass(frozen=True, eq=False)
class InMemory(Readable):
    """An array."""

    raw: np.ndarray
    """The array in `spec.dtype`."""

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> "InMemory":
        """Wrap an array; a bfloat16 has the numpy dtype BFLOAT16.

        Raises:
            CheckpointError: a dtype that a checkpoint cannot hold.
        """
        spec = spec_of(name, array)
        return cls(spec, bits(array).astype(spec.dtype, copy=False))

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        return np.asarray(self.raw[wanted])


@dataclass(frozen=True)
class Transposed(Readable):
    """A tensor with its dimensions reversed."""

    base: Readable

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        return self.base.read(wanted[::-1]).T


@dataclass(frozen=True)
class Member(Readable):
    """One member along the first dimension of a tensor."""

    base: Readable
    index: int

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        return np.asarray(self.base.read((slice(self.index, self.index + 1), *wanted))[0])


@dataclass(frozen=True)
class Stack(Readable):
    """Tensors of one shape and dtype along a new first dimension."""

    members: tuple[Readable, ...]

    @classmethod
    def of(cls, members: Sequence[Readable]) -> Readable:
        """Stack tensors. If their dtypes differ, the result has the dtype that numpy would give it."""
        found = {member.spec.code for member in members}
        if len(found) > 1:
            common = np.result_type(
                *(widened(np.empty(0, BFLOAT16 if code == "BF16" else Spec(code, ()).dtype)) for code in found)
            )
            code = require_code("stack", common)
            members = [Widened(Spec(code, member.shape), member) for member in members]
        spec = members[0].spec
        return cls(Spec(spec.code, (len(members), *spec.shape)), tuple(members))

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        first, *rest = wanted
        return np.stack([member.read(tuple(rest)) for member in self.members[first]])


@dataclass(frozen=True)
class Widened(Readable):
    """A tensor in a dtype that holds its values exactly."""

    base: Readable

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        return widened(self.base.part(wanted)).astype(self.spec.dtype)


@dataclass(frozen=True)
class Cast(Readable):
    """A tensor whose values are rounded to another floating-point dtype when they are read."""

    base: Readable
    where: str
    name: str

    @classmethod
    def of(cls, where: str, name: str, base: Readable, dtype: str) -> "Cast":
        """See `dtypes.cast`.

        Raises:
            CheckpointError: the tensor is not floating-point. `read` raises it for a value that is not finite or not
                representable.
        """
        dtypes.require_floating(where, name, BFLOAT16 if base.spec.code == "BF16" else base.spec.dtype)
        return cls(Spec(_CODES[dtype], base.shape), base, where, name)

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        return bits(dtypes.cast_one(self.where, self.name, self.base.part(wanted), self.spec.dtype_name))


def cast(where: str, tensors: Mapping[str, Readable], dtype: str, integers: Collection[str] = ()) -> Stored:
    """`dtypes.cast` of tensors that are not in memory."""
    return {
        name: tensor if name in integers and tensor.spec.dtype.kind == "i" else Cast.of(where, name, tensor, dtype)
        for name, tensor in tensors.items()
    }


def equal(one: Readable, other: Readable) -> bool:
    """Whether two tensors have the same shape and, widened, the same values."""
    if one.shape != other.shape:
        return False
    parts = cut(one.all, one.spec.dtype.itemsize)
    return all(np.array_equal(widened(one.part(part)), widened(other.part(part))) for part in parts)
