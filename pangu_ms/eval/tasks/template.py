"""Texts with {name} in place of fields. Nothing in them is evaluated."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pangu_ms.core.errors import DataError

_PART = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}|[{}]")


@dataclass(frozen=True)
class Template:
    """A text in which {name} stands for a field; {{ and }} are braces."""

    text: str

    @cached_property
    def parts(self) -> list[tuple[str, str]]:
        """(text, name of the field behind it), in their order; the last one has no field.

        Raises:
            DataError: a brace belongs to no field.
        """
        parts, literal, end = [], "", 0
        for found in _PART.finditer(self.text):
            literal += self.text[end : found.start()]
            end = found.end()
            if found[0] in ("{{", "}}"):
                literal += found[0][0]
            elif found[1]:
                parts.append((literal, found[1]))
                literal = ""
            else:
                raise DataError(
                    f"template {self.text[:60]!r}: the brace at character {found.start() + 1} belongs to no {{name}};"
                    " write {{ or }} for a brace"
                )
        return [*parts, (literal + self.text[end:], "")]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The fields that it has, in their order."""
        return tuple(name for _, name in self.parts if name)

    @property
    def literals(self) -> tuple[str, ...]:
        """The texts between them."""
        return tuple(literal for literal, _ in self.parts if literal)

    def filled(self, fields: Mapping[str, object]) -> str:
        """The text with these fields.

        Raises:
            DataError: one of them is missing, or is no text or number.
        """
        found = []
        for literal, name in self.parts:
            found.append(literal)
            if not name:
                continue
            if name not in fields:
                raise DataError(f"template {self.text[:60]!r}: no field {name}; there are {', '.join(fields)}")
            value = fields[name]
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise DataError(
                    f"field {name} is {value!r:.40}; a template takes texts and numbers; make one of it with fields:"
                    " (join, map)"
                )
            found.append(str(value))
        return "".join(found)
