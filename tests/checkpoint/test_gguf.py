"""`pangu convert --to gguf`: what the files hold, read back by the gguf package and by definition; what is refused.
That llama.cpp computes and tokenizes the same is in test_llama_cpp.py."""

import os
import resource
import sys
import weakref

import gguf
import numpy as np
import pytest

from pangu_ms.checkpoint import gguf_export, gguf_file, lazy
from pangu_ms.checkpoint.lazy import InMemory
from pangu_ms.cli.main import main
from pangu_ms.core import dtypes
from pangu_ms.core.errors import CheckpointError
from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer
from tests.checkpoint.llama_models import LLAMA, VARIANTS, saved
from tests.data.common import STORED
from tests.models import alpha, moge, pi
from tests.reference.make_tokenizer_golden import CHINESE, CODE, PROSE, write_files


def read(path):
    """Fields, tensors in their dtypes and kinds of a file."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {one.name: one for one in reader.tensors}


def convert(root, output, *options):
    return main(["convert", str(root), "--to", "gguf", "--output", str(output), *options])


def interleaved(array, heads):
    """Rows (i, i + D/2) of each head side by side, row by row."""
    size = len(array) // heads
    order = [h * size + half * (size // 2) + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
    return array[order]


def expected(weights, model):
    """The tensors of a file by GGUF's names, written from llama.cpp's constants."""
    tensors = {"token_embd.weight": weights["word_embedding.weight"]}
    tensors["output_norm.weight"] = weights["final_norm.weight"]
    if not model.tie_word_embeddings:
        tensors["output.weight"] = weights["head.weight"]
    for i in range(model.num_layers):
        ours, theirs = f"blocks.{i}.", f"blk.{i}."
        names = {"attn_norm.weight": "attention_norm.weight", "ffn_norm.weight": "ffn_norm.weight"}
        names |= {f"ffn_{name}.weight": f"ffn.{name}.weight" for name in ("gate", "up", "down")}
        for name, own in {"q": "query", "k": "key", "v": "value", "output": "output"}.items():
            names |= {f"attn_{name}.weight": f"attention.{own}.weight"}
            names |= {f"attn_{name}.bias": f"attention.{own}.bias"} if model.attention_bias else {}
        tensors |= {theirs + name: weights[ours + own] for name, own in names.items()}
        if not model.attention_bias:
            for name, heads in (("attn_q", model.num_heads), ("attn_k", model.num_kv_heads)):
                tensors[f"{theirs}{name}.weight"] = interleaved(tensors[f"{theirs}{name}.weight"], heads)
    return tensors


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_kept_bit_for_bit(variant, tmp_path, capsys):
    model = pi.small(**VARIANTS[variant])
    weights = saved(tmp_path / "ours", model)
    assert convert(tmp_path / "ours", tmp_path / "m.gguf") == 0
    assert "weights: float32, kept\n" in capsys.readouterr().out
    fields, found = read(tmp_path / "m.gguf")
    theirs = expected(weights, model)
    assert found.keys() == theirs.keys()
    for name, array in theirs.items():
        assert found[name].tensor_type.name == "F32"
        np.testing.assert_array_equal(found[name].data, array, err_msg=name)
    arch = "pangu-embedded" if variant == "openpangu" else "llama"
    assert {name.partition(".")[0] for name in fields} == {"GGUF", "general", "tokenizer", arch}
    assert fields["general.architecture"] == arch and fields["general.file_type"] == 0
    assert fields["tokenizer.ggml.model"] == "none"
    sizes = {"vocab_size": 61, "context_length": 24, "block_count": 2, "attention.head_count": 4}
    sizes |= {"embedding_length": model.hidden_size, "feed_forward_length": model.ffn_hidden_size}
    sizes |= {"attention.head_count_kv": model.num_kv_heads, "attention.key_length": model.head_dim}
    sizes |= {"attention.value_length": model.head_dim, "rope.dimension_count": model.head_dim}
    for name, value in sizes.items():
        assert fields[f"{arch}.{name}"] == value, name
    for name, value in {
        "rope.freq_base": model.rope_theta,
        "attention.layer_norm_rms_epsilon": model.rms_norm_eps,
    }.items():
        assert fields[f"{arch}.{name}"] == np.float32(value), name


def test_halves_are_rounded_to_the_nearest_and_vectors_kept(tmp_path, capsys):
    model = pi.small(**LLAMA)
    theirs = expected(saved(tmp_path / "ours", model), model)
    for dtype, kind in (("float16", "F16"), ("bfloat16", "BF16")):
        assert convert(tmp_path / "ours", tmp_path / f"{dtype}.gguf", "--dtype", dtype) == 0
        assert (
            f"weights: float32 narrowed to {dtype}, each rounded to the nearest; vectors in" in capsys.readouterr().out
        )
        fields, found = read(tmp_path / f"{dtype}.gguf")
        assert fields["general.file_type"] == {"float16": 1, "bfloat16": 32}[dtype]
        for name, array in theirs.items():
            assert found[name].tensor_type.name == (kind if array.ndim == 2 else "F32")
            if array.ndim == 1:
                values = array
            elif dtype == "float16":
                values = array.astype(np.float16)
            else:
                values = dtypes.to_bfloat16(array).view(np.uint8)
            np.testing.assert_array_equal(found[name].data.view(values.dtype), values, err_msg=name)


def q8_0(row):
    """A row by the definition: of each 32 values a scale in float16, the largest magnitude / 127, and whole numbers."""
    content = b""
    for block in row.reshape(-1, 32):
        scale = np.float32(np.abs(block).max()) / np.float32(127)
        inverse = np.float32(1) / scale if scale else np.float32(0)
        quotients = block * inverse
        numbers = np.sign(quotients) * np.floor(np.abs(quotients) + np.float32(0.5))
        content += np.float16(scale).tobytes() + numbers.astype(np.int8).tobytes()
    return content


def test_q8_0_is_what_its_definition_says(tmp_path, capsys):
    model = pi.small(**LLAMA | {"ffn_hidden_size": 40})
    weights = pi.random_parameters(model)
    weights["word_embedding.weight"][3] = 0  # a block without a scale
    theirs = expected(saved(tmp_path / "ours", model, weights), model)
    assert convert(tmp_path / "ours", tmp_path / "m.gguf", "--dtype", "q8_0") == 0
    said = capsys.readouterr().out
    assert "matrices in q8_0" in said and "2 with rows that are no multiple of 32 stay float32 (blk.0.ffn_down" in said
    fields, found = read(tmp_path / "m.gguf")
    assert (fields["general.file_type"], fields["general.quantization_version"]) == (7, 2)
    for name, array in theirs.items():
        if array.ndim == 1 or name.endswith("ffn_down.weight"):
            np.testing.assert_array_equal(found[name].data, array)
        else:
            assert found[name].tensor_type.name == "Q8_0"
            assert found[name].data.tobytes() == b"".join(q8_0(row) for row in array), name


def test_weights_that_a_checkpoint_holds_in_bfloat16(tmp_path):
    model = pi.small(**LLAMA)
    weights = {name: dtypes.to_bfloat16(array) for name, array in pi.random_parameters(model).items()}
    saved(tmp_path / "ours", model, weights)
    assert convert(tmp_path / "ours", tmp_path / "m.gguf") == 0
    _, found = read(tmp_path / "m.gguf")
    for name, array in expected(weights, model).items():
        np.testing.assert_array_equal(found[name].data, dtypes.widened(array), err_msg=name)


@pytest.mark.parametrize("dtype", gguf_file.DTYPES)
def test_the_size_of_the_pieces_changes_nothing(dtype, tmp_path, monkeypatch):
    """Pieces end within heads, whose rows are reordered, and within rows."""
    model = pi.small(**LLAMA)
    saved(tmp_path / "ours", model)
    for name, size in (("whole", 1 << 24), ("rows", 1100), ("parts", 128)):
        monkeypatch.setattr(lazy, "BYTES_AT_ONCE", size)
        assert convert(tmp_path / "ours", tmp_path / f"{name}.gguf", "--dtype", dtype) == 0
    contents = {(tmp_path / f"{name}.gguf").read_bytes() for name in ("whole", "rows", "parts")}
    assert len(contents) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_piece_at_a_time_is_in_memory(dtype, tmp_path):
    alive = []

    class Noted(np.ndarray):
        pass

    class Counted(InMemory):
        def read(self, wanted):
            assert not any(reference() is not None for reference in alive), "an earlier tensor is still there"
            array = Noted(self.shape, np.float32)  # owns its memory, which views of it keep
            array[...] = self.raw[wanted]
            alive.append(weakref.ref(array))
            return array

    raw = np.ones((4, 32), np.float32)
    assert len(list(lazy.cut(InMemory.of("x", raw).all, 4))) == 1
    tensors = {f"blk.{i}.x": Counted(InMemory.of("x", raw).spec, raw) for i in range(4)}
    gguf_file.write(tmp_path / "m.gguf", "llama", {}, tensors, dtype)
    assert len(read(tmp_path / "m.gguf")[1]) == len(alive) == 4


@pytest.mark.parametrize("variant", ["own", "llama2", "extended", "openpangu", "no_prefix"])
def test_the_tokenizer_is_described_piece_by_piece(variant, tmp_path):
    if variant == "own":
        train_tokenizer([CODE, PROSE, CHINESE] * 20, 420, "none").save(tmp_path / "tokenizer")
    else:
        write_files(STORED[variant]["files"], tmp_path / "tokenizer")
        if variant == "llama2":
            (tmp_path / "tokenizer/chat_template.jinja").write_text("{{ messages }}")
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    saved(tmp_path / "ours", pi.small(vocab_size=tokenizer.vocab_size), tokenizer=tmp_path / "tokenizer")
    assert convert(tmp_path / "ours", tmp_path / "m.gguf") == 0
    fields, _ = read(tmp_path / "m.gguf")
    told = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items() if "tokenizer" in name}
    assert (told["model"], told["pre"]) == ("llama", "default")
    assert all(len(told[name]) == tokenizer.vocab_size for name in ("tokens", "scores", "token_type"))
    assert len(set(told["tokens"])) == tokenizer.vocab_size, "llama.cpp finds a token by its text"
    for index in range(tokenizer.vocab_size):
        assert told["tokens"][index] in (tokenizer.piece_of(index), f"[PAD{index}]")
    control = {
        i for i, kind in enumerate(told["token_type"]) if kind in (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
    }
    assert control >= set(tokenizer.special_ids)
    assert told["token_type"].count(gguf.TokenType.BYTE) == 256
    assert told["eos_token_id"] == tokenizer.eod_id and told["unknown_token_id"] == tokenizer.unk_id
    assert told.get("bos_token_id") == tokenizer.bos_id
    assert told.get("padding_token_id") == (tokenizer.pad_id if tokenizer.has_pad else None)
    assert told["add_bos_token"] == bool(tokenizer.first_ids) and told["add_eos_token"] is False
    assert told["add_space_prefix"] == tokenizer.strips_space
    assert fields.get("tokenizer.chat_template") == ("{{ messages }}" if variant == "llama2" else None)
    assert {told["eos_token_id"], told.get("eot_token_id", tokenizer.eod_id)} <= set(tokenizer.stop_ids)


def test_a_chat_template_that_is_no_text(tmp_path, capsys):
    write_files(STORED["llama2"]["files"], tmp_path / "tokenizer")
    (tmp_path / "tokenizer/chat_template.jinja").write_bytes(b"\x99")
    size = Tokenizer.load(tmp_path / "tokenizer").vocab_size
    saved(tmp_path / "ours", pi.small(vocab_size=size), tokenizer=tmp_path / "tokenizer")
    assert convert(tmp_path / "ours", tmp_path / "m.gguf") == 2
    assert "chat_template.jinja: is not UTF-8" in capsys.readouterr().err and not (tmp_path / "m.gguf").exists()


def test_a_tokenizer_that_llama_cpp_lacks_is_refused_or_left_out(tmp_path, capsys):
    Tokenizer(train_tokenizer([CODE, PROSE, CHINESE] * 20, 420, "none").model, "jieba").save(tmp_path / "jieba")
    saved(tmp_path / "ours", pi.small(vocab_size=420), tokenizer=tmp_path / "jieba")
    assert convert(tmp_path / "ours", tmp_path / "m.gguf") == 2
    error = capsys.readouterr().err
    assert "segments text with jieba, which llama.cpp does not have" in error and "--no-tokenizer" in error
    assert not (tmp_path / "m.gguf").exists()
    assert convert(tmp_path / "ours", tmp_path / "m.gguf", "--no-tokenizer") == 0
    assert "tokenizer: left out; llama.cpp takes ids only" in capsys.readouterr().out
    assert read(tmp_path / "m.gguf")[0]["tokenizer.ggml.model"] == "none"
    write_files(STORED["llama3"]["files"], tmp_path / "llama3")
    with pytest.raises(CheckpointError, match=r"tokenizer.json, of which llama.cpp knows some by name alone"):
        gguf_export.tokenizer_keys(Tokenizer.load(tmp_path / "llama3"))


REFUSED = {
    "series": (pi.small(siaf_terms=2), "model.siaf_terms=2: llama.cpp has no series activation"),
    "shortcuts": (pi.small(aug_shortcut_branches=1), "model.aug_shortcut_branches=1: llama.cpp has no augmented short"),
    "gate": (pi.small(hidden_act="gelu"), "model.hidden_act=gelu: llama.cpp has no other gate than silu"),
    "alpha": (alpha.small(), "model.family=alpha: llama.cpp has no query layer"),
    "moge": (moge.small(), "model.family=moge: llama.cpp has no experts in groups"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_in_one_line(case, tmp_path, capsys):
    model, message = REFUSED[case]
    saved(tmp_path / "ours", model, None if case in ("series", "shortcuts", "gate") else _random(model))
    assert convert(tmp_path / "ours", tmp_path / "m.gguf") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "m.gguf").exists()


def _random(model):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in model.parameter_shapes().items()}


@pytest.fixture
def plain(tmp_path):
    saved(tmp_path / "ours", pi.small(**LLAMA))
    return tmp_path / "ours"


def test_without_the_package_the_command_is_named(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert convert(plain, tmp_path / "m.gguf") == 2
    assert "not installed; pip install pangu-ms[gguf]\n" in capsys.readouterr().err


@pytest.mark.parametrize("value, dtype", [(np.nan, "float32"), (np.inf, "q8_0"), (1e5, "float16"), (1e8, "q8_0")])
def test_values_that_a_type_cannot_hold(value, dtype, tmp_path, capsys):
    model = pi.small(**LLAMA)
    weights = pi.random_parameters(model)
    weights["blocks.1.ffn.up.weight"][3, 5] = value
    saved(tmp_path / "ours", model, weights)
    assert convert(tmp_path / "ours", tmp_path / "m.gguf", "--dtype", dtype) == 2
    assert "blk.1.ffn_up.weight has values" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["ours"]


def test_a_full_disk_leaves_nothing(plain, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        assert convert(plain, tmp_path / "m.gguf") != 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some room" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["ours"]


def test_names_of_outputs(plain, tmp_path, capsys):
    assert convert(plain, tmp_path / "m.safetensors") == 2
    assert "a GGUF file ends in .gguf" in capsys.readouterr().err
    assert convert(plain, tmp_path / "m.gguf") == 0
    assert convert(plain, tmp_path / "m.gguf") == 2
    assert "exists; nothing is overwritten" in capsys.readouterr().err
    for options in (["--to", "huggingface", "--dtype", "q8_0"], ["--from", "official", "--dtype", "q8_0"]):
        with pytest.raises(SystemExit) as error:
            main(["convert", str(plain), "--output", str(tmp_path / "x"), *options])
        assert error.value.code == 2 and "--dtype q8_0 is of --to gguf" in capsys.readouterr().err
