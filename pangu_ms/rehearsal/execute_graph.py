"""Lists the collectives of an exported graph, and replaces those that a CPU lacks by AllReduce, which it has.

In a group of ranks MindSpore's CPU backend has only AllReduce of float sums (its AllGather works only over all ranks).
These collectives are replaced by it, with exactly the same values:
    ReduceScatter(x)     the rank's part of AllReduce(x) along dimension 0
    AllGather(x)         AllReduce of x in the rank's place among zeros
    AllReduce(x, max)    the largest of AllGather(x)'s parts
    AlltoAll(x)          the rank's parts of all ranks' x, from AllReduce of x in the rank's place among zeros
Send and Receive are not replaced.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.train import mind_ir_pb2

from pangu_ms.rehearsal.execute import EMULATED

COLLECTIVES = (
    "AllReduce",
    "AllGather",
    "ReduceScatter",
    "AlltoAll",
    "AlltoAllV",
    "AllToAll",
    "NeighborExchange",
    "Broadcast",
    "Send",
    "Receive",
)
_FUNCTION = mind_ir_pb2.PrimitiveProto.PrimType.PRIMITIVE_FUNCTION
_FLOAT32 = mind_ir_pb2.TensorProto.FLOAT


class ExportedGraph:
    """A MindIR file whose collectives can be read and replaced."""

    def __init__(self, path: Path):
        self.path, self.model = path, mind_ir_pb2.ModelProto()
        self.model.ParseFromString(path.read_bytes())
        self.primitives = {f"REF::{p.name}": p for p in self.model.primitives}
        self.ranks: dict[str, list[int]] = {}
        for attribute in ("group_rank_ids", "ranks_of_group"):  # MindSpore's own, which is wrong for created groups
            self.ranks |= {_group(p): _ranks(p, attribute) for p in self.model.primitives if _has(p, attribute)}
        self.added = 0

    def groups(self) -> dict[str, list[int]]:
        """Ranks of each group that a collective names."""
        return {_group(p): self.ranks[_group(p)] for p in self.primitives.values() if p.op_type in COLLECTIVES}

    def collectives(self) -> Counter[str]:
        """Number of calls of each kind ("AllReduce sum")."""
        return Counter(
            _kind(primitive)
            for graph in self._graphs()
            for node in graph.node
            if (primitive := self._collective(node)) is not None
        )

    def emulate(self, rank: int) -> None:
        """Replace the collectives that a CPU lacks, for one rank; see the module's docstring."""
        for graph in self._graphs():
            nodes = [replacement for node in graph.node for replacement in self._emulated(node, rank)]
            del graph.node[:]
            graph.node.extend(nodes)

    def save(self) -> None:
        """Overwrite the file."""
        self.path.write_bytes(self.model.SerializeToString())

    def _graphs(self) -> list[Any]:
        return [self.model.graph, *self.model.functions]

    def _collective(self, node: Any) -> Any:
        primitive = self.primitives.get(node.op_type)
        return primitive if primitive is not None and primitive.op_type in COLLECTIVES else None

    def _emulated(self, node: Any, rank: int) -> list[Any]:
        primitive = self._collective(node)
        if primitive is None or _kind(primitive) not in EMULATED:
            return [node]
        ranks, tensor = self.ranks[_group(primitive)], _attribute(node, "shape").tensors[0]
        assert tensor.data_type == _FLOAT32, "a CPU adds up floats alone"
        shape, place, size = list(tensor.dims), ranks.index(rank), len(ranks)
        if primitive.op_type == "ReduceScatter":
            reduced = self._call("AllReduce", node, [node.input[0]], [shape[0] * size, *shape[1:]], primitive)
            begin, extent = self._constant([place * shape[0], *[0] * (len(shape) - 1)]), self._constant(shape)
            return [reduced, begin, extent, self._renamed("Slice", node, [reduced.name, begin.name, extent.name])]
        part = [shape[0] // size, *shape[1:]] if primitive.op_type == "AllGather" else shape
        # A row for each rank, with ones in this rank's. After the product only that row is not zero, so that the sum
        # over the ranks has the part of each rank in its row.
        own = self._tensor((np.arange(size) == place).astype(np.float32).reshape(size, *[1] * len(part)))
        placed = self._call("Mul", node, [node.input[0], own.name], [size, *part])
        parts = self._call("AllReduce", node, [placed.name], [size, *part], primitive)
        if primitive.op_type == "AllGather":
            joined = self._constant(shape)
            return [own, placed, parts, joined, self._renamed("Reshape", node, [parts.name, joined.name])]
        if primitive.op_type == "AlltoAll":
            assert not any(_attribute(primitive, name).i for name in ("split_dim", "concat_dim"))
            mine = [size, shape[0] // size, *shape[1:]]
            begin = self._constant([0, place * mine[1], *[0] * (len(shape) - 1)])
            extent, joined = self._constant(mine), self._constant(shape)
            cut = self._call("Slice", node, [parts.name, begin.name, extent.name], mine)
            return [
                own,
                placed,
                parts,
                begin,
                extent,
                cut,
                joined,
                self._renamed("Reshape", node, [cut.name, joined.name]),
            ]
        axis, keep = self._constant([0]), self._constant(False)
        return [own, placed, parts, axis, keep, self._renamed("ReduceMax", node, [parts.name, axis.name, keep.name])]

    def _renamed(self, op_type: str, node: Any, inputs: Sequence[str]) -> Any:
        """The last operator of a replacement, which has the name and shape of the collective that it replaces."""
        call = self._call(op_type, node, inputs, _attribute(node, "shape").tensors[0].dims)
        call.name = call.output[0] = node.name
        return call

    def _call(
        self, op_type: str, like: Any, inputs: Sequence[str], shape: Sequence[int], collective: Any = None
    ) -> Any:
        node = mind_ir_pb2.NodeProto(
            op_type=f"REF::{self._primitive(op_type, collective)}", domain=like.domain, input=inputs
        )
        node.name = self._name(op_type)
        node.output.append(node.name)
        node.attribute.append(_attribute(like, "shape"))
        del node.attribute[0].tensors[0].dims[:]
        node.attribute[0].tensors[0].dims.extend(shape)
        return node

    def _primitive(self, op_type: str, collective: Any) -> str:
        """A new primitive; with `collective` it has the group of that collective."""
        primitive = mind_ir_pb2.PrimitiveProto(name=self._name(op_type), op_type=op_type, prim_type=_FUNCTION)
        if collective is not None:
            primitive.prim_type = collective.prim_type
            # `op` is set anew, and AllReduce has no rank_size.
            primitive.attribute.extend(a for a in collective.attribute if a.name not in ("op", "rank_size"))
            primitive.attribute.append(
                mind_ir_pb2.AttributeProto(name="op", s=b"sum", type=mind_ir_pb2.AttributeProto.STRING)
            )
        self.model.primitives.append(primitive)
        return primitive.name

    def _constant(self, value: Sequence[int] | bool) -> Any:
        kinds = mind_ir_pb2.AttributeProto
        name = self._name("Constant")
        node = mind_ir_pb2.NodeProto(name=name, op_type="Constant", output=[name])
        if isinstance(value, bool):
            node.attribute.append(kinds(name="value", i=int(value), type=kinds.BOOL))
        else:
            node.attribute.append(
                kinds(name="value", type=kinds.TUPLE, values=[kinds(ints=[i], type=kinds.INT64) for i in value])
            )
        return node

    def _tensor(self, value: np.ndarray) -> Any:
        kinds, name = mind_ir_pb2.AttributeProto, self._name("Constant")
        tensor = mind_ir_pb2.TensorProto(name=name, data_type=_FLOAT32, dims=value.shape, raw_data=value.tobytes())
        node = mind_ir_pb2.NodeProto(name=name, op_type="Constant", output=[name])
        node.attribute.append(kinds(name="value", type=kinds.TENSORS, tensors=[tensor]))
        return node

    def _name(self, what: str) -> str:
        self.added += 1
        return f"emulated_{what}:{self.added}"


def _attribute(holder: Any, name: str) -> Any:
    return next(attribute for attribute in holder.attribute if attribute.name == name)


def _has(holder: Any, name: str) -> bool:
    return any(attribute.name == name for attribute in holder.attribute)


def _group(primitive: Any) -> str:
    return _attribute(primitive, "group").s.decode()


def _ranks(primitive: Any, attribute: str) -> list[int]:
    return [value.ints[0] for value in _attribute(primitive, attribute).values]


def _kind(primitive: Any) -> str:
    return " ".join([primitive.op_type, *(a.s.decode() for a in primitive.attribute if a.name == "op")])
