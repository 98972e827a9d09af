"""A graph that would make MindSpore open a library is known by its bytes; the files here are written field by field
from mind_ir.proto."""

import pytest

from pangu_ms.core.protobuf import message_field, number_field
from pangu_ms.export.graph_file import GraphFile
from tests.export.common import attribute

CUSTOM = [attribute("func_name", "./evil.so:run"), attribute("func_type", "aot")]


def node(kind, attributes):
    return message_field(4, kind.encode()) + b"".join(message_field(5, a) for a in attributes)


def graph(content):
    return message_field(1, content)


@pytest.mark.parametrize(
    "content",
    [
        message_field(7, graph(node("CUSTOM::Custom", CUSTOM))),
        message_field(8, graph(node("Custom", CUSTOM))),  # in another function
        message_field(
            12, message_field(2, b"Custom") + b"".join(message_field(3, a) for a in CUSTOM)
        ),  # a primitive that nodes name
        message_field(7, graph(node("If", [message_field(7, graph(node("Custom", CUSTOM)))]))),  # in a branch
    ],
)
def test_a_custom_operator_with_a_library_is_refused_wherever_it_stands(content):
    assert [words.rpartition(" ")[2] for words in GraphFile.read(content).refused] == ["./evil.so:run"]


def test_a_kernel_of_cann_is_refused_since_a_library_launches_it():
    kernel = [
        attribute("func_name", "aclnnPanguGelu"),
        attribute("func_type", "aot"),
        attribute("custom_callback_func", "/evil.so:run"),
    ]
    assert GraphFile.read(message_field(7, graph(node("Custom", kernel)))).refused == ["Custom aclnnPanguGelu"]


@pytest.mark.parametrize("field", [number_field(1, 7), number_field(3, 7), message_field(5, number_field(2, 7))])
def test_a_number_where_a_message_belongs_is_no_graph(field):
    with pytest.raises(ValueError, match="must hold bytes"):
        GraphFile.read(message_field(7, field))


def test_mathematics_is_not_refused():
    assert GraphFile.read(message_field(7, graph(node("MatMul", [])))).refused == []
