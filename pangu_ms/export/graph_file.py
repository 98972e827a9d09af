"""What a MindIR file would make MindSpore do beside computing, read from its bytes before MindSpore loads it. No
mindspore import.

A `Custom` operator names a library, which MindSpore opens while it loads the file, also one of CANN (in
`custom_callback_func`, what launches it); others run Python or write files. Field numbers are those of mind_ir.proto as
MindSpore 2.9 has it (mindspore/train/mind_ir_pb2.py).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pangu_ms.core import protobuf

MODEL_GRAPH, MODEL_FUNCTIONS, MODEL_PREPROCESSOR, MODEL_PRIMITIVES = 7, 8, 9, 12
GRAPH_NODE, GRAPH_PARAMETER, GRAPH_INPUT = 1, 3, 5
NODE_TYPE, NODE_ATTRIBUTES = 4, (5, 8, 9)
PRIMITIVE_TYPE, PRIMITIVE_ATTRIBUTES = 2, (3,)
ATTRIBUTE_NAME, ATTRIBUTE_STRINGS, ATTRIBUTE_GRAPHS, ATTRIBUTE_VALUES = 1, (5, 9), (7, 13), 17
INPUT_TENSOR = 2
TENSOR_DIMS, TENSOR_NAME, TENSOR_EXTERNAL, EXTERNAL_LOCATION = 1, 7, 12, 1

CODE = re.compile(r"Custom|PyFunc|PyExecute|PyInterpret|Dump|Summary|Print|HostCall")
"""Operators that run code from outside of MindSpore, or write; also behind a prefix."""
REFERENCE = "REF::"
"""Begins the type of a node that names one of the model's primitives, where the operator stands."""


@dataclass
class GraphFile:
    """What stands in a MindIR file."""

    refused: list[str] = field(default_factory=list)
    """Operators that a package must not have, each with what it would load."""
    locations: set[str] = field(default_factory=set)
    """Files with the weights, where these are not in the file itself."""
    inputs: list[list[int]] = field(default_factory=list)
    """Dimensions of each input."""
    parameters: dict[str, list[int]] = field(default_factory=dict)
    """Dimensions of each parameter."""

    @classmethod
    def read(cls, content: bytes | memoryview) -> "GraphFile":
        """Raises ValueError where these bytes are no MindIR."""
        found = cls()
        for number, value in protobuf.values(content):
            if number in (MODEL_GRAPH, MODEL_FUNCTIONS):
                found._graph(_message(value), number == MODEL_GRAPH)
            elif number == MODEL_PRIMITIVES:
                found._operator(_message(value), PRIMITIVE_TYPE, PRIMITIVE_ATTRIBUTES)
            elif number == MODEL_PREPROCESSOR:
                found.refused.append("a preprocessor of inputs")
        return found

    def _graph(self, graph: Any, outermost: bool) -> None:
        for number, value in protobuf.values(graph):
            if number == GRAPH_NODE:
                self._operator(_message(value), NODE_TYPE, NODE_ATTRIBUTES)
            elif number == GRAPH_PARAMETER:
                self._parameter(_message(value))
            elif number == GRAPH_INPUT and outermost:
                self.inputs += [_dims(tensor) for tensor in _all(_message(value), INPUT_TENSOR)]

    def _operator(self, operator: Any, type_number: int, attribute_numbers: tuple[int, ...]) -> None:
        names = [_text(value) for value in _all(operator, type_number)]
        attributes = [_attribute(_message(value)) for number in attribute_numbers for value in _all(operator, number)]
        for name in names:  # a field given twice: whichever MindSpore reads
            if CODE.search(name) and not name.startswith(REFERENCE):
                functions = [text for key, texts in attributes if key == "func_name" for text in texts]
                self.refused.append(" ".join([name, *functions]))
        for number in attribute_numbers:
            for attribute in _all(operator, number):
                self._inner_graphs(_message(attribute))

    def _inner_graphs(self, attribute: Any) -> None:
        for number, value in protobuf.values(attribute):
            if number in ATTRIBUTE_GRAPHS:
                self._graph(_message(value), False)
            elif number == ATTRIBUTE_VALUES:
                self._inner_graphs(_message(value))

    def _parameter(self, tensor: Any) -> None:
        for name in _all(tensor, TENSOR_NAME):
            self.parameters[_text(name).rpartition(":")[2]] = _dims(tensor)
        self.locations |= {
            _text(location)
            for external in _all(tensor, TENSOR_EXTERNAL)
            for location in _all(_message(external), EXTERNAL_LOCATION)
        }


def _attribute(attribute: Any) -> tuple[str, list[str]]:
    """Its name and the texts that it holds."""
    names = [_text(value) for value in _all(attribute, ATTRIBUTE_NAME)]
    return names[-1] if names else "", [
        _text(value) for number in ATTRIBUTE_STRINGS for value in _all(attribute, number)
    ]


def _all(message: Any, wanted: int) -> Iterator[Any]:
    return (value for number, value in protobuf.values(message) if number == wanted)


def _message(value: Any) -> Any:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _text(value: Any) -> str:
    return bytes(_message(value)).decode("utf-8", "backslashreplace")


def _dims(tensor: Any) -> list[int]:
    return [protobuf.signed(value) for value in _all(tensor, TENSOR_DIMS) if isinstance(value, int)]
