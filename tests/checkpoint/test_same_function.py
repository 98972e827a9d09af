"""The function of the weights in each format, computed in numpy float64 as the programs of the format compute it, by
their names and layouts: the same logits as those of our definition with the converted weights. It includes what a
renaming can get wrong without an error: where the final norm stands, which matrices are transposed, the tied head."""

import dataclasses

import numpy as np
import pytest

from pangu_ms.models.registry import FAMILIES
from tests.models import alpha, pi
from tests.reference import alpha_numpy, pi_numpy

pytestmark = pytest.mark.fast


def layer_norm(x, scale, shift, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale + shift


def attend(q, k, v, num_heads, num_kv_heads):
    """Causal attention; all of [S, heads * D]."""
    length, size = len(q), q.shape[1] // num_heads
    q, k, v = (x.reshape(length, -1, size).swapaxes(0, 1) for x in (q, k, v))
    k, v = (np.repeat(x, num_heads // num_kv_heads, axis=0) for x in (k, v))
    scores = np.where(np.tri(length), q @ k.swapaxes(1, 2) / np.sqrt(size), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(length, -1)


def fast_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def port(config, t, ids):
    """GPTPanguForCausalLM of the community's ports: torch's Linear, ln_f before the last block."""

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], config.layer_norm_eps)

    x = t["transformer.wte.weight"][ids] + t["transformer.wpe.weight"][: len(ids)]
    for i in range(config.num_layers):
        block, is_last = f"transformer.h.{i}", i == config.num_layers - 1
        x = norm("transformer.ln_f", x) if is_last else x
        h = norm(f"{block}.ln_1", x)
        q = linear(f"{block}.attn.q_proj", t["transformer.wqe.weight"][: len(ids)] if is_last else h)
        k, v = (linear(f"{block}.attn.{name}_proj", h) for name in "kv")
        x = x + linear(f"{block}.attn.c_proj", attend(q, k, v, config.num_heads, config.num_heads))
        x = x + linear(f"{block}.mlp.c_proj", fast_gelu(linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x))))
    return x @ t["lm_head.weight"].T


def zoo(config, t, ids):
    """PanguAlphaModel of the official code and of MindFormers' pangualpha: Dense is [out, in], Mapping [in, out]; the
    final norm before the query layer, which has a name of its own; the word table as the head."""

    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def mapping(name, x):
        return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    def norm(name, x):
        return layer_norm(x, t[f"{name}.gamma"], t[f"{name}.beta"], config.layer_norm_eps)

    def layer(name, x, query):
        h = norm(f"{name}.layernorm1", x)
        q = dense(f"{name}.attention.dense1", h if query is None else query)
        k, v = dense(f"{name}.attention.dense2", h), dense(f"{name}.attention.dense3", h)
        x = x + mapping(f"{name}.attention.projection", attend(q, k, v, config.num_heads, config.num_heads))
        inner = fast_gelu(mapping(f"{name}.output.mapping", norm(f"{name}.layernorm2", x)))
        return x + mapping(f"{name}.output.projection", inner)

    words = t["backbone.embedding.word_embedding.embedding_table"]
    x = words[ids] + t["backbone.embedding.position_embedding.embedding_table"][: len(ids)]
    for i in range(config.num_layers - 1):
        x = layer(f"backbone.blocks.{i}", x, None)
    queries = t["backbone.top_query_embedding.embedding_table"][: len(ids)]
    return layer("backbone.top_query_layer", norm("backbone.layernorm", x), queries) @ words.T


