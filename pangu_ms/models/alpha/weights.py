"""Foreign parameter names of PanGu-alpha. Source: specification A7.1 (official) and A7.3 (Hugging Face ports).

The official query, key and value are [out, in] (MindSpore Dense); its other matrices are [in, out] (class Mapping). The
Hugging Face ports store torch Linear, [out, in] throughout, as we do. Their last block, h.{num_layers - 1}, is the
query layer.

A prefix such as `network.` is not stripped: no known release has one, and a name that is not in the table must be
reported, not guessed.
"""

from typing import Any

from pangu_ms.models.alpha.config import AlphaConfig
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.models.common.config_json import own_activation, require_understood, written_activation
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


_MODEL_TYPE = "pangu_alpha"
# Keys of config.json -> our fields.
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


def read_config(where: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Fields of AlphaConfig from a config.json that `write_config` made."""
    require_understood(where, tree, {*_FIELDS, "tie_word_embeddings"})
    fields = {ours: tree[theirs] for theirs, ours in _FIELDS.items() if tree.get(theirs) is not None}
    if "hidden_act" in fields:
        fields["hidden_act"] = own_activation(fields["hidden_act"])
    return {"family": "alpha"} | fields


def write_config(config: AlphaConfig) -> dict[str, Any]:
    """The config.json of a model, in a form that no other program knows."""
    tree = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    return tree | {
        "hidden_act": written_activation(config.hidden_act),
        "model_type": _MODEL_TYPE,
        "tie_word_embeddings": True,
    }


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
        model_types=(_MODEL_TYPE,),
        read_config=read_config,
        write_config=write_config,
    ),
    "mindformers": MINDFORMERS,
}
