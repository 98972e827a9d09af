"""Checks whether a student can inherit from a teacher, and whether it starts with the same function. No mindspore
import."""

from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.inherit.units import query_heads_per_unit

SIZES = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_hidden_size")
"""Fields in which the student must not exceed the teacher."""


def require_fit(teacher: ModelConfig, student: ModelConfig) -> None:
    """Check that a student can inherit from a teacher. The vocabulary size is not checked here.

    Raises:
        ConfigError: the student is larger, lacks a part of the teacher, or computes something else with the same
            parameters.
    """
    if student.family != teacher.family:
        raise ConfigError(
            f"model.family={student.family}: the teacher is {teacher.family}: must be the same; choose another --config"
        )
    for field in (*SIZES, *(["seq_length"] if "position" in teacher.axis_sizes() else [])):
        if getattr(student, field) > getattr(teacher, field):
            raise ConfigError(
                f"model.{field}={getattr(student, field)}: must not exceed the teacher's {getattr(teacher, field)};"
                " lower it"
            )
    if student.head_dim != teacher.head_dim:
        rule = (
            f"the teacher's have {teacher.head_dim}: must be equal, as whole heads are inherited; set model.num_heads"
            f" to hidden_size / {teacher.head_dim}"
        )
        raise ConfigError(f"model.num_heads={student.num_heads}: heads of {student.head_dim} channels, {rule}")
    free = teacher.fields_free_in_students()
    for field in teacher.field_names():
        own, given = getattr(student, field), getattr(teacher, field)
        if own != given and field not in free:
            raise ConfigError(
                f"model.{field}={own}: must be the teacher's, or the inherited weights would mean something else; set"
                f" model.{field}={given}"
            )
    _require_groups(teacher, student)
    teacher.require_student(student)
    _require_no_loss(teacher, student)


def _require_groups(teacher: ModelConfig, student: ModelConfig) -> None:
    old, new = query_heads_per_unit(teacher), query_heads_per_unit(student)
    if new % old:
        rule = f"{new} query heads would share one, a multiple of the teacher's {old} must"
        raise ConfigError(
            f"model.num_kv_heads={student.num_kv_heads}: {rule}, since they are kept or dropped together; change it or"
            " model.num_heads"
        )


def _require_no_loss(teacher: ModelConfig, student: ModelConfig) -> None:
    lost = [name for name in _names(teacher) if name not in _names(student)]
    if lost:
        fields = teacher.FIELDS_OF_PARTS
        advice = next((field for start, field in fields.items() if lost[0].startswith(start)), "the fields that differ")
        raise ConfigError(
            f"student: has no {', '.join(lost)}: parts of the teacher must not be dropped; set model.{advice} as the"
            " teacher has it"
        )


def _names(config: ModelConfig) -> list[str]:
    before, behind = config.outer_parameters()
    return [*before, *config.layer_parameters(0), *behind]


def require_same_function(teacher: ModelConfig, student: ModelConfig) -> None:
    """Raise ConfigError unless the student has the teacher's sizes and, before training, computes the teacher's
    function."""
    for field in (*SIZES, "vocab_size"):
        if getattr(student, field) != getattr(teacher, field):
            raise ConfigError(
                f"model.{field}={getattr(student, field)}: must stay {getattr(teacher, field)}; `pangu model inherit`"
                " changes sizes"
            )
    teacher.require_same_function(student)
