"""Megatron's tensor-parallel parts, merged and converted."""

import errno
import json
import shutil

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign, megatron, store
from pangu_ms.cli.main import main
from pangu_ms.config import load_config
from pangu_ms.core.errors import CheckpointError, ConfigError, OutputError
from pangu_ms.models.alpha.weights import FORMATS
from tests.checkpoint.common import assert_same
from tests.checkpoint.megatron_parts import E, S, V, config, fuse, overrides, parts, tensors, write
from tests.checkpoint.torch_writer import Storage, T, notes, save, save_legacy
from tests.reference.alpha_numpy import forward

pytestmark = pytest.mark.fast
NAMING = FORMATS["megatron"]


def merged(path, num_layers: int = 3, num_heads: int = 8):
    """Our tensors, and what was said."""
    said: list[str] = []
    model = config(num_layers, num_heads).model
    stored, _ = megatron.open_weights(path, NAMING, model, said.append)
    arrays = {name: tensor.array() for name, tensor in stored.items()}
    return NAMING.to_ours(str(path), arrays, model), said


@pytest.mark.parametrize(
    ("count", "fused"), [*((n, version) for n in (1, 2, 4, 8) for version in (None, 0, 3.0)), (2, 1.0), (4, 2.0)]
)
def test_parts_are_the_whole_bit_for_bit(tmp_path, count, fused):
    ours = tensors()
    made = parts(ours, count, sliced_query_table=count > 2, padded=1024, fused=fused) if count == 8 else None
    made = made or parts(ours, count, fused=fused, sliced_query_table=count == 4)
    path = write(tmp_path, made, version=3.0 if fused is None else fused)
    found, said = merged(path)
    assert_same(found, ours)
    expected = f"word table: 1,024 rows cut to {V}; the others pad it to a multiple of 1024, as Megatron does"
    assert said == ([expected] if count == 8 else [])


