"""Errors of operators belong to no other package, and the command line shows them as it shows its own."""

from ascend_ops.errors import OperatorError
from pangu_ms.core.console import USER_ERROR, guarded
from pangu_ms.core.errors import UserError


def test_the_command_line_shows_the_error_of_an_operator_on_one_line(capsys):
    def command():
        raise OperatorError("ascend_ops.gelu: x is int32; it must be one of float32, float16; cast it")

    assert not issubclass(OperatorError, UserError)
    assert guarded("pangu generate", command) == USER_ERROR
    assert capsys.readouterr().err.splitlines() == [
        "pangu generate: ascend_ops.gelu: x is int32; it must be one of float32, float16; cast it"
    ]
