"""Quantized checkpoints on the disk: what the files hold, against numpy in float64; and what is refused."""

import json
import shlex
import shutil
import tracemalloc
from argparse import ArgumentParser, Namespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from ascend_ops.packing import QuantizedWeight, pack
from pangu_ms.checkpoint import derive, quantized, safetensors_file, store
from pangu_ms.checkpoint.quantized import QuantizedTensors, quantize, scale_name
from pangu_ms.checkpoint.reshard import Source, reshard
from pangu_ms.cli import quantize as cli_quantize
from pangu_ms.config import load_config
from pangu_ms.core import dtypes, files
from pangu_ms.core.errors import CheckpointError, OutputError
from pangu_ms.models.common.init import initial_values
from pangu_ms.models.common.stacks import members
from tests.checkpoint.common import SIZES, small_config
from tests.checkpoint.dying import lives
from tests.parsers import commands

MATRIX = "blocks.1.ffn.up.weight"


def arrays_of(config):
    """Random values, one row of a matrix all zero."""
    random = np.random.default_rng(1)
    tensors = {}
    for name, shape in config.model.parameter_shapes().items():
        tensors[name] = random.normal(size=shape).astype(np.float32)
    tensors[MATRIX][3] = 0
    return tensors


@pytest.fixture(scope="module")
def config():
    return small_config()


