"""PanGu-pi's fields: every rule with its message, and the values at its edge."""

import pytest

from pangu_ms.config import load_config
from pangu_ms.config.load import config_from_dict, config_to_dict
from pangu_ms.core.errors import ConfigError

pytestmark = pytest.mark.fast

MISTAKES = [
    ("num_kv_heads=4", "num_kv_heads=4: must divide num_heads=6; use one of 1, 2, 3, 6"),
    ("num_kv_heads=-1", "num_kv_heads=-1: must be positive"),
    ("num_kv_heads=12", "num_kv_heads=12: must divide num_heads=6; use one of 1, 2, 3, 6"),
    ("num_heads=5", "num_heads=5: must divide hidden_size=192; use one of 1, 2, 3, 4, 6"),
    (
        "num_heads=64",
        "head_dim=3: must be even, as rotary positions turn pairs; change it, or hidden_size or num_heads",
    ),
    ("head_dim=7", "head_dim=7: must be even"),
    ("head_dim=-2", "head_dim=-2: must be positive"),
    ("rms_norm_eps=0", "rms_norm_eps=0.0: must be positive"),
    ("rope_theta=-1", "rope_theta=-1.0: must be positive"),
    ("siaf_terms=0", "siaf_terms=0: must be positive"),
    ("siaf_terms=1.5", "siaf_terms=1.5: input should be a valid integer"),
    ("siaf_mode=cubic", "siaf_mode='cubic': input should be 'channel', 'scalar' or 'matrices'"),
    ("aug_shortcut_reduction=5", "aug_shortcut_reduction=5: must divide hidden_size=192; use one of 1, 2, 3, 4, 6, 8"),
    ("aug_shortcut_reduction=0", "aug_shortcut_reduction=0: must be positive"),
    ("aug_shortcut_branches=-1", "aug_shortcut_branches=-1: must not be negative; 0 is none"),
    ("aug_shortcut_bias=maybe", "aug_shortcut_bias='maybe': input should be a valid boolean"),
    ("dropout=0.1", "dropout: unknown key"),
    ("siaf_term=2", "siaf_term: unknown key; did you mean siaf_terms?"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_rule(override, message):
    with pytest.raises(ConfigError) as error:
        load_config("pi/tiny", [f"model.{override}"])
    assert f": model.{message}" in str(error.value) and "\n" not in str(error.value)


def test_gate_matrices_have_no_product_form():
    with pytest.raises(
        ConfigError, match="model.siaf_position=product: has no gate matrices to add; use siaf_mode=channel or scalar"
    ):
        load_config("pi/tiny", ["model.siaf_mode=matrices", "model.siaf_position=product"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["aug_shortcut_branches=0", "aug_shortcut_reduction=500"],
        ["num_heads=5", "head_dim=10"],
        ["num_kv_heads=1"],
        ["aug_shortcut_reduction=192"],
    ],
)
def test_what_the_rules_allow(overrides):
    """A width of heads apart from hidden_size / num_heads, and a reduction that no branch uses, among others; the
    resolved tree reads back equal."""
    config = load_config("pi/tiny", [f"model.{override}" for override in overrides])
    assert config.model.num_parameters() > 0 and all(
        min(shape) > 0 for shape in config.model.parameter_shapes().values()
    )
    assert config_from_dict(config_to_dict(config), "again") == config