def test_parts_are_read_in_pieces(tmp_path):
    """A target's slice reads across parts, columns and fused rows."""
    ours = tensors()
    stored, _ = megatron.open_weights(
        write(tmp_path, parts(ours, 4, fused=2.0), version=2.0), NAMING, config().model, print
    )
    for name, our_name in (
        ("layers.0.attention.key.weight", "blocks.0.attention.key.weight"),
        ("layers.1.attention.dense.weight", "blocks.1.attention.output.weight"),
        ("topQueryLayer.mlp.dense_4h_to_h.weight", "query_layer.ffn.down.weight"),
    ):
        tensor, array = stored[f"language_model.transformer.{name}"], ours[our_name]
        rows, columns = array.shape
        for part in (
            (slice(0, 1), slice(0, columns)),
            (slice(rows // 3, rows), slice(1, columns - 1)),
            (slice(5, 6), slice(columns // 2, columns)),
        ):
            np.testing.assert_array_equal(tensor.read(part), array[part])


def test_an_odd_number_of_heads(tmp_path):
    """Heads need not be divided for separate projections; three heads of five rows in one part are fused."""
    sizes = ["model.vocab_size=20", "model.hidden_size=15", "model.num_heads=3", "model.seq_length=8"]
    model = load_config("alpha/tiny", [*sizes, "model.ffn_hidden_size=24", "model.num_layers=2"]).model
    rng = np.random.default_rng(3)
    ours = {name: rng.normal(size=shape).astype(np.float32) for name, shape in model.parameter_shapes().items()}
    made = NAMING.to_foreign("here", ours, model)
    inner = {name.removeprefix("language_model.transformer."): array for name, array in made.items()}
    fuse(inner, "layers.0", 2.0, 3, key_value=False)
    flat = {n if n.startswith("language_model") else f"language_model.transformer.{n}": a for n, a in inner.items()}
    path = save(tmp_path / "one.pt", {"module": flat, "checkpoint_version": 2.0})
    stored, _ = megatron.open_weights(path, NAMING, model, print)
    assert_same(NAMING.to_ours("x", {name: tensor.array() for name, tensor in stored.items()}, model), ours)


def test_forms_of_directories_and_names(tmp_path):
    ours = tensors()
    made = parts(ours, 2)
    one = parts(ours, 1)[0]
    path = write(tmp_path / "run", made)
    for form in (path, path / "iter_0001000"):
        assert_same(merged(form)[0], ours)
    (path / "latest_checkpointed_iteration.txt").write_text("release\n")
    (path / "iter_0001000").rename(path / "release")
    assert_same(merged(path)[0], ours)
    for rank, part in enumerate(made):  # CodeGeeX: DeepSpeed's names, "module"
        save(tmp_path / "geex" / f"mp_rank_{rank:02d}_model_states.pt", {"module": {"language_model": part}})
    assert_same(merged(tmp_path / "geex")[0], ours)
    assert_same(merged(save_legacy(tmp_path / "old.pt", {"model": {"language_model": one}, **notes()}))[0], ours)
    wrapped = {"module": {"module": {"language_model": one}}}
    assert_same(merged(save(tmp_path / "wrapped" / "w.pt", wrapped).parent)[0], ours)
    newer = {
        "encoder" if key == "transformer" else key: (
            {name.replace(".attention.", ".self_attention."): array for name, array in value.items()}
            | {"layers.0.self_attention._extra_state": np.zeros(3, np.uint8)}
            if key == "transformer"
            else value
        )
        for key, value in one.items()
    }
    assert_same(merged(save(tmp_path / "newer.pt", {"model": {"language_model": newer}}))[0], ours)


def test_views_of_one_storage(tmp_path):
    """The published tool that cuts a model saves columns as views of the whole matrix."""
    ours = tensors()
    made = parts(ours, 2)
    for rank, part in enumerate(made):
        for i, name in enumerate(("layers.0", "layers.1", "topQueryLayer")):
            whole = ours[f"{('blocks.0', 'blocks.1', 'query_layer')[i]}.ffn.down.weight"]
            columns = whole.shape[1] // 2
            view = T(None, Storage(whole), rank * columns, (E, columns), (whole.shape[1], 1))
            part["transformer"][f"{name}.mlp.dense_4h_to_h.weight"] = view
    assert_same(merged(write(tmp_path, made))[0], ours)


def test_copies_that_drifted_apart(tmp_path):
    ours = tensors()
    made = parts(ours, 2)
    made[1]["embedding"]["position_embeddings"]["weight"] = ours["position_embedding.weight"] * np.float32(1.001)
    found, said = merged(write(tmp_path, made))
    assert_same(found, ours)
    assert said == ["1 tensors that every part holds differ slightly, as training lets them; the first part's are used"]


def mistakes(path):
    """Ways to spoil a run of four parts, with the message that each gives."""
    save_ = path / "iter_0001000"
    ranks = [save_ / f"mp_rank_{rank:02d}" for rank in range(4)]
    yield lambda: shutil.rmtree(ranks[2]), "holds parts 0, 1, 3, and not 2; all are needed; add mp_rank_02"
    far = ranks[2].with_name("mp_rank_99999999999999")
    yield lambda: ranks[2].rename(far), "holds parts 0, 1, 3, 99999999999999, and not 2; all are needed"
    yield (
        lambda: shutil.rmtree(ranks[3]),
        "mlp.dense_h_to_4h.weight has 6 of 24 rows in each part, so that 4 make a model, and 3 are there",
    )
    yield (
        lambda: shutil.copy(ranks[0] / "model_optim_rng.pt", ranks[1]),
        "holds the slice of language_model.transformer.topQueryLayer.mlp.dense_h_to_4h.weight that",
    )
    yield (
        lambda: (ranks[1] / "model_optim_rng.pt").write_bytes((ranks[1] / "model_optim_rng.pt").read_bytes()[:-100]),
        "no whole file of weights by PyTorch",
    )
    yield lambda: (ranks[1] / "model_optim_rng.pt").unlink(), "mp_rank_01: holds no .pt"
    yield (
        lambda: save(
            ranks[1] / "model_optim_rng.pt",
            {"model": {"language_model": parts(tensors(), 4)[1]}, **notes(2000)},
        ),
        "has iteration 2000",
    )
    yield (
        lambda: save(
            ranks[1] / "model_optim_rng.pt",
            {"model": {"language_model": parts(tensors(), 2)[1]}, **notes(num_attention_heads=8)},
        ),
        "parts must be of one size",
    )
    other = {name: array + 1 for name, array in tensors().items()}
    yield (
        lambda: save(
            ranks[1] / "model_optim_rng.pt",
            {"model": {"language_model": parts(other, 4)[1]}, **notes(num_attention_heads=8)},
        ),
        "differs from that of",
    )
    yield lambda: ranks[0].rename(save_ / "mp_rank_00_001"), "is of a second pipeline stage"
    yield lambda: shutil.copytree(save_, path / "iter_0002000"), ""
    yield lambda: (path / "latest_checkpointed_iteration.txt").write_text("2000"), "names iter_0002000, which is not"
    yield lambda: (path / "latest_checkpointed_iteration.txt").write_text("x/../y"), "must be a number or 'release'"
    yield (
        lambda: save(
            ranks[3] / "model_optim_rng.pt",
            {"model": {"language_model": {**parts(tensors(), 4)[3], "more": {"w": np.ones(3)}}}, **notes()},
        ),
        "lacks language_model.more.w",
    )


@pytest.mark.parametrize("index", range(13))
def test_mistakes(tmp_path, index):
    path = write(tmp_path, parts(tensors(), 4))
    spoil, message = list(mistakes(path))[index]
    spoil()
    if not message:
        merged(path)
        (path / "latest_checkpointed_iteration.txt").unlink()
        message = "holds 2 saves (iter_0001000, iter_0002000)"
    with pytest.raises(CheckpointError) as error:
        merged(path)
    assert message in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_what_the_file_says_of_the_model_is_compared(tmp_path):
    path = write(tmp_path, parts(tensors(), 1))
    with pytest.raises(CheckpointError, match="was trained with num_attention_heads=8, the configuration has model.n"):
        merged(path, num_heads=4)
    with pytest.raises(CheckpointError, match="16 unexpected: language_model.transformer.layers.1"):
        merged(path, num_layers=2)
    path = write(tmp_path / "wide", parts(tensors(), 1), hidden_size=16)
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight \(20, 16\) instead of \(1024, 192\)"):
        convert.import_file(path, "megatron", load_config("alpha/tiny"), tmp_path / "ours")
    (tmp_path / "published.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="is an archive; only what is in it can be read; unpack it"):
        merged(tmp_path / "published.zip")


@pytest.mark.parametrize("odd", [[1], (((((1,),),),),), {"a": 1}, np.float32(3), b"x", {1, 2}])
def test_odd_values_beside_the_weights(tmp_path, odd):
    """They are compared and shown if they are plain, and otherwise as if they were missing."""
    plain = {"iteration": odd, "args": odd}
    made = {"model": {"language_model": parts(tensors(), 1, fused=0)[0]}, **notes(), **plain}
    path = save(tmp_path / "w.pt", made | {"checkpoint_version": odd})
    with pytest.raises(CheckpointError, match="checkpoint_version None, which says"):
        merged(path)
    assert_same(merged(save(path, made | {"checkpoint_version": 0}))[0], tensors())


def test_the_map_shows_the_parts(tmp_path, capsys):
    path = write(tmp_path / "run", parts(tensors(), 4))
    words = ["convert", str(path), "--from", "megatron", "--config", "alpha/tiny", *overrides(), "--dry-run", "--json"]
    assert main(words) == 0
    rows = {row["ours"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    name = "language_model.transformer.layers.1.attention.dense.weight"
    row = rows["blocks.1.attention.output.weight"]
    assert (row["foreign"], row["slices"], row["shape"], row["transposed"]) == (name, 4, [16, 16], False)
    assert rows["final_norm.bias"]["slices"] == 1 and not (tmp_path / "ours").exists()


def test_fused_projections_need_a_version(tmp_path):
    path = write(tmp_path, parts(tensors(), 2, fused=2.0), version=None)
    with pytest.raises(CheckpointError, match="checkpoint_version None, which says in what order its rows are"):
        merged(path)


def test_one_tensor_under_two_names(tmp_path):
    whole = parts(tensors(), 1, fused=0)[0]
    query = tensors()["blocks.0.attention.query.weight"]
    whole["transformer"]["layers.0.attention.query.weight"] = query
    path = save(tmp_path / "w.pt", {"model": {"language_model": whole}, **notes(version=0)})
    with pytest.raises(CheckpointError, match=r"attention.query.weight and .+query_key_value.weight; one is meant"):
        merged(path)
    whole = parts(tensors(), 1)[0]
    whole["encoder"] = {"layers.0.self_attention.query.weight": query}
    with pytest.raises(CheckpointError, match="stands there twice, under two spellings"):
        merged(save(path, {"model": {"language_model": whole}}))


def test_words_beyond_the_vocabulary_must_be_padding(tmp_path):
    for padded in (V + 2, 256 + 2):
        path = write(tmp_path / str(padded), parts(tensors(), 2, padded=padded))
        with pytest.raises(CheckpointError, match=rf"word_embeddings.weight \({padded}, 16\) instead of \({V}, 16\)"):
            merged(path)
    path = write(tmp_path / "own", parts(tensors(), 2, padded=V + 4), make_vocab_size_divisible_by=12)
    found, said = merged(path)
    assert_same(found, tensors())
    assert said == [f"word table: {V + 4} rows cut to {V}; the others pad it to a multiple of 12, as Megatron does"]


def megatron_logits(state, heads: int, ids: list[int]) -> np.ndarray:
    """The forward pass of the published port (megatron/model/transformer.py) on its own names, in float64."""
    words = state["embedding"]["word_embeddings"]["weight"].astype(float)
    positions = state["embedding"]["position_embeddings"]["weight"].astype(float)
    queries = state["topQueryEmbedding"]["top_query_embeddings"]["weight"].astype(float)
    p = {name: array.astype(float) for name, array in state["transformer"].items()}

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def dense(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def layer(name, x, query=None):
        inner = norm(f"{name}.input_layernorm", x)
        query = inner if query is None else query
        q, k, v = (
            dense(f"{name}.attention.{kind}", source).reshape(len(ids), heads, -1).transpose(1, 0, 2)
            for kind, source in (("query", query), ("key", inner), ("value", inner))
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) - 10000.0 * (np.tri(len(ids)) == 0)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + dense(f"{name}.attention.dense", mixed.transpose(1, 0, 2).reshape(len(ids), -1))
        up = dense(f"{name}.mlp.dense_h_to_4h", norm(f"{name}.post_attention_layernorm", x))
        fast_gelu = up / (1 + np.exp(-1.702 * up))
        return x + dense(f"{name}.mlp.dense_4h_to_h", fast_gelu)

    x = words[ids] + positions[: len(ids)]
    for i in range(sum(name.endswith("mlp.dense_h_to_4h.bias") for name in p) - 1):
        x = layer(f"layers.{i}", x)
    return layer("topQueryLayer", norm("final_layernorm", x), queries[: len(ids)]) @ words.T


def test_the_imported_model_computes_what_the_published_program_does(tmp_path):
    ours = {name: array * 0.3 for name, array in tensors().items()}
    whole = parts(ours, 1)[0]
    found, _ = merged(write(tmp_path, parts(ours, 4, fused=3.0)))
    model = config().model
    ids = [3, 1, 4, 1, 5]
    assert (model.final_norm_position, model.hidden_act, model.layer_norm_eps) == ("before_query", "fast_gelu", 1e-5)
    expected = megatron_logits(whole, model.num_heads, ids)
    np.testing.assert_allclose(forward(model, found, np.array([ids]), None)[0], expected, rtol=0, atol=1e-12)


def test_command_line_there_and_back(tmp_path, capsys):
    ours = tensors(dtype="float16")
    path = write(tmp_path / "run", parts(ours, 2, padded=256))
    model = config().model
    start = ["convert", str(path), "--from", "megatron", "--config", "alpha/tiny", *overrides()]
    assert main([*start, "--output", str(tmp_path / "ours")]) == 0
    told = capsys.readouterr().out
    assert "word table: 256 rows cut to 20" in told and "float16 widened to float32" in told
    checkpoint = store.open_checkpoint(tmp_path / "ours")
    assert_same(checkpoint.tensors(), {name: array.astype(np.float32) for name, array in ours.items()})
    files = checkpoint.state()["imported"]["sha256"]
    assert list(files) == [f"iter_0001000/mp_rank_{rank:02d}/model_optim_rng.pt" for rank in range(2)]
    output = tmp_path / "back.safetensors"
    back = ["convert", str(tmp_path / "ours"), "--to", "megatron", "--dtype", "float16", "--output", str(output)]
    assert main(back) == 0
    assert_same(foreign.read_file(output), NAMING.to_foreign("here", ours, model))
    again = convert.import_file(output, "megatron", config(), tmp_path / "again", dtype="float16")
    assert_same(store.open_checkpoint(again).tensors(), ours)
    data = path / "iter_0001000" / "mp_rank_01" / "model_optim_rng.pt"
    content = bytearray(data.read_bytes())
    content[content.index(ours["position_embedding.weight"].tobytes()) + 5] ^= 8
    data.write_bytes(content)
    assert main([*start, "--output", str(tmp_path / "other")]) == 2
    assert "do not have their checksum" in capsys.readouterr().err and not (tmp_path / "other").exists()


@pytest.mark.parametrize("count", [1, 4])
def test_parts_are_written_as_they_are_read(tmp_path, count):
    ours = tensors()
    step = store.save(tmp_path / "ours", 0, {"model": ours}, {"step": 0}, config())
    output = convert.export_file(step, "megatron", tmp_path / "parts", tensor_parallel=count)
    for rank, part in enumerate(parts(ours, count, padded=128 * count)):
        found = foreign.read_file(output / f"mp_rank_{rank:02d}" / "model.safetensors")
        for name, array in part["transformer"].items():
            np.testing.assert_array_equal(found.pop(f"language_model.transformer.{name}"), array, err_msg=name)
        words = found.pop("language_model.embedding.word_embeddings.weight")
        assert len(words) == 128 and not words[V:].any()
        assert len(found) == 2 and all(array.shape == (S, E) for array in found.values())
    assert_same(merged(output)[0], ours)
    for count in (0, 3):
        with pytest.raises(ConfigError, match=f"--tensor-parallel {count}: must divide model.num_heads=8 and"):
            convert.export_file(step, "megatron", tmp_path / "others", tensor_parallel=count)
    assert not (tmp_path / "three").exists()


def test_without_a_configuration(tmp_path, capsys):
    path = write(tmp_path / "run", parts(tensors(), 1))
    assert main(["convert", str(path), "--from", "megatron", "--output", str(tmp_path / "o")]) == 2
    assert "name its configuration (--config)" in capsys.readouterr().err


def test_a_full_disk_in_the_middle(tmp_path, monkeypatch):
    """What is unfinished is no checkpoint, and the same call finishes it."""
    path = write(tmp_path / "run", parts(tensors(), 2))

    def full(self, wanted):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OutputError, match="No space left on device"):
        patched.setattr(megatron.Joined, "read", full)
        convert.import_file(path, "megatron", config(), tmp_path / "ours")
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        store.open_checkpoint(tmp_path / "ours")
    assert (tmp_path / "ours" / ".partial").is_dir()
    step = convert.import_file(path, "megatron", config(), tmp_path / "ours")
    assert_same(store.open_checkpoint(step).tensors(), tensors())
    assert not (tmp_path / "ours" / ".partial").exists()


def test_other_formats_read_pytorch_files_too(tmp_path):
    foreign_names = FORMATS["huggingface"].to_foreign("here", tensors(), config().model)
    path = save(tmp_path / "pytorch_model.bin", foreign_names)
    step = convert.import_file(path, "huggingface", config(), tmp_path / "ours")
    assert_same(store.open_checkpoint(step).tensors(), tensors())
