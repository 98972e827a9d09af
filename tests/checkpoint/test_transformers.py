"""transformers as the judge, end to end through the command line: a LLaMA with its tokenizer in, the same logits and
tokens; out again, and it loads there."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, store
from pangu_ms.cli.main import main
from pangu_ms.config.load import config_from_dict
from pangu_ms.core.errors import CheckpointError
from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer
from pangu_ms.models.pi import weights as names_pi
from tests.checkpoint.tokenizers import IDS, read_json
from tests.data.common import STORED
from tests.models.alpha import our_logits
from tests.models.pi import random_parameters
from tests.reference.make_tokenizer_golden import CHINESE, CODE, PROSE, TEXTS, write_files
from tests.reference.read_with_transformers import PROBE, PROMPT

needs_both = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="needs torch and transformers: the extra [hf]",
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("transformers")


@pytest.fixture(scope="module")
def read(place):
    """What transformers makes of LLaMAs of two variants, of them after a round trip, and of a model and tokenizer of
    our own."""
    from tests.reference.make_llama_golden import random_llama

    for variant in ("extended", "llama3"):
        stored = STORED[variant]["files"]
        llama = random_llama(SIZES | stored["config.json"] | {"bos_token_id": None, "eos_token_id": None}, seed=0)
        llama.save_pretrained(place / variant)
        kept = read_json(place / variant / "config.json")
        write_files(stored | {"config.json": kept | stored["config.json"]}, place / variant)
        assert (
            main(["convert", str(place / variant), "--from", "huggingface", "--output", str(place / f"{variant}-ours")])
            == 0
        )
        convert.export_file(place / f"{variant}-ours", "huggingface", place / f"{variant}-back", max_shard_bytes=20_000)
    assert (
        main(
            [
                "convert",
                str(place / "extended-ours"),
                "--to",
                "huggingface",
                "--dtype",
                "bfloat16",
                "--output",
                str(place / "extended-half"),
            ]
        )
        == 0
    )
    train_tokenizer([CODE, PROSE, CHINESE] * 20, 420, "none").save(place / "tokenizer")
    sizes = {
        "vocab_size": 420,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_hidden_size": 40,
        "seq_length": 64,
    }
    config = config_from_dict({"model": sizes | {"family": "pi", "siaf_terms": 1, "aug_shortcut_branches": 0}}, "here")
    store.save(
        place / "own-ours",
        0,
        {"model": random_parameters(config.model, deviation=0.1)},
        {},
        config,
        place / "tokenizer",
    )
    assert main(["convert", str(place / "own-ours"), "--to", "huggingface", "--output", str(place / "own-back")]) == 0
    names = ["extended", "extended-back", "extended-half", "llama3", "llama3-back", "own-back"]
    command = [sys.executable, "-m", "tests.reference.read_with_transformers", *(str(place / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found[str(place / name)] for name in names}


def logits_of(checkpoint):
    return our_logits(checkpoint.config().model, checkpoint.tensors(), np.array([PROBE], np.int32), False)[0]


@pytest.mark.slow
@needs_both
@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("name", ["extended", "llama3", "own"])
def test_logits_and_ids_are_the_same_here_and_there(read, place, name):
    checkpoint, there = store.open_checkpoint(place / f"{name}-ours"), read[f"{name}-back"]
    np.testing.assert_allclose(logits_of(checkpoint), there["logits"], atol=1e-5, rtol=1e-5)
    tokenizer = Tokenizer.load(checkpoint.tokenizer_path())
    assert [tokenizer.encode_prompt(text) for text in TEXTS] == there["ids"]
    assert not there["missing"] and there["dtype"] == "torch.float32"
    if name != "own":
        for what in ("logits", "ids", "tokens"):
            assert there[what] == read[name][what], what
        generation = STORED[name]["files"]["generation_config.json"]
        assert there["config"] == list(IDS[name]) and there["generation"][1] == generation["eos_token_id"]
        assert there["tokens"] == [IDS[name][0], tokenizer.eod_id, IDS[name][2]]
    else:
        assert there["config"] == there["generation"] == [1, [5, 6], 4] and there["tokens"] == [1, 5, 4]


@pytest.mark.slow
@needs_both
def test_the_dtype_is_what_was_asked(read):
    half, whole = read["extended-half"], read["extended"]
    assert half["dtype"] == "torch.bfloat16" and half["ids"] == whole["ids"] and not half["missing"]
    np.testing.assert_allclose(half["logits"], whole["logits"], atol=0.05 * np.abs(whole["logits"]).max())


@pytest.mark.slow
@needs_both
def test_generate_writes_with_the_tokenizer_that_came_along(read, place, capsys):
    greedy = ["--prompt", PROMPT, "--temperature", "0", "--max-new-tokens", "12", "--json"]
    assert main(["generate", str(place / "extended-ours"), *greedy]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["token_ids"] == read["extended"]["continued"] and len(told["token_ids"]) > 3


# Real files as they are published, but for the size of things.
LLAMA2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 61,
}
OPENPANGU = {
    "architectures": ["PanguEmbeddedForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig"},
    "bias": True,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": 45892,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "max_position_embeddings": 32768,
    "model_type": "PanguEmbedded",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 16000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.53.2",
    "use_cache": True,
    "vocab_size": 61,
}
SMOLLM = LLAMA2 | {
    "is_llama_config": True,
    "rope_interleaved": False,
    "rope_theta": 1e5,
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
}
VICUNA = LLAMA2 | {
    "max_sequence_length": 2048,
    "pad_token_id": 0,
    "_attn_implementation_autoset": True,
    "unsloth_fixed": True,
    "mlp_bias": False,
    "attention_dropout": 0.1,
}
LLAMA31 = LLAMA2 | {
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
}


@pytest.mark.parametrize("tree", [LLAMA2, OPENPANGU, SMOLLM, VICUNA])
def test_published_configs_are_understood(tree):
    fields = names_pi.read_config("config.json", tree)
    assert (
        fields["rope_theta"] == tree.get("rope_theta", 1e4)
        and fields["attention_bias"] == tree.get("bias", False)
        and fields["num_heads"] == 4
    )
    assert config_from_dict({"model": fields}, "here").model.seq_length == tree["max_position_embeddings"]


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (LLAMA31, "rope_scaling"),
        (LLAMA2 | {"rope_interleaved": True}, "rope_interleaved"),
        (LLAMA2 | {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        (LLAMA2 | {"sliding_window": 4096}, "sliding_window"),
        (LLAMA2 | {"is_encoder_decoder": True}, "is_encoder_decoder"),
        (LLAMA2 | {"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_published_configs_that_compute_something_else_are_refused_by_name(tree, name):
    with pytest.raises(CheckpointError, match=f"config.json: {name}="):
        names_pi.read_config("config.json", tree)


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
def test_every_key_that_transformers_writes_by_itself_is_understood():
    """Whatever its value: keys that change the function are null or false there."""
    code = "import json; from transformers import LlamaConfig; print(json.dumps(LlamaConfig(num_labels=3).to_dict()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert names_pi.read_config("config.json", json.loads(done.stdout.splitlines()[-1]))["hidden_size"] == 4096
