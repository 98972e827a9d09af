"""A Hugging Face directory's tokenizer comes along and goes out again; ids and texts are those that transformers gave
(see tests/data/test_huggingface.py)."""

import json

import numpy as np
import pytest
import safetensors.numpy

from pangu_ms.checkpoint import convert, foreign, store
from pangu_ms.cli.main import main
from pangu_ms.config.load import config_from_dict
from pangu_ms.data import huggingface_files
from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer
from pangu_ms.infer.load import load_tokenizer
from pangu_ms.models.pi import weights as names_pi
from tests.checkpoint.common import assert_same
from tests.checkpoint.tokenizers import IDS, read_json
from tests.data.common import STORED
from tests.models.pi import random_parameters, small
from tests.reference.make_tokenizer_golden import CHINESE, CODE, PROSE, TEXTS, write_files


def write_llama(directory, vocab_size, **config_json):
    """A Hugging Face directory with weights and config.json alone; returns the weights by our names."""
    config = small(vocab_size=vocab_size)
    weights = random_parameters(config)
    tree = names_pi.write_config(config) | config_json
    foreign.write_directory(
        directory,
        names_pi.FORMATS["huggingface"].to_foreign("here", weights, config),
        {"config.json": json.dumps(tree).encode()},
    )
    return weights


@pytest.fixture
def llama(tmp_path):
    """Makes the directory of a stored variant; returns it with its weights by our names."""

    def make(variant, **changed):
        stored = STORED[variant]["files"] | {
            name.replace("_json", ".json"): content for name, content in changed.items()
        }
        weights = write_llama(tmp_path / "hf", **stored["config.json"])
        write_files({name: content for name, content in stored.items() if name != "config.json"}, tmp_path / "hf")
        return tmp_path / "hf", weights

    return make


