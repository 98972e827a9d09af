"""Pangu Pro MoE's weights and config.json as they are published, and back. No mindspore."""

import json

import numpy as np
import pytest

from pangu_ms.checkpoint import store
from pangu_ms.cli.main import main
from pangu_ms.config.load import config_from_dict
from pangu_ms.core.errors import CheckpointError
from pangu_ms.models.moge.config import MogeConfig
from pangu_ms.models.registry import FAMILIES
from tests.models.moge import random_parameters, small

pytestmark = pytest.mark.fast
NAMING = FAMILIES["moge"].formats["huggingface"]
LAYERS, WIDTH, HEADS, HEAD, EXPERTS, INNER, SHARED, VOCAB = 2, 32, 4, 8, 16, 20, 28, 61
PUBLISHED = {
    "model_type": "PanguProMoE",
    "architectures": ["PanguProMoEForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_pangu_moe.PanguProMoEConfig"},
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 24,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "use_cache": True,
    "tie_word_embeddings": False,
    "rope_theta": 16000000.0,
    "moe_intermediate_size": INNER,
    "shared_expert_intermediate_size": SHARED,
    "num_experts_per_tok": 8,
    "num_experts": EXPERTS,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "bos_token_id": 1,
    "eos_token_id": 45892,
}
"""A small config.json with the keys of the published class."""


def published_shapes():
    """Names and shapes of the published weights, written from vllm-ascend's loader."""
    shapes = {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCAB, WIDTH),
    }
    for layer in (f"model.layers.{i}" for i in range(LAYERS)):
        for name, rows, columns in (("q", 32, 32), ("k", 16, 32), ("v", 16, 32), ("o", 32, 32)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, columns)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (WIDTH,)
        shapes[f"{layer}.mlp.gate.weight"], shapes[f"{layer}.mlp.router_scale"] = (EXPERTS, WIDTH), (1, EXPERTS)
        networks = [(f"experts.{e}", INNER) for e in range(EXPERTS)] + [("shared_expert", SHARED)]
        for name, inner in networks:
            shapes[f"{layer}.mlp.{name}.gate_proj.weight"] = shapes[f"{layer}.mlp.{name}.up_proj.weight"] = (
                inner,
                WIDTH,
            )
            shapes[f"{layer}.mlp.{name}.down_proj.weight"] = (WIDTH, inner)
    return shapes


@pytest.fixture(scope="module")
def published():
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in published_shapes().items()}


def test_each_expert_is_a_tensor_of_its_own(published):
    config = config_from_dict({"model": NAMING.read_config("config.json", PUBLISHED)}, "config.json").model
    assert (config.num_expert_groups, config.experts_per_token, config.attention_bias) == (8, 8, True)
    ours = NAMING.to_ours("w", dict(published), config)
    assert list(ours) == list(config.parameter_shapes())
    for e in (0, 5, 15):
        for name in ("gate", "up", "down"):
            theirs = published[f"model.layers.1.mlp.experts.{e}.{name}_proj.weight"]
            assert np.array_equal(ours[f"blocks.1.ffn.experts.{name}.weight"][e], theirs)
    assert np.array_equal(ours["blocks.0.ffn.router.weight"], published["model.layers.0.mlp.gate.weight"])
    assert np.array_equal(ours["blocks.0.ffn.router.scale"], published["model.layers.0.mlp.router_scale"])
    back = NAMING.to_foreign("w", ours, config)
    assert back.keys() == published.keys() and all(np.array_equal(back[name], published[name]) for name in back)


def test_a_directory_comes_and_goes(published, tmp_path):
    from safetensors.numpy import save_file

    directory = tmp_path / "published"
    directory.mkdir()
    save_file(published, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(PUBLISHED))
    words = ["--from", "huggingface", "--output", str(tmp_path / "ours")]
    assert main(["convert", str(directory), *words]) == 0
    found = store.open_checkpoint(tmp_path / "ours")
    assert isinstance(found.config().model, MogeConfig)
    assert main(["convert", str(tmp_path / "ours"), "--to", "huggingface", "--output", str(tmp_path / "back")]) == 0
    written = json.loads((tmp_path / "back/config.json").read_text())
    ignored = {"auto_map", "initializer_range", "use_cache", "output_router_logits", "bos_token_id", "eos_token_id"}
    assert {key: written[key] for key in PUBLISHED.keys() - ignored} == {
        key: value for key, value in PUBLISHED.items() if key not in ignored
    }
    assert main(["convert", str(tmp_path / "back"), "--from", "huggingface", "--output", str(tmp_path / "again")]) == 0
    again = store.open_checkpoint(tmp_path / "again").tensors()
    assert all(np.array_equal(again[name], array) for name, array in found.tensors().items())


def test_a_missing_expert_is_named(published):
    config = config_from_dict({"model": NAMING.read_config("config.json", PUBLISHED)}, "config.json").model
    del published["model.layers.1.mlp.experts.7.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: model\.layers\.1\.mlp\.experts\.7\.up_proj\.weight"):
        NAMING.to_ours("w", published, config)


def test_keys_that_are_left_out_have_the_published_defaults():
    sizes = {"hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40}
    read = NAMING.read_config("config.json", {"model_type": "PanguProMoE"} | sizes)
    found = config_from_dict({"model": read}, "config.json").model
    from pangu_ms.config import load_config

    published = load_config("moge/72b").model
    assert {name for name in found.field_names() if getattr(found, name) != getattr(published, name)} == {
        "compute_dtype"
    }


def test_what_the_published_code_does_not_compute_has_another_type():
    for fields in ({"num_expert_groups": 3}, {"aug_shortcut_branches": 1, "aug_shortcut_reduction": 2}):
        config = small(**fields)
        tree = NAMING.write_config(config)
        assert tree["model_type"] == "pangu_moge" and "architectures" not in tree
        read = NAMING.read_config("config.json", json.loads(json.dumps(tree)))
        assert config_from_dict({"model": read}, "config.json").model == config
        tensors = random_parameters(config)
        back = NAMING.to_ours("w", NAMING.to_foreign("w", tensors, config), config)
        assert all(np.array_equal(back[name], array) for name, array in tensors.items())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob='True': is not understood"),
        ({"mlp_only_layers": [3]}, "mlp_only_layers='[3]': is not understood"),
        ({"routed_scaling_factor": 2.5}, "routed_scaling_factor='2.5': is not understood"),
        ({"intermediate_size": 99}, "intermediate_size='99': is not understood"),
        ({"num_experts_per_tok": 16}, "num_experts_per_tok=16: must be 8 in a PanguProMoE"),
        ({"attention_bias": False}, "attention_bias=False: must be true in a PanguProMoE"),
        ({"shared_expert_intermediate_size": 0}, "a model without a shared expert is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "must be null, or of type default"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_key_that_changes_the_function_is_refused_by_name(keys, message):
    with pytest.raises(CheckpointError) as error:
        NAMING.read_config("config.json", PUBLISHED | keys)
    assert message in str(error.value)
