"""Models of quantized checkpoints: they compute what packing at load computes, in generation, evaluation and packages;
every verb either works with such a checkpoint or names the one it was made from."""

import json

import numpy as np
import pytest

from ascend_ops.packing import pack
from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.quantized import QuantizedTensors, quantize
from pangu_ms.cli.main import main
from pangu_ms.config.load import load_config
from pangu_ms.core.errors import CheckpointError
from pangu_ms.eval import perplexity
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.load import load_decoder
from pangu_ms.infer.packed_model import PackedMatrix, pack_cells
from pangu_ms.models.build import build_model, initial_values
from tests.eager import eager
from tests.export.common import export_without_kernels, replay_in_this_process
from tests.parsers import commands

pytestmark = pytest.mark.usefixtures("compiled_models")
PROMPT = [7, 8, 9, 10, 11]


@pytest.fixture
def eagerly(mindspore_cpu):
    """Models that run a few times; the package's is a graph."""
    with eager():
        yield


@pytest.fixture(scope="module")
def source(trained_run):
    return store.open_checkpoint(trained_run)


@pytest.fixture(scope="module")
def int8(source, tmp_path_factory):
    return store.open_checkpoint(quantize(source, tmp_path_factory.mktemp("int8"))["output"])


def logits(checkpoint, weights=""):
    decoder = load_decoder(checkpoint, GraphShape.fitting(32, 2, 20, 8), weights=weights)
    return np.stack([decoder.prefill([[5], PROMPT])[1], decoder.step(np.array([3, 4]))[1]])


@pytest.mark.usefixtures("eagerly")
def test_generation_computes_the_bits_of_packing_at_load(source, int8):
    assert np.array_equal(logits(int8), logits(source, "int8"))


def test_other_weights_than_those_that_are_there_are_refused(int8, capsys):
    with pytest.raises(CheckpointError, match="is quantized to int8, weights=float32 is asked for; .*leave --weights"):
        load_decoder(int8, GraphShape.fitting(32, 2, 20, 8), weights="float32")
    assert main(["generate", str(int8.path), "--prompt", "def", "--weights", "bfloat16"]) == 2
    assert "weights=bfloat16 is asked for" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["alpha/tiny", "pi/tiny", "pi/openpangu_7b", "moge/tiny", "sigma/tiny"])
def test_the_list_of_matrices_is_that_of_the_cells(name):
    """`ModelConfig.packed_matrices` names what the model has as products, no more and no less."""
    sizes = ["model.vocab_size=64", "model.num_layers=2"] if name == "pi/openpangu_7b" else []
    sizes += ["model.hidden_size=64", "model.ffn_hidden_size=64"] if name == "pi/openpangu_7b" else []
    sizes += ["model.num_heads=2", "model.num_kv_heads=1", "model.head_dim=32"] if sizes else []
    config = load_config(name, sizes).model
    model = build_model(config)
    pack_cells(model, config, "int8")
    cells = [cell for _, cell in model.cells_and_names() if isinstance(cell, PackedMatrix)]
    assert {name for cell in cells for name in cell.sources[: len(cell.sizes)]} == set(config.packed_matrices())