@pytest.mark.parametrize("variant", STORED)
def test_the_tokenizer_comes_along_and_goes_out_again(variant, llama, tmp_path, capsys):
    directory, weights = llama(variant)
    assert main(["convert", str(directory), "--from", "huggingface", "--output", str(tmp_path / "ours")]) == 0
    assert (
        f"tokenizer: {len(weights['word_embedding.weight'])} ids, bos {IDS[variant][0]}, eos {IDS[variant][1]}, pad"
        in capsys.readouterr().out
    )
    tokenizer = load_tokenizer(store.open_checkpoint(tmp_path / "ours"))  # as `pangu generate` does
    for text, ids, _ in STORED[variant]["texts"]:
        if variant != "openpangu" or "[unused10]" not in text:  # see tests/data/test_huggingface.py
            assert tokenizer.encode_prompt(text) == ids, text
    assert main(["convert", str(tmp_path / "ours"), "--to", "huggingface", "--output", str(tmp_path / "out")]) == 0
    assert "config.json: model_type=llama\n" in capsys.readouterr().out
    written = read_json(tmp_path / "out/config.json")
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == IDS[variant]
    generation = read_json(tmp_path / "out/generation_config.json")
    came = STORED[variant]["files"].get("generation_config.json")
    assert generation == (came or dict(zip(huggingface_files.TOKEN_IDS, IDS[variant])))
    for name in STORED[variant]["files"]:  # every file but config.json as it came
        assert name == "config.json" or (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes(), name
    assert main(["convert", str(tmp_path / "out"), "--from", "huggingface", "--output", str(tmp_path / "again")]) == 0
    again = store.open_checkpoint(tmp_path / "again")
    assert_same(again.tensors(), weights)
    back = load_tokenizer(again)
    assert [back.encode_prompt(text) for text in TEXTS] == [tokenizer.encode_prompt(text) for text in TEXTS]
    assert (back.stop_ids, back.pad_id, back.has_pad) == (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.has_pad)


def test_a_class_whose_code_came_beside_it_goes_out_as_a_llamas(llama, tmp_path):
    """openPangu's tokenizer_config.json names a Python file, which a checkpoint does not carry."""
    settings = STORED["openpangu"]["files"]["tokenizer_config.json"]
    custom = {
        "auto_map": {"AutoTokenizer": ["tokenization_openpangu.PanguTokenizer", None]},
        "tokenizer_class": "PanguTokenizer",
        "pad_token": "<unk>",
    }
    directory, _ = llama("openpangu", tokenizer_config_json=settings | custom)
    step = convert.import_file(directory, "huggingface", None, tmp_path / "ours")
    convert.export_file(step, "huggingface", tmp_path / "out")
    written = read_json(tmp_path / "out/tokenizer_config.json")
    assert written == settings | {"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>"}
    assert read_json(tmp_path / "out/config.json")["pad_token_id"] == 0
    there, back = Tokenizer.load(directory), Tokenizer.load(tmp_path / "out")
    assert back.fingerprint == there.fingerprint and back.encode_prompt(PROSE) == there.encode_prompt(PROSE)


def test_a_directory_without_a_tokenizer_still_converts(tmp_path, capsys):
    write_llama(tmp_path / "hf", 61)
    assert main(["convert", str(tmp_path / "hf"), "--from", "huggingface", "--output", str(tmp_path / "ours")]) == 0
    assert "tokenizer: none comes along; name one with --tokenizer" in capsys.readouterr().out
    assert store.open_checkpoint(tmp_path / "ours").tokenizer_path() is None
    assert main(["convert", str(tmp_path / "ours"), "--to", "huggingface", "--output", str(tmp_path / "out")]) == 0
    assert "tokenizer: the checkpoint has none" in capsys.readouterr().out
    written = read_json(tmp_path / "out/config.json")
    assert [written[name] for name in huggingface_files.TOKEN_IDS] == [
        None
    ] * 3  # else a LLaMA's 1 and 2 would be taken
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_a_tokenizer_that_cannot_be_read_and_both_ways_out(llama, tmp_path, capsys):
    settings = STORED["llama2"]["files"]["tokenizer_config.json"]
    directory, _ = llama("llama2", tokenizer_config_json=settings | {"tokenizer_class": "XLNetTokenizer"})
    command = ["convert", str(directory), "--from", "huggingface", "--output"]
    assert main([*command, str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert "XLNetTokenizer" in error and "or leave it out with --no-tokenizer" in error and error.count("\n") == 1
    assert not (tmp_path / "ours").exists()
    assert main([*command, str(tmp_path / "bare"), "--no-tokenizer"]) == 0
    assert store.open_checkpoint(tmp_path / "bare").tokenizer_path() is None
    (directory / "tokenizer_config.json").unlink()
    (directory / "tokenizer.model").rename(tmp_path / "a.model")
    (directory / "tokenizer.json").write_text('{"model": ')
    assert (
        main([*command, str(tmp_path / "broken")]) == 2 and "tokenizer.json: not what" in capsys.readouterr().err
    )  # there is one, and it is broken
    assert main([*command, str(tmp_path / "named"), "--tokenizer", str(tmp_path / "a.model")]) == 0
    assert load_tokenizer(store.open_checkpoint(tmp_path / "named")).encode_prompt("a b")[0] == 1


@pytest.mark.parametrize("options", [["--tokenizer", "x"], ["--no-tokenizer"]])
def test_a_checkpoint_has_its_own(tmp_path, options):
    with pytest.raises(SystemExit) as error:
        main(["convert", str(tmp_path), "--to", "huggingface", "--output", str(tmp_path / "out"), *options])
    assert error.value.code == 2


OWN = {
    "plain": ({"family": "pi", "siaf_terms": 1, "aug_shortcut_branches": 0}, "none", "llama"),
    "parts": (
        {"family": "pi", "siaf_terms": 2, "aug_shortcut_branches": 1, "aug_shortcut_reduction": 4},
        "none",
        "pangu_pi",
    ),
    "alpha": (
        {
            "family": "alpha",
            "hidden_act": "fast_gelu",
            "final_norm_position": "after_query",
            "layer_norm_eps": 1e-3,
            "dropout": 0.0,
        },
        "jieba",
        "pangu_alpha",
    ),
}


@pytest.mark.parametrize("kind", OWN)
def test_what_was_trained_here_goes_out_and_comes_back(kind, tmp_path, capsys):
    fields, segmenter, model_type = OWN[kind]
    tokenizer = train_tokenizer([CODE, PROSE, CHINESE] * 20, 420, segmenter)
    tokenizer.save(tmp_path / "tokenizer")
    sizes = {
        "vocab_size": 420,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "ffn_hidden_size": 40,
        "seq_length": 24,
    }
    config = config_from_dict({"model": sizes | fields}, "here")
    weights = random_parameters(config.model)
    step = store.save(tmp_path / "ours", 7, {"model": weights}, {}, config, tmp_path / "tokenizer")
    assert main(["convert", str(step), "--to", "huggingface", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert ("which transformers has no class for" in out) == (kind != "plain")
    assert ("no class that segments with jieba" in out) == (segmenter == "jieba")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json",
    }  # fmt: skip
    written = read_json(tmp_path / "out/config.json")
    assert written["model_type"] == model_type
    assert [written[name] for name in huggingface_files.TOKEN_IDS] == [1, [5, 6], 4]  # <s>, <eod> and <eot>, <pad>
    settings = read_json(tmp_path / "out/tokenizer_config.json")
    assert {index: token["content"] for index, token in settings["added_tokens_decoder"].items()} == {
        "0": "<unk>", "1": "<s>", "2": "</s>", "3": "<sep>", "4": "<pad>", "5": "<eod>", "6": "<eot>",
    }  # fmt: skip
    assert main(["convert", str(tmp_path / "out"), "--from", "huggingface", "--output", str(tmp_path / "back")]) == 0
    back = store.open_checkpoint(tmp_path / "back")
    assert back.config().model == config.model
    assert_same(back.tensors(), weights)
    assert load_tokenizer(back).fingerprint == Tokenizer.load(tmp_path / "out").fingerprint == tokenizer.fingerprint
    assert Tokenizer.load(tmp_path / "out/tokenizer.model").fingerprint == tokenizer.fingerprint
    if segmenter == "none":  # changed by somebody, it is a LLaMA's, with the same ids
        (tmp_path / "out/tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
        changed = Tokenizer.load(tmp_path / "out")
        assert [changed.encode_prompt(text) for text in TEXTS] == [tokenizer.encode_prompt(text) for text in TEXTS]
        assert (changed.eod_id, changed.pad_id, changed.stop_ids) == (
            tokenizer.eod_id,
            tokenizer.pad_id,
            tokenizer.stop_ids,
        )


def test_a_large_directory_is_cut_and_its_index_names_every_tensor(tmp_path):
    weights = write_llama(tmp_path / "hf", 61)
    step = convert.import_file(tmp_path / "hf", "huggingface", None, tmp_path / "ours")
    convert.export_file(step, "huggingface", tmp_path / "out", dtype="float16", max_shard_bytes=10_000)
    index = read_json(tmp_path / "out/model.safetensors.index.json")
    found = {path.name: safetensors.numpy.load_file(path) for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(found) > 3 and sorted(found) == [
        f"model-{i:05d}-of-{len(found):05d}.safetensors" for i in range(1, len(found) + 1)
    ]
    assert index["weight_map"] == {name: file for file, tensors in found.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(
        array.nbytes for tensors in found.values() for array in tensors.values()
    )
    back = store.open_checkpoint(convert.import_file(tmp_path / "out", "huggingface", None, tmp_path / "back"))
    assert_same(back.tensors(), {name: array.astype(np.float16).astype(np.float32) for name, array in weights.items()})


def test_specials_in_a_users_text_stay_text(llama, tmp_path):
    directory, _ = llama("extended")
    tokenizer = load_tokenizer(
        store.open_checkpoint(convert.import_file(directory, "huggingface", None, tmp_path / "ours"))
    )
    assert not {1, 2, 420} & set(tokenizer.encode("a<s>b</s> c <pad>"))
