"""Foreign parameter names of PanGu-pi: those of Hugging Face's LLaMA, whose checkpoints load directly;
openPangu-Embedded has the same names. Source: specification D7, F1.

Parameters that LLaMA lacks have names in the same style: `self_attn.aug_shortcut.{i}.{down,up}` and
`mlp.siaf.{scale,bias}`. All matrices are [out, in] on both sides.
"""

import json
from typing import Any

from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.config_json import own_activation, require_understood, written_activation
from pangu_ms.models.common.weights import MINDFORMERS, Format, Rule, foreign_name
from pangu_ms.models.pi import gguf
from pangu_ms.models.pi.config import PiConfig

NAMES = {
    r"word_embedding\.": "model.embed_tokens.",
    r"final_norm\.": "model.norm.",
    r"head\.": "lm_head.",
    r"blocks\.(\d+)\.attention_norm\.": r"model.layers.\1.input_layernorm.",
    r"blocks\.(\d+)\.ffn_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"blocks\.(\d+)\.attention\.(.)\w+\.": r"model.layers.\1.self_attn.\2_proj.",  # query, key, value, output
    r"blocks\.(\d+)\.aug_shortcut\.": r"model.layers.\1.self_attn.aug_shortcut.",
    r"blocks\.(\d+)\.ffn\.siaf\.shift": r"model.layers.\1.mlp.siaf.bias",
    r"blocks\.(\d+)\.ffn\.siaf": r"model.layers.\1.mlp.siaf",
    r"blocks\.(\d+)\.ffn\.(\w+)\.": r"model.layers.\1.mlp.\2_proj.",  # gate, up, down
}
"""Pattern of our name -> foreign name; the first pattern that matches is used, so the order matters."""

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "seq_length",
    "hidden_act": "hidden_act",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "attention_bias": "attention_bias",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""Keys of config.json -> our fields."""
_ADDITIONS = tuple(name for name in PiConfig.__dataclass_fields__ if name.startswith(("siaf_", "aug_shortcut_")))
_PLAIN = {"siaf_terms": 1, "aug_shortcut_branches": 0}
_LLAMA, _OPENPANGU, _PANGU_PI = "llama", ("PanguEmbedded", "openpangu_dense"), "pangu_pi"
# Defaults that the classes in transformers use for keys that a config.json leaves out, unless a key is required (spec
# F1).
_COMMON = {"hidden_act": "silu", "tie_word_embeddings": False}
_DEFAULTS = {_LLAMA: _COMMON | {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "attention_bias": False}}
_DEFAULTS |= {
    kind: _COMMON | {"rms_norm_eps": 1e-5, "rope_theta": 16e6, "attention_bias": True} for kind in _OPENPANGU
} | {_PANGU_PI: {}}
_CHANGES_THE_FUNCTION = {
    "mlp_bias": False,
    "pretraining_tp": 1,
    "partial_rotary_factor": 1,
}  # keys that must be absent, null or this
ROPE = ("rope_parameters", "rope_scaling")
"""Keys of config.json for theta and scaling: transformers 5 | earlier versions."""
_ROPE_KINDS = ("rope_type", "type")  # "type" before transformers 4.43
_UNSCALED = {"factor": 1, "partial_rotary_factor": 1}


def _huggingface(config: ModelConfig) -> list[Rule]:
    return [Rule(name, foreign_name(name, NAMES)) for name in config.parameters()]


def read_config(where: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Fields of PiConfig from a config.json.

    Args:
        where: the file, for messages.
        tree: its content, whose model_type is one of the format's.

    Raises:
        CheckpointError: the model computes something that is not supported here.
    """
    kind = tree["model_type"]
    tree = {key: value for key, value in tree.items() if value is not None} | read_theta(where, tree)
    for key, harmless in _CHANGES_THE_FUNCTION.items():
        if tree.get(key) not in (None, harmless):
            raise CheckpointError(
                f"{where}: {key}={tree[key]!r}: must be {json.dumps(harmless)}; such a model is not supported"
            )
    known = {*FIELDS, "bias", "rope_theta", *_CHANGES_THE_FUNCTION, *ROPE, *(_ADDITIONS if kind == _PANGU_PI else ())}
    require_understood(where, tree, known)
    tree = ({"attention_bias": tree["bias"]} if "bias" in tree else {}) | tree  # bias: openPangu's key
    fields = _DEFAULTS[kind] | {ours: tree[theirs] for theirs, ours in FIELDS.items() if tree.get(theirs) is not None}
    if "hidden_act" in fields:
        fields["hidden_act"] = own_activation(fields["hidden_act"])
    additions = {name: tree[name] for name in _ADDITIONS if name in tree} if kind == _PANGU_PI else _PLAIN
    return {"family": "pi"} | fields | additions


def read_theta(where: str, tree: dict[str, Any]) -> dict[str, Any]:
    """The rope_theta of a config.json, whichever key holds it.

    Raises:
        CheckpointError: positions are scaled, or two places name different values.
    """
    found = {"rope_theta": tree["rope_theta"]} if tree.get("rope_theta") is not None else {}
    for key in ROPE:
        rope = tree.get(key) or {}
        if not isinstance(rope, dict) or _is_scaled(rope):
            raise CheckpointError(
                f"{where}: {key}={rope!r}: must be null, or of type default with rope_theta alone; such a model is not"
                " supported"
            )
        if rope.get("rope_theta") is not None:
            found[f"{key}.rope_theta"] = rope["rope_theta"]
    values = list(found.values())
    if any(value != values[0] for value in values):
        said = ", ".join(f"{name}={value!r}" for name, value in found.items())
        raise CheckpointError(f"{where}: {said}: must be equal; remove the one that the model was not trained with")
    return {"rope_theta": values[0]} if values else {}


def _is_scaled(rope: dict[str, Any]) -> bool:
    """Whether anything in a rope section except theta may change what the model computes."""
    if any(rope.get(key) not in (None, "default") for key in _ROPE_KINDS):
        return True
    return any(
        value is not None and _UNSCALED.get(key) != value
        for key, value in rope.items()
        if key not in (*_ROPE_KINDS, "rope_theta")
    )


def write_config(config: PiConfig) -> dict[str, Any]:
    """The config.json of a model: in LLaMA's form if the model is a plain LLaMA, otherwise with our additional keys,
    which no other program knows."""
    plain = all(getattr(config, name) == value for name, value in _PLAIN.items())
    tree = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    tree["hidden_act"] = written_activation(config.hidden_act)
    tree |= {"model_type": _LLAMA, "architectures": ["LlamaForCausalLM"]} if plain else {"model_type": _PANGU_PI}
    return tree | ({} if plain else {name: getattr(config, name) for name in _ADDITIONS})


def tied(config: ModelConfig) -> dict[str, str]:
    """See Format.copies: the head, unless the model has one of its own."""
    is_tied = "head.weight" not in config.parameters()
    return {"lm_head.weight": "model.embed_tokens.weight"} if is_tied else {}


FORMATS = {
    "huggingface": Format(
        _huggingface,
        ignored=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
        copies=tied,
        writes_copies=False,  # transformers ties the head itself
        model_types=tuple(_DEFAULTS),
        read_config=read_config,
        write_config=write_config,
    ),
    "mindformers": MINDFORMERS,
}
GGUF = gguf.describe
