"""Foreign parameter names of PanGu-alpha. Source: specification A7.1 (official), A7.3 (Hugging Face ports) and A7.4
(Megatron).

The official query, key and value are [out, in] (MindSpore Dense); its other matrices are [in, out] (class Mapping). The
Hugging Face ports and Megatron's store torch Linear, [out, in] throughout, as we do. The last block of the former,
h.{num_layers - 1}, is the query layer; the latter count it apart, so that their num_layers is one less.

A prefix such as `network.` is not stripped: no known release has one, and a name that is not in the table must be
reported, not guessed.
"""

from dataclasses import replace
from typing import Any

from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.config_json import own_activation, require_understood, written_activation
from pangu_ms.models.common.gguf import absent
from pangu_ms.models.common.weights import MINDFORMERS, Format, Rule, linear, norm, under

_GAMMA_BETA = ("gamma", "beta")

_OFFICIAL_LAYER = [
    *norm("attention_norm", "layernorm1", _GAMMA_BETA),
    *linear("attention.query", "attention.dense1"),
    *linear("attention.key", "attention.dense2"),
    *linear("attention.value", "attention.dense3"),
    *linear("attention.output", "attention.projection", transpose=True),
    *norm("ffn_norm", "layernorm2", _GAMMA_BETA),
    *linear("ffn.up", "output.mapping", transpose=True),
    *linear("ffn.down", "output.projection", transpose=True),
]

_HUGGINGFACE_LAYER = [
    *norm("attention_norm", "ln_1"),
    *linear("attention.query", "attn.q_proj"),
    *linear("attention.key", "attn.k_proj"),
    *linear("attention.value", "attn.v_proj"),
    *linear("attention.output", "attn.c_proj"),
    *norm("ffn_norm", "ln_2"),
    *linear("ffn.up", "mlp.c_fc"),
    *linear("ffn.down", "mlp.c_proj"),
]

_MEGATRON_LAYER = [
    *norm("attention_norm", "input_layernorm"),
    *linear("attention.query", "attention.query"),
    *linear("attention.key", "attention.key"),
    *linear("attention.value", "attention.value"),
    *linear("attention.output", "attention.dense"),
    *norm("ffn_norm", "post_attention_layernorm"),
    *linear("ffn.up", "mlp.dense_h_to_4h"),
    *linear("ffn.down", "mlp.dense_4h_to_h"),
]


_OURS, _PORTS = "pangu_alpha", ("gpt_pangu", "pangu")
"""Values of model_type: in configurations that only this package reads; in those of the community's ports (the first is
the one that their class has, the second stands in their own config.json files)."""
# Keys of config.json -> our fields; those of the ports are those of GPTPanguConfig.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "seq_length",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "final_norm_position": "final_norm_position",
    "dropout": "dropout",
}
_PORT_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "intermediate_size": "ffn_hidden_size",
    "max_position_embeddings": "seq_length",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "dropout",
}
# What the ports' class has for keys that a config.json leaves out. The sizes differ from port to port.
_PORT_DEFAULTS = {"hidden_act": "gelu_erf", "seq_length": 1024, "layer_norm_eps": 1e-5, "dropout": 0.1}
_PORT_DEFAULTS |= {"final_norm_position": "before_query"}
_PORT_HARMLESS = (
    "model_name_or_path",
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
)
"""A name, and keys of a head that language models do not have."""


