"""What every backend refuses, in the same words. Rules run while a graph is compiled (or at each eager call), before
any kernel.

A rule is a plain function of Operands, registered under its operator's name; `select` (backend.py) calls it. Shapes
that are not known yet (dynamic ones) pass here; the kernels check them again, in words of their own.
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
    """Decorator: the function checks the operands of these operators; it is given the operator's name and its
    Operands."""

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
    """One input of a call, as errors name it."""

    operator: str
    name: str
    dtype: str
    shape: tuple[int, ...] | None

    def refuse(self, found: str, rule: str) -> OperatorError:
        """The error of an operand that breaks a rule."""
        return OperatorError(f"ascend_ops.{self.operator}: {self.name} {found}; {rule}")

    def floating(self, like: "Operand | None" = None) -> None:
        """Of a float type that kernels take; that of `like` if given."""
        if self.dtype not in FLOATS:
            raise self.refuse(f"is {self.dtype}", f"it must be one of {', '.join(FLOATS)}; cast it")
        if like is not None and self.dtype != like.dtype:
            raise self.refuse(
                f"is {self.dtype} and {like.name} is {like.dtype}", "both must have one dtype; cast one of them"
            )

    def int32(self) -> None:
        """Of dtype int32."""
        if self.dtype != "int32":
            raise self.refuse(f"is {self.dtype}", "it must be int32; cast it")

    def rank(self, least: int, most: int | None = None) -> None:
        """At least `least` dimensions (and at most `most`), none of them empty."""
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
        """Of one of the allowed shapes; `why` says where they come from."""
        if self.shape is not None and self.shape not in allowed:
            raise self.refuse(f"has shape {self.shape}", f"it must be {' or '.join(map(str, allowed))}: {why}")


def operand(operator: str, name: str, described: tuple | None) -> Operand | None:
    """An Operand from what `describe` said; None for an input that is left out."""
    if described is None:
        return None
    dtype, shape = described
    return Operand(operator, name, str(dtype).lower(), None if shape is None else tuple(shape))
