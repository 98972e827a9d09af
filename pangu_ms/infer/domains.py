"""The domains that a model tells apart, and those of prompts. A MindIR package contains this module."""

from collections.abc import Sequence
from dataclasses import dataclass

from pangu_ms.core.errors import GenerationError


@dataclass(frozen=True)
class Domains:
    """The domains of a model, by name; most families have none."""

    names: tuple[str, ...] = ()
    """In the order of their indices in the model's input "domain"; empty if the model has no such input."""
    default: str = ""
    """Domain of prompts that name none; empty: the first one."""

    def index(self, name: str = "", where: str = "") -> int:
        """The index of a domain; an empty name stands for the default, and for 0 if the model has no domains.

        Args:
            name: of the domain.
            where: the beginning of the message, such as "prompt 3: ".

        Raises:
            GenerationError: the model has no such domain.
        """
        wanted = name or self.default
        if wanted in self.names:
            return self.names.index(wanted)
        if not name:
            return 0
        if not self.names:
            raise GenerationError(f"{where}domain={name}: the model has no domains; leave it out")
        raise GenerationError(
            f"{where}domain={name}: the model has no such domain; it has {', '.join(self.names)}; name one of them"
        )

    def require_index(self, index: int | None, where: str = "") -> None:
        """Raise GenerationError if the model has no domain of this index; None stands for the default, and so does 0
        if the model has no domains."""
        if index is not None and not 0 <= index < max(1, len(self.names)):
            raise GenerationError(f"{where}domain {index}: the model has {len(self.names)} domains; leave it out")

    def indices(self, names: Sequence[str], count: int) -> list[int]:
        """The index of the domain of each of `count` prompts; without `names` all are of the default domain.

        Raises:
            GenerationError: the model lacks one of them, or there is not one for each prompt.
        """
        if names and len(names) != count:
            raise GenerationError(f"domains: {len(names)} for {count} prompts; give one for each, or none")
        return [self.index(name, f"prompt {i}: ") for i, name in enumerate(names or [""] * count, 1)]


NO_DOMAINS = Domains()
"""Of a model that reads no domain."""
