"""Types and checks that the fields of every configuration section are made of."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Strict
from pydantic_core import PydanticCustomError

from pangu_ms.core.errors import ConfigError

# A string under a field is its description: `pangu config show --fields` reads it from the source. pydantic would read
# the source at each start (use_attribute_docstrings), and without defer_build it would build all validators for --help.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

Act = Literal["gelu", "gelu_erf", "fast_gelu", "silu"]
Dtype = Literal["float32", "float16", "bfloat16"]


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "input should be a valid number")
    return value


# Python accepts True as the number 1; a config must not. YAML reads 1e-4 as a string, so a float may be given as text.
Int = Annotated[int, Strict()]
Float = Annotated[float, BeforeValidator(_not_bool)]


def require(condition: bool, field: str, message: str) -> None:
    """Raise ConfigError "field: message" unless `condition`."""
    if not condition:
        raise ConfigError(f"{field}{message}")


def require_positive(section: Any, *names: str) -> None:
    """Require that each named field of `section` is above 0."""
    for name in names:
        require(getattr(section, name) > 0, name, f"={getattr(section, name)}: must be positive")


def require_at_most(section: Any, most: int, *names: str) -> None:
    """Require that each named field of `section` is at most `most`. Something is allocated for each unit of such a
    field, so that 2**63 would take all memory."""
    for name in names:
        require(
            getattr(section, name) <= most,
            name,
            f"={getattr(section, name)}: must be at most {most}; use a smaller one",
        )


def require_not_negative(section: Any, **meaning_of_0: str) -> None:
    """Require that each named field of `section` is 0 or more; the message says what 0 does: require_not_negative(self,
    keep="keeps all")."""
    for name, meaning in meaning_of_0.items():
        require(getattr(section, name) >= 0, name, f"={getattr(section, name)}: must not be negative; 0 {meaning}")


def divisors(number: int) -> str:
    """Divisors of `number` up to 256, for the "use ..." part of a message."""
    return ", ".join(str(d) for d in range(1, min(number, 256) + 1) if number % d == 0)