def megatron(config, t, ids):
    """PanGu-alpha's port to Megatron-LM and CodeGeeX: torch's Linear, final_layernorm before topQueryLayer."""

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        return layer_norm(x, t[f"{name}.weight"], t[f"{name}.bias"], config.layer_norm_eps)

    def layer(name, x, query):
        h = norm(f"{name}.input_layernorm", x)
        q = linear(f"{name}.attention.query", h if query is None else query)
        k, v = linear(f"{name}.attention.key", h), linear(f"{name}.attention.value", h)
        x = x + linear(f"{name}.attention.dense", attend(q, k, v, config.num_heads, config.num_heads))
        inner = fast_gelu(linear(f"{name}.mlp.dense_h_to_4h", norm(f"{name}.post_attention_layernorm", x)))
        return x + linear(f"{name}.mlp.dense_4h_to_h", inner)

    words = t["language_model.embedding.word_embeddings.weight"]
    x = words[ids] + t["language_model.embedding.position_embeddings.weight"][: len(ids)]
    for i in range(config.num_layers - 1):
        x = layer(f"language_model.transformer.layers.{i}", x, None)
    queries = t["language_model.topQueryEmbedding.top_query_embeddings.weight"][: len(ids)]
    x = norm("language_model.transformer.final_layernorm", x)
    return layer("language_model.transformer.topQueryLayer", x, queries) @ words.T


def llama(config, t, ids):
    """LlamaForCausalLM, and openPangu-Embedded's class, which has biases."""

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    def norm(name, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * t[f"{name}.weight"]

    def rotate(x):
        size = config.head_dim
        angles = np.outer(np.arange(len(x)), config.rope_theta ** (-np.arange(0, size, 2) / size))
        cosine, sine = (np.tile(f(angles), 2)[:, None] for f in (np.cos, np.sin))
        x = x.reshape(len(x), -1, size)
        half = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
        return (x * cosine + half * sine).reshape(len(x), -1)

    x = t["model.embed_tokens.weight"][ids]
    for i in range(config.num_layers):
        layer = f"model.layers.{i}"
        h = norm(f"{layer}.input_layernorm", x)
        q, k, v = (linear(f"{layer}.self_attn.{name}_proj", h) for name in "qkv")
        attended = attend(rotate(q), rotate(k), v, config.num_heads, config.num_kv_heads)
        x = x + linear(f"{layer}.self_attn.o_proj", attended)
        h = norm(f"{layer}.post_attention_layernorm", x)
        gate = linear(f"{layer}.mlp.gate_proj", h)
        x = x + linear(f"{layer}.mlp.down_proj", gate / (1 + np.exp(-gate)) * linear(f"{layer}.mlp.up_proj", h))
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return norm("model.norm", x) @ t[head].T


ALPHA = alpha.small(hidden_act="fast_gelu")
CASES = {
    "official": ("official", ALPHA, zoo, alpha_numpy),
    "ports": ("huggingface", ALPHA, port, alpha_numpy),
    "megatron": ("megatron", ALPHA, megatron, alpha_numpy),
    "llama": ("huggingface", pi.small(num_kv_heads=2, rope_theta=77.0), llama, pi_numpy),
    "tied": ("huggingface", pi.small(tie_word_embeddings=True, head_dim=6), llama, pi_numpy),
    "openpangu": ("huggingface", pi.small(attention_bias=True, rms_norm_eps=1e-2), llama, pi_numpy),
}


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_the_other_program(case):
    format, config, forward, ours = CASES[case]
    module = alpha if config.family == "alpha" else pi
    weights = module.random_parameters(config, deviation=0.2)
    naming = FAMILIES[config.family].formats[format]
    foreign = naming.to_foreign("here", weights, config)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, 13)
    theirs = forward(config, {name: array.astype(np.float64) for name, array in foreign.items()}, ids)
    back = naming.to_ours("there", foreign, config)
    np.testing.assert_allclose(ours.forward(config, back, ids[None], None)[0], theirs, atol=1e-9)


def test_a_final_norm_behind_the_query_layer_is_another_function():
    """So that config.json must not name a port for it."""
    weights, ids = alpha.random_parameters(ALPHA, deviation=0.2), np.arange(13)[None]
    behind = dataclasses.replace(ALPHA, final_norm_position="after_query")
    one, other = (alpha_numpy.forward(config, weights, ids, None) for config in (ALPHA, behind))
    assert np.abs(one - other).max() > 0.1
    written = FAMILIES["alpha"].formats["huggingface"].write_config
    assert [written(config)["model_type"] for config in (ALPHA, behind)] == ["gpt_pangu", "pangu_alpha"]