def read_config(where: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Fields of AlphaConfig from a config.json of this package or of a port."""
    if tree["model_type"] in _PORTS:
        return _read_port(where, tree)
    require_understood(where, tree, {*_FIELDS, "tie_word_embeddings"})
    return {"family": "alpha"} | _renamed(tree, _FIELDS)


def _read_port(where: str, tree: dict[str, Any]) -> dict[str, Any]:
    if tree.get("scale_attn_weights") not in (None, True):
        found = tree["scale_attn_weights"]
        raise CheckpointError(f"{where}: scale_attn_weights={found!r}: must be true; such a model is not supported")
    known = {*_PORT_FIELDS, *_PORT_HARMLESS, "scale_attn_weights", "tie_word_embeddings"}
    require_understood(where, tree, known)
    fields = _renamed(tree, _PORT_FIELDS)
    needless = {*fields, *_PORT_DEFAULTS, "ffn_hidden_size"}
    lacking = [key for key, field in _PORT_FIELDS.items() if field not in needless]
    if lacking:
        raise CheckpointError(
            f"{where}: has no {', '.join(lacking)}; the ports differ in what they take instead; add what the model was"
            " trained with"
        )
    return {"family": "alpha"} | _PORT_DEFAULTS | fields


def _renamed(tree: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    fields = {ours: tree[theirs] for theirs, ours in names.items() if tree.get(theirs) is not None}
    if "hidden_act" in fields:
        fields["hidden_act"] = own_activation(fields["hidden_act"])
    return fields


def write_config(config: AlphaConfig) -> dict[str, Any]:
    """The config.json of a model: that of the community's ports if they compute it, otherwise one that no other program
    knows."""
    is_ported = config.final_norm_position == "before_query"
    names = _PORT_FIELDS if is_ported else _FIELDS
    tree = {theirs: getattr(config, ours) for theirs, ours in names.items()}
    act = {theirs: written_activation(config.hidden_act) for theirs, ours in names.items() if ours == "hidden_act"}
    tree |= act | {"model_type": _PORTS[0] if is_ported else _OURS, "tie_word_embeddings": True}
    further = {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout, "scale_attn_weights": True}
    return tree | (further if is_ported else {})


def _layers(config: ModelConfig, block: str, query_layer: str, table: list[Rule]) -> list[Rule]:
    blocks = [rule for i in range(config.num_layers - 1) for rule in under(f"blocks.{i}", block.format(i), table)]
    return blocks + under("query_layer", query_layer, table)


def _official(config: ModelConfig) -> list[Rule]:
    return [
        Rule("word_embedding.weight", "backbone.embedding.word_embedding.embedding_table"),
        Rule("position_embedding.weight", "backbone.embedding.position_embedding.embedding_table"),
        Rule("query_embedding.weight", "backbone.top_query_embedding.embedding_table"),
        *_layers(config, "backbone.blocks.{}", "backbone.top_query_layer", _OFFICIAL_LAYER),
        *norm("final_norm", "backbone.layernorm", _GAMMA_BETA),
    ]


def _huggingface(config: ModelConfig) -> list[Rule]:
    return [
        Rule("word_embedding.weight", "transformer.wte.weight"),
        Rule("position_embedding.weight", "transformer.wpe.weight"),
        Rule("query_embedding.weight", "transformer.wqe.weight"),
        *_layers(config, "transformer.h.{}", f"transformer.h.{config.num_layers - 1}", _HUGGINGFACE_LAYER),
        *norm("final_norm", "transformer.ln_f"),
    ]


def _megatron(config: ModelConfig) -> list[Rule]:
    model = "language_model"
    return [
        Rule("word_embedding.weight", f"{model}.embedding.word_embeddings.weight"),
        Rule("position_embedding.weight", f"{model}.embedding.position_embeddings.weight"),
        Rule("query_embedding.weight", f"{model}.topQueryEmbedding.top_query_embeddings.weight"),
        *_layers(config, f"{model}.transformer.layers.{{}}", f"{model}.transformer.topQueryLayer", _MEGATRON_LAYER),
        *norm("final_norm", f"{model}.transformer.final_layernorm"),
    ]


FORMATS = {
    "official": Format(
        _official,
        aliases=(
            # The 2021 class Mapping.
            (r"(.+\.(?:attention\.projection|output\.mapping|output\.projection))\.mapping_(weight|bias)", r"\1.\2"),
            # The 2021 network and its numpy dump.
            (
                r"backbone\.(word|position)_embedding\.embedding_table",
                r"backbone.embedding.\1_embedding.embedding_table",
            ),
            # Embeddings that were loaded from .npy files.
            (r"(?:backbone\.)?(word|position)_embedding_table", r"backbone.embedding.\1_embedding.embedding_table"),
            (r"(?:backbone\.)?query_embedding_table", r"backbone.top_query_embedding.embedding_table"),
        ),
        ignored=(
            r".+\.(key_past|value_past)",  # buffers of incremental inference
            r"(adam_m|adam_v|accu_grads)\..+",  # optimizer and accumulated gradients
            r"epoch_num|step_num|global_step|loss_scale",
        ),
        npy_files=(
            ("top_query_embedding.npy", "backbone.top_query_embedding.embedding_table"),
            ("word_embedding.npy", "backbone.embedding.word_embedding.embedding_table"),
            ("position_embedding.npy", "backbone.embedding.position_embedding.embedding_table"),
        ),
    ),
    "huggingface": Format(
        _huggingface,
        aliases=((r"(transformer\.h\.\d+\.attn)\.out_proj\.(weight|bias)", r"\1.c_proj.\2"),),
        ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),  # buffers: causal mask and its fill value
        copies=lambda config: {"lm_head.weight": "transformer.wte.weight"},
        model_types=(_OURS, *_PORTS),
        read_config=read_config,
        write_config=write_config,
    ),
    "megatron": Format(
        _megatron,
        aliases=(
            (r"(?:(?:model|module)\.)+(language_model\..+)", r"\1"),  # wrappers for float16 and data parallelism
            (r"language_model\.encoder\.(.+)", r"language_model.transformer.\1"),  # since Megatron-LM 2.2
            (r"(.+)\.self_attention\.(.+)", r"\1.attention.\2"),
        ),
        ignored=(r".+\._extra_state",),  # of Transformer Engine
        tensor_parallel=True,
    ),
    "mindformers": MINDFORMERS,
}
# PanguAlphaHeadModel of MindFormers 1.0 to 1.3, with what its trainer adds to the files.
_PANGUALPHA = replace(FORMATS["official"], ignored=FORMATS["official"].ignored + MINDFORMERS.ignored)
FORMATS["mindformers"] = replace(MINDFORMERS, earlier=("backbone.", _PANGUALPHA))
GGUF = absent("query layer")
