"""Directories of the community's ports of PanGu-alpha, as they are published, and those that are written for them."""

import json
import resource

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign, store
from pangu_ms.cli.main import main
from pangu_ms.config.load import config_from_dict
from pangu_ms.core.errors import CheckpointError, OutputError
from pangu_ms.core.size_text import parse_size
from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer
from pangu_ms.models.alpha.weights import FORMATS, read_config
from tests.checkpoint.alpha_tensors import our_tensors
from tests.checkpoint.common import assert_same, small_config
from tests.checkpoint.torch_writer import T, save
from tests.models import alpha
from tests.reference.make_tokenizer_golden import CHINESE, CODE, PROSE

PUBLISHED = {
    "model_name_or_path": "sunzeyeah/pangu-350M",
    "activation_function": "gelu",
    "architectures": ["GPTPanguForCausalLM"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": None,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 24,
    "model_type": "pangu",
    "num_heads": 4,
    "num_layers": 3,
    "resid_pdrop": 0.2,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "torch_dtype": "float32",
    "transformers_version": "4.13.0",
    "use_cache": True,
    "vocab_size": 420,
    "tokenizer_class": "GPTPanguTokenizer",
    "auto_map": {
        "AutoConfig": "configuration_gptpangu.GPTPanguConfig",
        "AutoTokenizer": ["tokenization_gptpangu.GPTPanguTokenizer", None],
        "AutoModelForCausalLM": "modeling_gptpangu.GPTPanguForCausalLM",
    },
    "pad_token_id": 6,
}
"""The config.json of the 350M, with other sizes."""
SETTINGS = {"eos_token": "<eot>", "pad_token": "<pad>", "tokenizer_class": "GPTPanguTokenizer", "use_fast": False}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([CODE, PROSE, CHINESE] * 20, 420, "jieba")


def port_directory(directory, tokenizer, spelling, **changed):
    """A published directory; returns its weights by our names."""
    config = config_from_dict({"model": read_config("here", PUBLISHED)}, "here").model
    weights = alpha.random_parameters(config)
    tensors = FORMATS["huggingface"].to_foreign("here", weights, config)
    tensors = {name.replace("attn.c_proj", f"attn.{spelling}"): array for name, array in tensors.items()}
    for i in range(3):
        tensors[f"transformer.h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.uint8))
        tensors[f"transformer.h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    contents = {"config.json": PUBLISHED | changed, "tokenizer_config.json": SETTINGS}
    written = {name: json.dumps(tree).encode() for name, tree in contents.items()} | {"vocab.model": tokenizer.model}
    foreign.write_directory(directory, tensors, written)
    return weights


@pytest.mark.parametrize("spelling, kind", [("c_proj", "pangu"), ("out_proj", "gpt_pangu")])
def test_a_published_directory_comes_in_with_its_vocabulary(spelling, kind, tokenizer, tmp_path, capsys):
    weights = port_directory(tmp_path / "port", tokenizer, spelling, model_type=kind)
    assert main(["convert", str(tmp_path / "port"), "--from", "huggingface", "--output", str(tmp_path / "ours")]) == 0
    assert "tokenizer: 420 ids" in capsys.readouterr().out
    checkpoint = store.open_checkpoint(tmp_path / "ours")
    assert_same(checkpoint.tensors(), weights)
    model = checkpoint.config().model
    assert (model.hidden_act, model.ffn_hidden_size, model.final_norm_position) == ("gelu_erf", 128, "before_query")
    assert (model.dropout, model.seq_length, model.num_layers) == (0.2, 24, 3)
    read = checkpoint.tokenizer()
    assert read.segmenter == "jieba" and read.encode(CHINESE) == tokenizer.encode(CHINESE)
    assert Tokenizer.load(tmp_path / "port/vocab.model").fingerprint == read.fingerprint


@pytest.mark.parametrize(
    "act, name", [("gelu", "gelu_pytorch_tanh"), ("gelu_erf", "gelu"), ("fast_gelu", "quick_gelu")]
)
def test_what_is_written_has_the_ports_keys_and_is_read_back(act, name, tokenizer, tmp_path):
    config = alpha.small(hidden_act=act, vocab_size=420, dropout=0.25)
    tree = config_from_dict({"model": {field: getattr(config, field) for field in config.field_names()}}, "here")
    weights = alpha.random_parameters(config)
    tokenizer.save(tmp_path / "tokenizer")
    store.save(tmp_path / "ours", 0, {"model": weights}, {}, tree, tmp_path / "tokenizer")
    convert.export_file(tmp_path / "ours", "huggingface", tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["model_type"] == "gpt_pangu" and written["activation_function"] == name
    assert {"resid_pdrop", "embd_pdrop", "attn_pdrop"} == {key for key, value in written.items() if value == 0.25}
    assert written["scale_attn_weights"] is True and written["num_heads"] == 4 and written["num_layers"] == 3
    assert (tmp_path / "out/generation_config.json").is_file()
    back = store.open_checkpoint(convert.import_file(tmp_path / "out", "huggingface", None, tmp_path / "back"))
    assert back.config().model == config
    assert_same(back.tensors(), weights)
    assert back.tokenizer().fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"scale_attn_weights": False}, "scale_attn_weights=False: must be true"),
        ({"num_layers": None}, "has no num_layers; the ports differ"),
        ({"sliding_window": 3}, "sliding_window='3': is not understood"),
        ({"num_hidden_layers": 3}, "num_hidden_layers='3': is not understood"),
    ],
)
def test_a_port_that_computes_something_else_or_tells_too_little(changed, message):
    with pytest.raises(CheckpointError, match=f"^config.json: {message}"):
        read_config("config.json", PUBLISHED | changed)


