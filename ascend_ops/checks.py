"""Checks of operators' inputs, with the same messages for all backends. They run while a graph is compiled (or at each
eager call), before any kernel.

A rule is a plain function of Operands, registered under its operator's name; `select` (backend.py) calls it. Shapes
that are not known yet (dynamic ones) pass here; the kernels check them at run time, with their own messages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor
from mindspore.ops.functional import isconstant

from ascend_ops.errors import OperatorError
from ascend_ops.table import FLOATS

RULES: dict[str, Callable] = {}


def rule(*operators: str) -> Callable[[Callable], Callable]:
    """Decorator: registers a function that checks the operands of these operators. Its arguments are the operator's
    name and its Operands."""

    def register(function: Callable) -> Callable:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def describe(tensor: Tensor | None) -> tuple[Any, tuple[int, ...] | None] | None:
    """(dtype, shape) of a tensor, inside a graph; the shape is None where it is dynamic."""
    if tensor is None:
        return None
    return tensor.dtype, tensor.shape if isconstant(tensor.shape) else None


@dataclass(frozen=True)
class Operand:
    """One input of a call, with the name that error messages give it."""

    operator: str
    name: str
    dtype: str
    shape: tuple[int, ...] | None

    def refuse(self, found: str, rule: str) -> OperatorError:
        """Make the error of an operand that breaks a rule."""
        return OperatorError(f"ascend_ops.{self.operator}: {self.name} {found}; {rule}")

    def floating(self, like: "Operand | None" = None) -> None:
        """Require a float type that kernels accept; with `like` the dtype of that operand."""
        if self.dtype not in FLOATS:
            raise self.refuse(f"is {self.dtype}", f"it must be one of {', '.join(FLOATS)}; cast it")
        if like is not None and self.dtype != like.dtype:
            raise self.refuse(
                f"is {self.dtype} and {like.name} is {like.dtype}", "both must have one dtype; cast one of them"
            )

    def int32(self) -> None:
        """Require dtype int32."""
        if self.dtype != "int32":
            raise self.refuse(f"is {self.dtype}", "it must be int32; cast it")

    def rank(self, least: int, most: int | None = None) -> None:
        """Require at least `least` dimensions (and at most `most`), none of them of size 0."""
        if self.shape is None:
            return
        if len(self.shape) < least or len(self.shape) > (most or len(self.shape)):
            wanted = str(least) if most == least else f"{least} to {most}" if most else f"at least {least}"
            raise self.refuse(
                f"has shape {self.shape}", f"it must have {wanted} dimension{'s' if wanted != '1' else ''}; reshape it"
            )
        if 0 in self.shape:
            raise self.refuse(
                f"has shape {self.shape}", "no dimension may be 0; leave the call out when there is nothing to compute"
            )

    def shaped(self, why: str, *allowed: tuple[int, ...]) -> None:
        """Require one of the allowed shapes; `why` explains in the message where they come from."""
        if self.shape is not None and self.shape not in allowed:
            raise self.refuse(f"has shape {self.shape}", f"it must be {' or '.join(map(str, allowed))}: {why}")


def operand(operator: str, name: str, described: tuple | None) -> Operand | None:
    """An Operand from the result of `describe`; None for an input that is left out."""
    if described is None:
        return None
    dtype, shape = described
    return Operand(operator, name, str(dtype).lower(), None if shape is None else tuple(shape))