@pytest.fixture(scope="module")
def source(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    groups = {"model": arrays_of(config), "optimizer": {"moment": np.ones(3, np.float32)}}
    return store.open_checkpoint(store.save(root, 7, groups, {"rounds": 2}, config))


@pytest.fixture(scope="module")
def int8(source, tmp_path_factory):
    return store.open_checkpoint(quantize(source, tmp_path_factory.mktemp("int8"), "int8")["output"])


def test_int8_is_the_nearest_multiple_of_an_output_s_scale(source, int8, config):
    """Read by the safetensors library: others can use the file."""
    found, given = load_file(int8.path / "model.safetensors"), source.tensors()
    matrices = config.model.packed_matrices()
    assert "word_embedding.weight" in matrices and "position_embedding.weight" not in matrices
    assert set(found) == set(given) | {scale_name(name) for name in matrices}
    for name, weight in given.items():
        if name not in matrices:
            assert found[name].dtype == weight.dtype and np.array_equal(found[name], weight), name
            continue
        assert found[name].dtype == np.int8 and found[name].shape == weight.shape
        scale = np.abs(weight.astype(np.float64)).max(1) / 127
        np.testing.assert_allclose(found[scale_name(name)], scale, rtol=1e-6)
        assert (np.abs(found[name] * scale[:, None] - weight) <= 0.5001 * scale[:, None]).all()
        assert np.abs(found[name])[scale > 0].max(1).min() == 127
    assert found[scale_name(MATRIX)][3] == 0 and not found[MATRIX][3].any()


def test_they_are_the_numbers_that_packing_at_load_makes(source, int8, config):
    tensors, given = QuantizedTensors.of(int8), source.tensors()
    for name in config.model.packed_matrices():
        kept, fresh = pack(tensors.matrix(name), "int8"), pack(given[name], "int8")
        assert np.array_equal(kept.data, fresh.data) and np.array_equal(kept.scale, fresh.scale), name


def test_bfloat16_is_the_nearest(source, config, tmp_path):
    made = store.open_checkpoint(quantize(source, tmp_path / "out", "bfloat16")["output"])
    tensors, given = QuantizedTensors.of(made), source.tensors()
    for name in config.model.packed_matrices():
        assert np.array_equal(tensors.matrix(name), dtypes.widened(dtypes.to_bfloat16(given[name])))
    assert made.quantized == "bfloat16" and set(tensors.others()) == set(given) - set(config.model.packed_matrices())


def test_the_step_says_what_it_is_and_holds_what_else_the_source_held(source, int8):
    assert int8.quantized == "int8" and not source.quantized
    origin = int8.manifest["quantized"]["source"]
    assert origin == {
        "checkpoint": str(source.path),
        "step": 7,
        "manifest_sha256": files.sha256_json(source.manifest),
    }
    assert int8.step == 7 and int8.groups == ["model"] and int8.state() == source.state()
    assert int8.config() == source.config()


def test_a_quarter_of_the_size_and_few_rows_in_memory_at_a_time(tmp_path, monkeypatch):
    config = load_config("alpha/tiny", ["model.vocab_size=20000", "model.hidden_size=48", "model.num_layers=2"])
    tensors = dict(initial_values(config.model, 1))
    checkpoint = store.open_checkpoint(store.save(tmp_path / "source", 0, {"model": tensors}, {}, config))
    monkeypatch.setattr(quantized, "_VALUES_AT_ONCE", 1 << 14)
    monkeypatch.setattr(store.Checkpoint, "state", lambda _: {})  # the reader of JSON has a buffer of 128 MB
    table = tensors["word_embedding.weight"].nbytes
    del tensors
    tracemalloc.start()
    result = quantize(checkpoint, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    before, after = result["bytes"]
    size = (tmp_path / "out/step-00000000/model.safetensors").stat().st_size
    assert after < 0.3 * before and after < size < after + 10_000
    assert peak < 0.25 * table + 1_000_000, "int8 of the largest matrix, and some rows"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_source_of_half_the_width(source, config, dtype, tmp_path):
    narrow = dtypes.cast("", source.tensors(), dtype)
    checkpoint = store.open_checkpoint(store.save(tmp_path / "source", 0, {"model": narrow}, {}, config))
    tensors = QuantizedTensors.of(store.open_checkpoint(quantize(checkpoint, tmp_path / "out")["output"]))
    fresh = pack(dtypes.widened(narrow[MATRIX]).astype(np.float32), "int8")
    assert np.array_equal(pack(tensors.matrix(MATRIX), "int8").data, fresh.data)
    assert tensors.stored["final_norm.weight"].spec.dtype_name == dtype


def test_a_sharded_source_and_stacks_of_experts(tmp_path, monkeypatch):
    """Rows that a read takes from several slices; experts stay as they were, member by member."""
    monkeypatch.setattr(quantized, "_VALUES_AT_ONCE", 1500)
    base = load_config("sigma/tiny", ["model.vocab_size=64", "model.seq_length=16"])
    tensors = dict(initial_values(base.model, 3))
    plain = store.open_checkpoint(store.save(tmp_path / "plain", 0, {"model": tensors}, {}, base))
    result = quantize(plain, tmp_path / "out")
    made = store.open_checkpoint(result["output"])
    found = load_file(made.path / "model.safetensors") | load_file(made.path / "routing.safetensors")
    whole = dict(members(tensors))
    experts = [name for name in whole if ".experts." in name]
    assert experts and result["experts_bytes"] == sum(whole[name].nbytes for name in experts)
    for name in [*experts, "query_layer.ffn.routing"]:
        assert np.array_equal(found[name], whole[name]), name
    assert set(QuantizedTensors.of(made).others()) == set(tensors) - set(base.model.packed_matrices())


def test_slices_of_ranks(tmp_path, source, int8):
    parallel = ["parallel.model_parallel=2", "parallel.vocab_embedding=row", "parallel.data_parallel=1"]
    config = load_config("alpha/tiny", [*SIZES, "model.num_layers=3", *parallel])
    checkpoint = store.open_checkpoint(reshard(Source.of(source), tmp_path / "ranks", config))
    assert "model-rank-00001.safetensors" in checkpoint.manifest["files"]
    made = store.open_checkpoint(quantize(checkpoint, tmp_path / "out")["output"])
    assert (made.path / "model.safetensors").read_bytes() == (int8.path / "model.safetensors").read_bytes()


def test_twice_is_refused(int8, tmp_path):
    with pytest.raises(CheckpointError, match="is quantized already, to int8; .*name the checkpoint it was made from"):
        quantize(int8, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_readers_that_do_not_know_it_are_told(int8, source):
    for read in (int8.tensors, int8.stored, lambda: list(int8.each())):
        with pytest.raises(CheckpointError, match=f"quantized to int8.*made from .*{source.path}"):
            read()


@pytest.mark.parametrize("weights, value", [("int8", np.nan), ("int8", -np.inf), ("bfloat16", np.nan)])
def test_a_source_with_what_is_no_number_is_refused_and_nothing_written(config, source, weights, value, tmp_path):
    tensors = source.tensors()
    tensors[MATRIX][5, 2] = value
    checkpoint = store.open_checkpoint(store.save(tmp_path / "source", 0, {"model": tensors}, {}, config))
    with pytest.raises(CheckpointError, match=f"{MATRIX} has values that are not finite"):
        quantize(checkpoint, tmp_path / "out", weights)
    assert not list((tmp_path / "out").glob("*step*"))


def test_a_place_with_content_is_refused(source, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OutputError, match="has other content"):
        quantize(source, tmp_path)


def damaged(int8, tmp_path, change=None, manifest=None):
    """A copy with other tensors or another manifest, whose digests are right."""
    path = tmp_path / int8.path.name
    shutil.copytree(int8.path, path)
    file = path / "model.safetensors"
    tensors = safetensors_file.read(file)
    if change:
        change(tensors)
    file.write_bytes(b"".join(safetensors_file.encode(tensors)))
    kept = json.loads((path / "manifest.json").read_text()) | (manifest or {})
    kept["files"][file.name] = {"bytes": file.stat().st_size, "sha256": files.sha256_file(file)}
    del kept["sha256"]
    (path / "manifest.json").write_text(json.dumps(kept | {"sha256": files.sha256_json(kept)}))
    return store.open_checkpoint(path)


def scale_of_row(value, row=2):
    """Set one scale."""

    def change(tensors):
        tensors[scale_name(MATRIX)][row] = value

    return change


def put(name, make):
    """Replace a tensor."""
    return lambda tensors: tensors.update({name: make(tensors.get(name))})


DAMAGES = {
    "nan": (scale_of_row(np.nan), rf"{MATRIX}_scale\[2\] is nan; a scale must be a number"),
    "infinite": (scale_of_row(np.inf), rf"{MATRIX}_scale\[2\] is inf"),
    "negative": (scale_of_row(-0.5), rf"{MATRIX}_scale\[2\] is -0.5"),
    "zero": (scale_of_row(0), rf"{MATRIX}_scale\[2\] is 0, and its row of {MATRIX} holds other numbers"),
    "shape": (put(scale_name(MATRIX), lambda old: old[:5]), rf"of another shape: {MATRIX}_scale \(5,\) instead of"),
    "missing": (lambda tensors: tensors.pop(scale_name(MATRIX)), f"1 missing: {MATRIX}_scale"),
    "wide scale": (put(scale_name(MATRIX), lambda old: old.astype(np.float64)), "_scale is float64; .*float32"),
    "not rounded": (put(MATRIX, lambda old: old.astype(np.float32)), f"{MATRIX} is float32; .*must be int8"),
    "-128": (put(MATRIX, lambda old: np.where(old == -127, np.int8(-128), old)), f"{MATRIX} holds -128"),
    "one more": (put("extra.weight_scale", lambda _: np.ones(3, np.float32)), "1 unexpected: extra.weight_scale"),
}


@pytest.mark.parametrize("change, message", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_told_with_the_tensor_s_name(int8, tmp_path, change, message):
    checkpoint = damaged(int8, tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as error:
        tensors = QuantizedTensors.of(checkpoint)
        tensors.matrix(MATRIX)
    assert str(error.value).startswith(str(checkpoint.path))


def test_a_scale_of_0_for_a_row_of_zeros_is_right(int8):
    matrix = QuantizedTensors.of(int8).matrix(MATRIX)
    assert isinstance(matrix, QuantizedWeight) and matrix.scale[3] == 0


@pytest.mark.parametrize("kind", [{"weights": "int4"}, {"weights": ["int8"]}, {}, "int8", None])
def test_an_unknown_dtype_is_refused(int8, tmp_path, kind):
    with pytest.raises(CheckpointError, match="this version knows int8, bfloat16"):
        damaged(int8, tmp_path, manifest={"quantized": kind}).tensors()


def test_another_content_is_noticed_by_its_digest(int8, tmp_path):
    path = tmp_path / int8.path.name
    shutil.copytree(int8.path, path)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="another content"):
        store.open_checkpoint(path)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_death_before_disk_operations_leaves_nothing_or_all(source, int8, tmp_path):
    lived = False
    for number in range(2, 200, 9):
        root = tmp_path / str(number)
        lived = lives(number, lambda root=root: quantize(source, root))
        found = store.latest_valid(root)[0]
        assert found or not lived
        if found:
            assert (found.path / "model.safetensors").read_bytes() == (int8.path / "model.safetensors").read_bytes()
        quantize(source, root) if not found else None
        assert store.open_checkpoint(root).quantized == "int8"
        if lived:
            break
    assert lived


def test_of_two_at_once_one_is_refused(source, tmp_path, monkeypatch):
    """Both found the directory empty at their start; the second one begins to write when the first one has ended."""
    seen = []
    monkeypatch.setattr(derive.reshard, "require_room", lambda root, nbytes: seen.append(root) or first())

    def first():
        if len(seen) == 1:
            quantize(source, tmp_path / "out", "bfloat16")

    with pytest.raises(OutputError, match="has other content"):
        quantize(source, tmp_path / "out", "int8")
    assert store.open_checkpoint(tmp_path / "out").quantized == "bfloat16"


@pytest.mark.parametrize("words", ["quantize", "sigma extract", "sigma add-domain"])
def test_the_command_of_a_killed_process_can_be_run_again(words, tmp_path):
    """What `lives` leaves behind is no other content for the command line, either."""
    (tmp_path / ".lock").touch()
    (tmp_path / ".step-00000007.0123abcd.tmp").mkdir()
    (action,) = [one for one in commands()[tuple(words.split())]._actions if "--output" in one.option_strings]
    space = Namespace()
    action(ArgumentParser(), space, tmp_path, "--output")
    assert space.output == tmp_path
    (tmp_path / "step-00000007").mkdir()
    with pytest.raises(OutputError, match="exists with other content"):
        action(ArgumentParser(), space, tmp_path, "--output")


def test_the_command_to_go_on_with_can_be_pasted(tmp_path):
    result = {"matrices": 1, "weights": "int8", "bytes": [4, 1], "experts_bytes": 0, "output": "x"}
    (*_, last) = cli_quantize._text(result, Namespace(output=tmp_path / "two words"))
    assert shlex.split(last)[-3:] == [str(tmp_path / "two words"), "--prompt", "TEXT"]
