"""Scans a MindIR file, before MindSpore loads it, for operators that would do more than compute. No mindspore import.

A `Custom` operator names a native library, which MindSpore opens while it loads the file (for a CANN operator in
`custom_callback_func`). Other operators run Python or write files. The field numbers are those of mind_ir.proto in
MindSpore 2.9 (mindspore/train/mind_ir_pb2.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pangu_ms.core.protobuf import Bytes, content, signed, values

# Field numbers of mind_ir.proto. A tuple lists all fields that can hold the thing in question.
MODEL_GRAPH, MODEL_FUNCTIONS, MODEL_PREPROCESSOR, MODEL_PRIMITIVES = 7, 8, 9, 12
GRAPH_NODE, GRAPH_PARAMETER, GRAPH_INPUT = 1, 3, 5
NODE_TYPE, NODE_ATTRIBUTES = 4, (5, 8, 9)
PRIMITIVE_TYPE, PRIMITIVE_ATTRIBUTES = 2, (3,)
ATTRIBUTE_NAME, ATTRIBUTE_STRINGS, ATTRIBUTE_GRAPHS, ATTRIBUTE_VALUES = 1, (5, 9), (7, 13), 17
INPUT_TENSOR = 2
TENSOR_DIMS, TENSOR_NAME, TENSOR_EXTERNAL, EXTERNAL_LOCATION = 1, 7, 12, 1

CODE = re.compile(r"Custom|PyFunc|PyExecute|PyInterpret|Dump|Summary|Print|HostCall")
"""Names of operators that run code from outside MindSpore or write files. A name may have a prefix."""
REFERENCE = "REF::"
"""Prefix of a node's type that refers to one of the model's primitives; the type of that primitive is the operator's
name."""


@dataclass
class GraphFile:
    """The parts of a MindIR file that decide whether it is safe to load."""

    refused: list[str] = field(default_factory=list)
    """Operators that a package must not have, each with the function that it would call."""
    locations: set[str] = field(default_factory=set)
    """Other files that hold the weights."""
    inputs: list[list[int]] = field(default_factory=list)
    """Dimensions of each input."""
    parameters: dict[str, list[int]] = field(default_factory=dict)
    """Dimensions of each parameter."""

    @classmethod
    def read(cls, file: Bytes) -> "GraphFile":
        """Read the bytes of a file.

        Raises:
            ValueError: the bytes are not a MindIR file.
        """
        found = cls()
        for number, value in values(file):
            if number in (MODEL_GRAPH, MODEL_FUNCTIONS):
                found._graph(content(value), number == MODEL_GRAPH)
            elif number == MODEL_PRIMITIVES:
                found._operator(content(value), PRIMITIVE_TYPE, PRIMITIVE_ATTRIBUTES)
            elif number == MODEL_PREPROCESSOR:
                found.refused.append("a preprocessor of inputs")
        return found

    def _graph(self, graph: Bytes, outermost: bool) -> None:
        for number, value in values(graph):
            if number == GRAPH_NODE:
                self._operator(content(value), NODE_TYPE, NODE_ATTRIBUTES)
            elif number == GRAPH_PARAMETER:
                self._parameter(content(value))
            elif number == GRAPH_INPUT and outermost:
                self.inputs += [_dims(content(tensor)) for tensor in _all(content(value), INPUT_TENSOR)]

    def _operator(self, operator: Bytes, type_number: int, attribute_numbers: tuple[int, ...]) -> None:
        names = [_text(value) for value in _all(operator, type_number)]
        attributes = [_attribute(content(value)) for number in attribute_numbers for value in _all(operator, number)]
        functions: list[str] = []
        for key, texts in attributes:
            functions += texts if key == "func_name" else []
        for name in names:  # a forged file may give the field several times
            if CODE.search(name) and not name.startswith(REFERENCE):
                self.refused.append(" ".join([name, *functions]))
        for number in attribute_numbers:
            for attribute in _all(operator, number):
                self._inner_graphs(content(attribute))

    def _inner_graphs(self, attribute: Bytes) -> None:
        for number, value in values(attribute):
            if number in ATTRIBUTE_GRAPHS:
                self._graph(content(value), False)
            elif number == ATTRIBUTE_VALUES:
                self._inner_graphs(content(value))

    def _parameter(self, tensor: Bytes) -> None:
        for name in _all(tensor, TENSOR_NAME):
            self.parameters[_text(name).rpartition(":")[2]] = _dims(tensor)
        for external in _all(tensor, TENSOR_EXTERNAL):
            self.locations |= set(map(_text, _all(content(external), EXTERNAL_LOCATION)))


def _attribute(attribute: Bytes) -> tuple[str, list[str]]:
    """The name of an attribute, and the strings that it holds."""
    names = [_text(value) for value in _all(attribute, ATTRIBUTE_NAME)]
    texts: list[str] = []
    for field_number in ATTRIBUTE_STRINGS:
        texts += map(_text, _all(attribute, field_number))
    return names[-1] if names else "", texts


def _all(message: Bytes, wanted: int) -> Iterator[int | Bytes]:
    """The values of all fields whose number is `wanted`."""
    return (value for field_number, value in values(message) if field_number == wanted)


def _text(value: int | Bytes) -> str:
    return bytes(content(value)).decode("utf-8", "backslashreplace")


def _dims(tensor: Bytes) -> list[int]:
    return [signed(value) for value in _all(tensor, TENSOR_DIMS) if isinstance(value, int)]