def test_evaluation_reads_it(int8, records, capsys, monkeypatch):
    """And its graph is not kept as that of the checkpoint that is not quantized."""
    identities = []
    cached_compile = perplexity.cached_compile
    monkeypatch.setattr(
        perplexity, "cached_compile", lambda cache, one: identities.append(one) or cached_compile(cache, one)
    )
    assert main(["eval", str(int8.path), "--data", str(records), "--no-baselines", "--max-batches", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] > 0
    assert [one["weights"] for one in identities] == ["int8"]


@pytest.mark.usefixtures("eagerly")
def test_quantize_measures_what_rounding_costs(source, records, tmp_path, capsys):
    """The loss before is that of `pangu eval`, the one after that of `pangu eval` on the new checkpoint."""
    few = ["--data", str(records), "--max-batches", "2", "--batch-size", "4", "--json"]
    assert main(["quantize", str(source.path), "--weights", "int8", "--output", str(tmp_path / "out"), *few]) == 0
    found = json.loads(capsys.readouterr().out)
    for path, loss in zip((source.path, found["output"]), found["loss"]):
        assert main(["eval", str(path), *few, "--no-baselines"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["loss"] == pytest.approx(loss, rel=1e-5) and result["tokens"] == found["tokens"]
    assert 0 < abs(found["loss"][1] / found["loss"][0] - 1) < 0.02
    assert 0.9 < found["same_likeliest"] <= 1
    assert found["bytes"][1] < 0.4 * found["bytes"][0]


@pytest.mark.usefixtures("eagerly")
def test_a_package(int8, source, tmp_path, capsys, monkeypatch):
    """Its graph holds the packed int8; its answers are those of the checkpoint, as its own verification finds."""
    replay_in_this_process(monkeypatch)
    export_without_kernels(monkeypatch)
    output = tmp_path / "package"
    shape = ["--batch-size", "1", "--max-length", "12", "--chunk", "4", "--json"]
    assert main(["export", str(int8.path), "--output", str(output), *shape]) == 0
    verified = json.loads(capsys.readouterr().out)["verified"]
    assert verified["weights"] == len(source.tensors()) and verified["max_difference"] < 0.02
    content = (output / "model.mindir").read_bytes()
    name = "blocks.0.ffn.up.weight"
    assert pack(QuantizedTensors.of(int8).matrix(name), "int8").data.tobytes() in content
    assert source.tensors()[name].tobytes() not in content


READS = {
    "generate": "test_generation_computes_the_bits_of_packing_at_load",
    "eval": "test_evaluation_reads_it",
    "export": "test_a_package",
    "data losses": "loads an Evaluator, as eval does",
    "study latency": "calls load_decoder, as generate does",
    "score": "calls load_decoder, as generate does",
    "serve": "calls load_decoder, as generate does",
    "chat": "calls load_decoder, as generate does",
    "schedule calibrate": "calls load_decoder, as generate does",
    "schedule simulate": "reads its tokenizer; a probe names the source, as load_model does",
    "schedule train-predictor": "asks by load_decoder; a probe names the source, as load_model does",
}
"""Verbs that read a quantized checkpoint, and where that is tested."""
REFUSES = {
    "quantize": ("alpha", ["--weights", "int8", "--output", "NEW"]),
    "convert": ("alpha", ["--to", "official", "--output", "NEW_FILE"]),
    "ckpt reshard": ("alpha", ["--output", "NEW"]),
    "model inherit": ("alpha", ["--output", "NEW"]),
    "model upgrade": ("alpha", ["--config", "SIGMA", "--output", "NEW"]),
    "sigma extract": ("sigma", ["--domain", "DOMAIN", "--output", "NEW"]),
    "sigma add-domain": ("sigma", ["--name", "more", "--output", "NEW"]),
    "analyze experts": ("moge", ["--data", "RECORDS"]),
    "analyze collapse": ("alpha", ["--data", "RECORDS"]),
    "train": ("alpha", ["--data", "RECORDS", "--output", "NEW"]),
}
"""Verbs that refuse one: family of the checkpoint, and further options."""


def test_every_verb_that_takes_a_checkpoint_is_listed():
    taking = {
        " ".join(words)
        for words, parser in commands().items()
        if any(action.dest in ("checkpoint", "checkpoints", "init_from") for action in parser._actions)
        and words[0] != "manifest"  # names a path in a job
    }
    assert taking | {"convert"} == READS.keys() | REFUSES.keys()


@pytest.fixture(scope="module")
def of_families(int8, tmp_path_factory, records):
    """A quantized checkpoint of each family, and words that options need."""
    root = tmp_path_factory.mktemp("sigma")
    config = load_config("sigma/tiny", ["model.vocab_size=384", "model.seq_length=32", "model.num_layers=3"])
    plain = store.save(root / "plain", 0, {"model": dict(initial_values(config.model, 1))}, {}, config)
    sigma = quantize(store.open_checkpoint(plain), root / "int8")["output"]
    words = {"RECORDS": str(records), "SIGMA": str(plain / "config.yaml"), "DOMAIN": config.model.domains[0]}
    config = load_config("moge/tiny", ["model.vocab_size=384", "model.seq_length=32", "model.num_layers=2"])
    plain = store.save(root / "moge", 0, {"model": dict(initial_values(config.model, 1))}, {}, config)
    moge = quantize(store.open_checkpoint(plain), root / "moge-int8")["output"]
    return {"alpha": str(int8.path), "sigma": sigma, "moge": moge}, words


@pytest.mark.parametrize("verb", REFUSES)
def test_the_others_name_the_checkpoint_it_was_made_from(of_families, verb, tmp_path, capsys):
    checkpoints, words = of_families
    family, given = REFUSES[verb]
    path = checkpoints[family]
    options = [
        (words | {"NEW": str(tmp_path / "new"), "NEW_FILE": str(tmp_path / "new.npz")}).get(word, word)
        for word in given
    ]
    if verb == "train":
        options += ["--config", f"{path}/config.yaml", "--init-from", path]
    else:
        options.insert(0, path)
    assert main([*verb.split(), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is quantized" in error and "name the checkpoint it was made from" in error
    assert not list(tmp_path.glob("**/*.safetensors")) and not (tmp_path / "new.npz").exists()
