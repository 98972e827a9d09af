"""Hugging Face LLaMA directories: in, the same logits from our model; and out again, the same logits from
transformers."""

import json

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, store
from pangu_ms.cli.main import main
from pangu_ms.core.errors import CheckpointError, ConfigError
from tests.models.alpha import our_logits
from tests.reference.make_llama_golden import random_llama

pytest.importorskip("torch")
pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}
VARIANTS = {
    "grouped": {"num_key_value_heads": 2, "rope_theta": 1e6, "rms_norm_eps": 1e-2},
    "tied": {"tie_word_embeddings": True, "head_dim": 6, "hidden_act": "gelu"},
    "biased": {"num_key_value_heads": 1, "attention_bias": True, "rope_theta": 50.0},
}


def llama_logits(llama, ids):
    import torch

    with torch.no_grad():
        return llama(torch.tensor(ids, dtype=torch.int64)).logits.float().numpy()


def random_ids(rows=2, seed=1):
    return (
        np.random.default_rng(seed)
        .integers(0, SIZES["vocab_size"], (rows, SIZES["max_position_embeddings"]))
        .astype(np.int32)
    )


def load_llama(directory):
    """The model of a directory; every weight must be in it."""
    from transformers import LlamaForCausalLM

    llama, report = LlamaForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values())
    return llama.eval()


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_the_logits_stay(variant, tmp_path):
    llama, ids = random_llama(SIZES | VARIANTS[variant], seed=0), random_ids()
    llama.save_pretrained(tmp_path / "llama")
    step = convert.import_file(tmp_path / "llama", "huggingface", None, tmp_path / "ours")
    checkpoint = store.open_checkpoint(step)
    config, weights = checkpoint.config().model, checkpoint.tensors()
    for length in (7, config.seq_length):
        found = our_logits(config, weights, ids[:, :length], False)
        np.testing.assert_allclose(found, llama_logits(llama, ids[:, :length]), atol=1e-4)
    convert.export_file(tmp_path / "ours", "huggingface", tmp_path / "back")
    np.testing.assert_array_equal(llama_logits(load_llama(tmp_path / "back"), ids), llama_logits(llama, ids))
    sent, returned = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("llama", "back"))
    assert {name: returned.get(name) for name in SIZES} == {name: sent[name] for name in SIZES}


def test_released_weights_are_bfloat16_in_several_files(tmp_path):
    import torch

    llama = random_llama(SIZES | VARIANTS["grouped"], seed=0)
    llama.to(torch.bfloat16).save_pretrained(tmp_path / "llama", max_shard_size="20KB")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    assert main(["convert", str(tmp_path / "llama"), "--from", "huggingface", "--output", str(tmp_path / "ours")]) == 0
    weights = store.open_checkpoint(tmp_path / "ours").tensors()
    for ours, theirs in (
        ("word_embedding.weight", "embed_tokens.weight"),
        ("blocks.1.ffn.down.weight", "layers.1.mlp.down_proj.weight"),
    ):
        assert weights[ours].dtype == np.float32
        np.testing.assert_array_equal(weights[ours], llama.model.get_parameter(theirs).detach().float().numpy())
    assert len(weights) == len(llama.state_dict())


def test_what_config_json_leaves_out_is_as_in_transformers(tmp_path):
    from transformers import LlamaConfig

    random_llama(SIZES, seed=0).save_pretrained(tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    tree = {"model_type": "llama", **SIZES}
    path.write_text(json.dumps(tree))
    theirs = LlamaConfig.from_pretrained(tmp_path / "llama")
    ours = (
        store.open_checkpoint(convert.import_file(tmp_path / "llama", "huggingface", None, tmp_path / "ours"))
        .config()
        .model
    )
    for name in ("rms_norm_eps", "rope_theta", "head_dim", "hidden_act", "attention_bias", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.num_kv_heads == theirs.num_key_value_heads


def test_transformers_5_keeps_theta_elsewhere(tmp_path):
    random_llama(SIZES, seed=0).save_pretrained(tmp_path / "llama")
    tree = {"model_type": "llama", **SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(tree))
    step = convert.import_file(tmp_path / "llama", "huggingface", None, tmp_path / "ours")
    assert store.open_checkpoint(step).config().model.rope_theta == 77


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        (
            "rope_parameters",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        ),  # the same as transformers 5 writes it
        ("mlp_bias", True),
        ("hidden_act", "relu"),
        ("model_type", "mistral"),
    ],
)
def test_a_llama_of_another_function_is_refused(key, value, tmp_path):
    """Its weights might fit ours, but they would compute something else."""
    random_llama(SIZES, seed=0).save_pretrained(tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises((CheckpointError, ConfigError), match=key):
        convert.import_file(tmp_path / "llama", "huggingface", None, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
