"""PanGu-pi for llama.cpp: without its own parts it is a LLaMA, with biases an openPangu-Embedded.

Source: llama.cpp, src/models/llama.cpp and pangu-embedded.cpp; gguf-py/gguf/constants.py for keys and names.
"""

from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.common.gguf import GgufModel
from pangu_ms.models.common.weights import foreign_name
from pangu_ms.models.pi.config import PiConfig

_NAMES = {
    r"word_embedding\.": "token_embd.",
    r"final_norm\.": "output_norm.",
    r"head\.": "output.",
    r"blocks\.(\d+)\.attention_norm\.": r"blk.\1.attn_norm.",
    r"blocks\.(\d+)\.ffn_norm\.": r"blk.\1.ffn_norm.",
    r"blocks\.(\d+)\.attention\.output\.": r"blk.\1.attn_output.",
    r"blocks\.(\d+)\.attention\.(.)\w+\.": r"blk.\1.attn_\2.",  # query, key, value
    r"blocks\.(\d+)\.ffn\.(\w+)\.": r"blk.\1.ffn_\2.",  # gate, up, down
}
"""Pattern of our name -> GGUF's name; the first pattern that matches is used, so the order matters."""


def describe(config: PiConfig) -> GgufModel:
    """See Describe."""
    _require_llama(config)
    fields = {
        "vocab_size": config.vocab_size,
        "context_length": config.seq_length,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.ffn_hidden_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    names = {name: foreign_name(name, _NAMES) for name in config.parameters()}
    if config.attention_bias:
        return GgufModel("pangu-embedded", fields, names)  # it rotates the channels that we rotate
    heads = {"query": config.num_heads, "key": config.num_kv_heads}
    interleaved = {
        f"blocks.{i}.attention.{name}.weight": number
        for i in range(config.num_layers)
        for name, number in heads.items()
    }
    return GgufModel("llama", fields, names, interleaved)


def _require_llama(config: PiConfig) -> None:
    rules = {
        "siaf_terms": (1, "no series activation"),
        "aug_shortcut_branches": (0, "no augmented shortcuts"),
        "hidden_act": ("silu", "no other gate than silu"),
    }
    for field, (allowed, reason) in rules.items():
        if getattr(config, field) != allowed:
            raise CheckpointError(
                f"model.{field}={getattr(config, field)}: llama.cpp has {reason}, so that it would compute something"
                f" else; only models with {field}={allowed} can be written for it"
            )