@pytest.mark.parametrize("pieces", [1, 3])
def test_weights_as_pytorch_saved_them(pieces, tokenizer, tmp_path):
    """The ports were published as pytorch_model.bin; the head and the word table share their numbers."""
    weights = port_directory(tmp_path / "port", tokenizer, "c_proj")
    path = tmp_path / "port/model.safetensors"
    tensors = {name: T(array=array) for name, array in foreign.read_file(path).items()}
    path.unlink()
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    names = list(tensors)
    files = {f"pytorch_model-{i}-of-{pieces}.bin": names[i::pieces] for i in range(pieces)}
    if pieces == 1:
        files = {"pytorch_model.bin": names}
    else:
        weight_map = {name: file for file, own in files.items() for name in own}
        (tmp_path / "port/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file, own in files.items():
        save(tmp_path / "port" / file, {name: tensors[name] for name in own})
    step = convert.import_file(tmp_path / "port", "huggingface", None, tmp_path / "ours")
    assert_same(store.open_checkpoint(step).tensors(), weights)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_while_a_directory_is_written_leaves_nothing(tmp_path):
    store.save(tmp_path / "ours", 0, {"model": our_tensors(3)}, {}, small_config(3))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OutputError, match="free some room"):
            convert.export_file(tmp_path / "ours", "huggingface", tmp_path / "out", max_shard_bytes=4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_damaged_part_of_a_directory(damage, tmp_path):
    """A part that is cut off, and an index that names a part of another model."""
    store.save(tmp_path / "ours", 0, {"model": our_tensors(3)}, {}, small_config(3))
    convert.export_file(tmp_path / "ours", "huggingface", tmp_path / "out", max_shard_bytes=4000)
    part = tmp_path / "out/model-00002-of-00003.safetensors"
    if damage == "truncated":
        part.write_bytes(part.read_bytes()[:-5])
        message = r"model-00002-of-00003.safetensors: not a whole safetensors file"
    else:
        foreign.write_file(part, {"model.layers.0.mlp.up_proj.weight": np.zeros((4, 4), np.float32)})
        message = r"out: \d+ missing: .*; 1 unexpected: model.layers.0.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=message):
        convert.import_file(tmp_path / "out", "huggingface", None, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_a_config_leaves_out_is_what_the_class_of_the_ports_has():
    sizes = ("model_type", "vocab_size", "hidden_size", "num_layers", "num_heads")
    fields = read_config("config.json", {name: PUBLISHED[name] for name in sizes})
    model = config_from_dict({"model": fields}, "here").model
    assert (model.hidden_act, model.seq_length, model.ffn_hidden_size) == ("gelu_erf", 1024, 4 * model.hidden_size)
    assert (model.layer_norm_eps, model.dropout, model.final_norm_position) == (1e-5, 0.1, "before_query")


def test_an_untied_head_is_refused(tokenizer, tmp_path):
    port_directory(tmp_path / "port", tokenizer, "c_proj")
    path = tmp_path / "port/model.safetensors"
    tensors = foreign.read_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    foreign.write_file(path, tensors)
    with pytest.raises(CheckpointError, match="lm_head.weight differs from transformer.wte.weight"):
        convert.import_file(tmp_path / "port", "huggingface", None, tmp_path / "ours")


def test_max_shard_size(tmp_path, capsys):
    store.save(tmp_path / "ours", 0, {"model": our_tensors(3)}, {}, small_config(3))

    def export(output, *options):
        return main(["convert", str(tmp_path / "ours"), "--to", "huggingface", "--output", str(output), *options])

    assert export(tmp_path / "one") == 0
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]
    for size, number in (("4KB", 3), ("1", 53)):
        assert export(tmp_path / size, "--max-shard-size", size) == 0
        files = sorted((tmp_path / size).glob("*.safetensors"))
        assert len(files) >= number and (tmp_path / size / "model.safetensors.index.json").is_file()
        assert size == "1" or all(sum(t.nbytes for t in foreign.read_file(path).values()) <= 4000 for path in files)
        back = convert.import_file(tmp_path / size, "huggingface", None, tmp_path / f"back-{size}")
        assert_same(store.open_checkpoint(back).tensors(), our_tensors(3))
    capsys.readouterr()
    for size in ("0", "-1", "4 parsecs", "1e3", "0.4", "inf"):
        with pytest.raises(SystemExit) as error:
            export(tmp_path / "x", f"--max-shard-size={size}")
        assert error.value.code == 2 and "must be a size of at least one byte, such as 4GB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export(tmp_path / "x.safetensors", "--max-shard-size", "1GB")
    assert "--max-shard-size is of a Hugging Face directory" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_sizes_in_bytes():
    assert [parse_size(text) for text in ("7", "4GB", "2 gib", "1.5kB", "500MiB")] == [
        7,
        4 * 10**9,
        2 << 30,
        1500,
        500 << 20,
    ]
