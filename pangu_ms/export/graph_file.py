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
TENSOR_DIMS, TENSOR_NAME, TENSOR_DATA, TENSOR_EXTERNAL = 1, 7, 9, 12
EXTERNAL_LOCATION, EXTERNAL_OFFSET, EXTERNAL_LENGTH = 1, 2, 3

CODE = re.compile(r"Custom|PyFunc|PyExecute|PyInterpret|Dump|Summary|Print|HostCall")
"""Names of operators that run code from outside MindSpore or write files. A name may have a prefix."""
REFERENCE = "REF::"
"""Prefix of a node's type that refers to one of the model's primitives; the type of that primitive is the operator's
name."""
KERNEL = re.compile(r"[A-Za-z]\w*", re.ASCII)
"""Names of our kernels."""


@dataclass(frozen=True)
class External:
    """Where the value of a parameter is that another file holds."""

    location: str
    """Path of the file, relative to that of the graph."""
    offset: int
    length: int
    """Bytes."""


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
    weights: dict[str, Bytes | External] = field(default_factory=dict)
    """The value of each parameter that has one."""
    library: str = ""
    """Path of the only library that operators may call."""
    kernels: set[str] = field(default_factory=set)
    """The functions of `library` that operators call."""

    @classmethod
    def read(cls, file: Bytes, library: str = "") -> "GraphFile":
        """Read the bytes of a file.

        Args:
            file: the bytes.
            library: path of a library whose functions operators may call; empty: of none.

        Raises:
            ValueError: the bytes are not a MindIR file.
        """
        found = cls(library=library)
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
        functions = [text for key, texts in attributes if key == "func_name" for text in texts]
        kinds = [text for key, texts in attributes if key == "func_type" for text in texts]
        for name in names:  # a forged file may give the field several times
            if not CODE.search(name) or name.startswith(REFERENCE):
                continue
            if name == "Custom" and set(kinds) == {"aot"} and self._are_kernels(functions):
                self.kernels |= {function.rpartition(":")[2] for function in functions}
            else:
                self.refused.append(" ".join([name, *functions]))
        for number in attribute_numbers:
            for attribute in _all(operator, number):
                self._inner_graphs(content(attribute))

    def _are_kernels(self, functions: list[str]) -> bool:
        """Whether these are functions of `library`, which is to be called."""
        if not self.library or not functions:
            return False
        of = [function.rpartition(":") for function in functions]
        return all(path == self.library and KERNEL.fullmatch(name) for path, _, name in of)

    def _inner_graphs(self, attribute: Bytes) -> None:
        for number, value in values(attribute):
            if number in ATTRIBUTE_GRAPHS:
                self._graph(content(value), False)
            elif number == ATTRIBUTE_VALUES:
                self._inner_graphs(content(value))

    def _parameter(self, tensor: Bytes) -> None:
        externals = [content(external) for external in _all(tensor, TENSOR_EXTERNAL)]
        for external in externals:
            self.locations |= set(map(_text, _all(external, EXTERNAL_LOCATION)))
        data: list[Bytes | External] = [content(value) for value in _all(tensor, TENSOR_DATA)]
        data += [_external(external) for external in externals]
        for name in map(_text, _all(tensor, TENSOR_NAME)):
            self.parameters[name.rpartition(":")[2]] = _dims(tensor)
            if data:
                self.weights[name.rpartition(":")[2]] = data[-1]


def _attribute(attribute: Bytes) -> tuple[str, list[str]]:
    """The name of an attribute, and the strings that it holds."""
    names = [_text(value) for value in _all(attribute, ATTRIBUTE_NAME)]
    texts: list[str] = []
    for field_number in ATTRIBUTE_STRINGS:
        texts += map(_text, _all(attribute, field_number))
    return names[-1] if names else "", texts


def _external(external: Bytes) -> External:
    location = "".join(map(_text, _all(external, EXTERNAL_LOCATION)))
    offset, length = (sum(map(signed, _all(external, number))) for number in (EXTERNAL_OFFSET, EXTERNAL_LENGTH))
    return External(location, offset, length)


def _all(message: Bytes, wanted: int) -> Iterator[int | Bytes]:
    """The values of all fields whose number is `wanted`."""
    return (value for field_number, value in values(message) if field_number == wanted)


def _text(value: int | Bytes) -> str:
    return bytes(content(value)).decode("utf-8", "backslashreplace")


def _dims(tensor: Bytes) -> list[int]:
    return [signed(value) for value in _all(tensor, TENSOR_DIMS) if isinstance(value, int)]
