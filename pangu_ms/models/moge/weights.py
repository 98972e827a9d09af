"""Foreign parameter names of Pangu Pro MoE: those of its published weights, with one tensor for each expert. Source:
specification F2; configuration_pangu_moe.py and vllm-ascend's pangu_moe.py.

All matrices are [out, in] on both sides.
"""

import json
from typing import Any

from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.config_json import own_activation, require_understood, written_activation
from pangu_ms.models.common.gguf import absent
from pangu_ms.models.common.stacks import stored_shapes
from pangu_ms.models.common.weights import MINDFORMERS, Format, Rule, foreign_name
from pangu_ms.models.moge.config import MogeConfig
from pangu_ms.models.pi.weights import FIELDS, NAMES, ROPE, read_theta, tied

_NAMES = {
    r"blocks\.(\d+)\.ffn\.router\.weight": r"model.layers.\1.mlp.gate.weight",
    r"blocks\.(\d+)\.ffn\.router\.scale": r"model.layers.\1.mlp.router_scale",
    r"blocks\.(\d+)\.ffn\.experts\.(\d+)\.(\w+)\.": r"model.layers.\1.mlp.experts.\2.\3_proj.",
    r"blocks\.(\d+)\.ffn\.shared\.(\w+)\.": r"model.layers.\1.mlp.shared_expert.\2_proj.",
} | NAMES

# Keys of config.json -> our fields.
_FIELDS = {key: field for key, field in FIELDS.items() if key != "intermediate_size"} | {
    "moe_intermediate_size": "moe_intermediate_size",
    "shared_expert_intermediate_size": "ffn_hidden_size",
    "num_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "router_aux_loss_coef": "balance_loss_coef",
}
_OWN_FIELDS = ("num_expert_groups", *(name for name in MogeConfig.field_names() if name.startswith("aug_shortcut_")))
"""Fields that have no key in the published form; they have their own names in ours."""
_PUBLISHED, _OURS = "PanguProMoE", "pangu_moge"
# Defaults of the published class that are not those of MogeConfig.
_DEFAULTS = {"num_kv_heads": 8, "ffn_hidden_size": 5376, "seq_length": 131072}
# What the published code computes, whatever its config.json says.
_FIXED = {"attention_bias": True, "num_expert_groups": 8, "experts_per_token": 8, "aug_shortcut_branches": 0}


def _huggingface(config: ModelConfig) -> list[Rule]:
    return [Rule(name, foreign_name(name, _NAMES)) for name in stored_shapes(config.parameter_shapes())]


def read_config(where: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Fields of MogeConfig from a config.json; a key that it lacks has the default of the published class.

    Args:
        where: the file, for messages.
        tree: its content, whose model_type is one of the format's.

    Raises:
        CheckpointError: the model computes something that is not supported here.
    """
    published = tree["model_type"] == _PUBLISHED
    tree = {key: value for key, value in tree.items() if value is not None} | read_theta(where, tree)
    names = _FIELDS | ({} if published else {name: name for name in _OWN_FIELDS})
    require_understood(where, tree, {*names, *ROPE})
    fields = (_DEFAULTS if published else {}) | {field: tree[key] for key, field in names.items() if key in tree}
    for key, field in names.items():
        fixed = _FIXED.get(field) if published else None
        if fixed is not None and fields.get(field, fixed) != fixed:
            raise CheckpointError(
                f"{where}: {key}={fields[field]!r}: must be {json.dumps(fixed)} in a {_PUBLISHED}; such a model is not"
                " supported"
            )
    if fields.get("ffn_hidden_size") == 0:
        raise CheckpointError(
            f"{where}: shared_expert_intermediate_size=0: a model without a shared expert is not supported"
        )
    if "hidden_act" in fields:
        fields["hidden_act"] = own_activation(fields["hidden_act"])
    return {"family": "moge"} | fields


def write_config(config: MogeConfig) -> dict[str, Any]:
    """The config.json of a model: in the published form if the published code computes the model, otherwise with our
    additional keys, which no other program knows."""
    published = all(getattr(config, name) == value for name, value in _FIXED.items())
    published = published and config.head_dim * config.num_heads == config.hidden_size
    tree = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    tree["hidden_act"] = written_activation(config.hidden_act)
    if published:
        return tree | {"model_type": _PUBLISHED, "architectures": ["PanguProMoEForCausalLM"]}
    return tree | {"model_type": _OURS} | {name: getattr(config, name) for name in _OWN_FIELDS}


FORMATS = {
    "huggingface": Format(
        _huggingface,
        ignored=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
        copies=tied,
        writes_copies=False,
        model_types=(_PUBLISHED, _OURS),
        read_config=read_config,
        write_config=write_config,
    ),
    "mindformers": MINDFORMERS,
}
GGUF = absent("experts in groups")
