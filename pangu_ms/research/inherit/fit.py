"""Which students a teacher can have, and which of these compute its function. No mindspore import."""

import dataclasses

from pangu_ms.core.errors import ConfigError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.research.inherit.gather import HEAD
from pangu_ms.research.inherit.units import query_heads_per_unit

SIZES = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "ffn_hidden_size")
"""Fields that must not grow; alpha has no num_kv_heads."""
_FREE = (
    *SIZES,
    *(
        "vocab_size",
        "seq_length",
        "siaf_terms",
        "aug_shortcut_branches",
        "aug_shortcut_reduction",
    ),  # with rules of their own
    *("init_std", "init_rule", "siaf_init", "aug_shortcut_init"),  # of additions
    *("attention_bias", "aug_shortcut_bias", "tie_word_embeddings"),  # what they add or drop is seen in the names
    *("compute_dtype", "dropout"),
)
_SERIES, _SHORTCUT = ("siaf_mode", "siaf_position"), ("aug_shortcut_input", "aug_shortcut_act")


def require_fit(teacher: ModelConfig, student: ModelConfig) -> None:
    """The vocabulary's size is not looked at.

    Raises:
        ConfigError: the student is larger, lacks a part of the teacher, or computes something else with the same
            parameters.
    """
    if student.family != teacher.family:
        raise ConfigError(
            f"model.family={student.family}: the teacher is {teacher.family}: must be the same; choose another --config"
        )
    for field in (*SIZES, *(["seq_length"] if "position" in teacher.axis_sizes() else [])):
        if getattr(student, field, 0) > getattr(teacher, field, 0):
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
    for field in _fixed_fields(teacher):
        own, given = getattr(student, field), getattr(teacher, field)
        if own != given:
            raise ConfigError(
                f"model.{field}={own}: must be the teacher's, or the inherited weights would mean something else; set"
                f" model.{field}={given}"
            )
    _require_groups(teacher, student)
    _require_no_loss(teacher, student)


def _fixed_fields(teacher: ModelConfig) -> list[str]:
    free = {
        *_FREE,
        *(_SERIES if getattr(teacher, "siaf_terms", 1) == 1 else ()),
        *(() if getattr(teacher, "aug_shortcut_branches", 0) else _SHORTCUT),
    }
    return [field.name for field in dataclasses.fields(teacher) if field.name not in free]


def _require_groups(teacher: ModelConfig, student: ModelConfig) -> None:
    old, new = query_heads_per_unit(teacher), query_heads_per_unit(student)
    if new % old:
        rule = f"{new} query heads would share one, a multiple of the teacher's {old} must"
        raise ConfigError(
            f"model.num_kv_heads={student.num_kv_heads}: {rule}, since they are kept or dropped together; change it or"
            " model.num_heads"
        )


def _require_no_loss(teacher: ModelConfig, student: ModelConfig) -> None:
    if getattr(student, "siaf_terms", 1) < getattr(teacher, "siaf_terms", 1):
        raise ConfigError(
            f"model.siaf_terms={student.siaf_terms}: the teacher has {teacher.siaf_terms}, and no term can be dropped;"
            " set it to that or more"
        )
    lost = [name for name in _names(teacher) if name not in _names(student)]
    if lost:
        fields = {
            "aug_shortcut": "aug_shortcut_branches or aug_shortcut_bias",
            "attention": "attention_bias",
            HEAD: "tie_word_embeddings",
        }
        advice = next((field for start, field in fields.items() if lost[0].startswith(start)), "the fields that differ")
        raise ConfigError(
            f"student: has no {', '.join(lost)}: parts of the teacher must not be dropped; set model.{advice} as the"
            " teacher has it"
        )


def _names(config: ModelConfig) -> list[str]:
    before, behind = config.outer_parameters()
    return [*before, *config.layer_parameters(0), *behind]


def require_same_function(teacher: ModelConfig, student: ModelConfig) -> None:
    """Raise ConfigError unless a pi student of its teacher's sizes starts with its teacher's function (spec D2, D3)."""
    for field in (*SIZES, "vocab_size"):
        if getattr(student, field) != getattr(teacher, field):
            raise ConfigError(
                f"model.{field}={getattr(student, field)}: must stay {getattr(teacher, field)}; `pangu model inherit`"
                " changes sizes"
            )
    if student.siaf_terms > teacher.siaf_terms:
        _require(student, "siaf_init", "identity")
        if teacher.siaf_terms == 1:  # one term is no phi at all, so act(phi's argument) would be new there
            _require(student, "siaf_position", "gate")
    if (
        student.aug_shortcut_branches > teacher.aug_shortcut_branches
        or student.axis_sizes()["bottleneck"] > teacher.axis_sizes()["bottleneck"]
    ):
        _require(student, "aug_shortcut_init", "zero")
    if (
        student.aug_shortcut_branches
        and student.axis_sizes()["bottleneck"] < teacher.axis_sizes()["bottleneck"]
        and teacher.aug_shortcut_branches
    ):
        reduction = teacher.aug_shortcut_reduction
        raise ConfigError(
            f"model.aug_shortcut_reduction={student.aug_shortcut_reduction}: would cut the teacher's branches; set it"
            f" to {reduction} or less"
        )


def _require(student: ModelConfig, field: str, value: str) -> None:
    if getattr(student, field) != value:
        raise ConfigError(
            f"model.{field}={getattr(student, field)}: the additions would change the model's function; set"
            f" model.{field}={value}"
        )
