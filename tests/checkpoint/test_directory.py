"""Hugging Face directories of PanGu-pi: its additions there and back, and what a user may do wrong. No PyTorch needed
(test_llama.py needs it)."""

import json

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign, store
from pangu_ms.cli.main import main
from pangu_ms.models.registry import FAMILIES
from tests.checkpoint.common import assert_same
from tests.eager import eager
from tests.infer.pi_checkpoint import MODEL, pi_config, save_pi_checkpoint
from tests.models.alpha import our_logits, random_ids
from tests.models.pi import random_parameters, small
from tests.reference import pi_numpy

OVERRIDES = [f"model.{field}" for field in MODEL]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return save_pi_checkpoint(tmp_path_factory.mktemp("pi"))


@pytest.fixture
def directory(ours, tmp_path):
    """The checkpoint as a Hugging Face directory in two files with an index."""
    assert main(["convert", str(ours[0].path), "--to", "huggingface", "--output", str(tmp_path / "hf")]) == 0
    tensors = foreign.read_file(tmp_path / "hf" / foreign.WEIGHTS)
    (tmp_path / "hf" / foreign.WEIGHTS).unlink()
    shards = {
        f"model-{i}-of-2.safetensors": {n: a for k, (n, a) in enumerate(tensors.items()) if k % 2 == i} for i in (0, 1)
    }
    for name, shard in shards.items():
        foreign.write_file(tmp_path / "hf" / name, shard)
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path / "hf"


def change_config(directory, **changes):
    tree = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def test_the_additions_go_there_and_back(ours, directory, tmp_path):
    written = json.loads((directory / "config.json").read_text())
    assert (
        written["model_type"] == "pangu_pi" and "architectures" not in written
    )  # no other program may take it for a LLaMA
    tensors = foreign.read_files(foreign.weight_files(directory))
    names = {
        "mlp.siaf.bias": "ffn.siaf.shift",
        "mlp.siaf.scale": "ffn.siaf.scale",
        "self_attn.aug_shortcut.1.up.bias": "aug_shortcut.1.up.bias",
    }
    for theirs, name in names.items():
        np.testing.assert_array_equal(tensors[f"model.layers.1.{theirs}"], ours[1][f"blocks.1.{name}"])
    for name, words in (("bare", []), ("checked", ["--config", "pi/tiny", *OVERRIDES])):
        assert main(["convert", str(directory), "--from", "huggingface", "--output", str(tmp_path / name), *words]) == 0
        again = store.open_checkpoint(tmp_path / name)
        assert again.config().model == pi_config().model
        assert_same(again.tensors(), ours[1])
    assert set(again.state()["imported"]["sha256"]) == {"model-0-of-2.safetensors", "model-1-of-2.safetensors"}


@pytest.mark.usefixtures("mindspore_cpu")
@pytest.mark.parametrize("stated", [True, False])
def test_an_openpangu_directory_loads_and_computes(tmp_path, stated):
    """Its class has theta 16e6, eps 1e-5 and biases where config.json is silent (spec F1), and calls attention_bias
    `bias`."""
    theta = 100.0 if stated else 16e6
    config = small(num_kv_heads=2, attention_bias=True, rope_theta=theta, aug_shortcut_reduction=32)
    weights = random_parameters(config)
    names_pi = FAMILIES["pi"].formats["huggingface"]
    tree = names_pi.write_config(config) | {"model_type": "PanguEmbedded"}
    for key in (
        "attention_bias",
        "architectures",
        *(() if stated else ("rope_theta", "rms_norm_eps", "tie_word_embeddings")),
    ):
        del tree[key]
    content = json.dumps(tree | ({"bias": True} if stated else {})).encode()
    foreign.write_directory(tmp_path / "hf", names_pi.to_foreign("here", weights, config), {"config.json": content})
    (tmp_path / "hf/consolidated.safetensors").write_bytes(b"another form of the weights, not to be read")
    found = store.open_checkpoint(convert.import_file(tmp_path / "hf", "huggingface", None, tmp_path / "ours"))
    assert found.config().model == config and list(found.state()["imported"]["sha256"]) == [foreign.WEIGHTS]
    ids = random_ids(config)
    with eager():
        logits = our_logits(found.config().model, found.tensors(), ids, False)
    np.testing.assert_allclose(logits, pi_numpy.forward(config, weights, ids, None), atol=1e-4)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".ckpt"])
@pytest.mark.parametrize("naming", ["huggingface", "mindformers"])
def test_every_kind_of_file_gives_the_same_weights_back(ours, tmp_path, naming, suffix):
    file, back = str(tmp_path / f"w{suffix}"), str(tmp_path / "back")
    assert main(["convert", str(ours[0].path), "--to", naming, "--output", file]) == 0
    assert main(["convert", file, "--from", naming, "--config", "pi/tiny", *OVERRIDES, "--output", back]) == 0
    assert_same(store.open_checkpoint(back).tensors(), ours[1])


def remove_a_file(directory):
    (directory / "model-1-of-2.safetensors").unlink()


def cut_a_file(directory):
    content = (directory / "model-1-of-2.safetensors").read_bytes()
    (directory / "model-1-of-2.safetensors").write_bytes(content[:-10])


def double_a_tensor(directory):
    foreign.write_file(
        directory / "model-1-of-2.safetensors", foreign.read_file(directory / "model-0-of-2.safetensors")
    )


def index(text):
    return lambda directory: (directory / "model.safetensors.index.json").write_text(text)


def config(**changes):
    return lambda directory: change_config(directory, **changes)


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (
            remove_a_file,
            [],
            (
                "holds no model-1-of-2.safetensors (named in model.safetensors.index.json); copy or download the"
                " directory again"
            ),
        ),
        (cut_a_file, [], "model-1-of-2.safetensors: "),
        (double_a_tensor, [], "stands in another file too"),
        (index("{"), [], "not an index of weights (ValueError('not JSON"),
        (index("[]"), [], "not an index of weights (ValueError"),
        (index('{"weight_map": {"model.norm.weight": 5}}'), [], "not an index of weights (TypeError"),
        (index('{"weight_map": {"model.norm.weight": "model-0-of-2.safetensors"}}'), [], "missing: "),
        (
            lambda directory: (directory / "model.safetensors.index.json").unlink(),
            [],
            "holds no model.safetensors (nor model.safetensors.index.json; ",
        ),
        (
            lambda directory: (directory / "config.json").unlink(),
            [],
            "config.json: No such file or directory; a Hugging Face directory says there",
        ),
        (lambda directory: (directory / "config.json").write_text("[]"), [], "config.json: a list, not an object"),
        (
            config(model_type="mistral"),
            [],
            (
                "config.json: model_type='mistral': must be one of pangu_alpha, gpt_pangu, pangu, llama, PanguEmbedded,"
                " openpangu_dense, pangu_pi"
            ),
        ),
        (
            config(rope_scaling={"type": "linear", "factor": 2.0}),
            [],
            "config.json: rope_scaling={'type': 'linear', 'factor': 2.0}: must be null",
        ),
        (
            config(rope_parameters={"type": "linear", "factor": 4.0}),
            [],
            "config.json: rope_parameters={'type': 'linear', 'factor': 4.0}: must be",
        ),
        (config(rope_parameters={"factor": 4.0}), [], "config.json: rope_parameters={'factor': 4.0}: must be"),
        (
            config(rope_parameters={"rope_theta": 50.0}),
            [],
            "config.json: rope_theta=100.0, rope_parameters.rope_theta=50.0: must be equal",
        ),
        (config(partial_rotary_factor=0.5), [], "config.json: partial_rotary_factor=0.5: must be 1"),
        (config(use_qk_norm=True), [], "config.json: use_qk_norm='True': is not understood"),
        (
            index('{"weight_map": {"model.norm.weight": "../model.safetensors"}}'),
            [],
            "names ../model.safetensors; its files must lie in its directory",
        ),
        (
            index('{"weight_map": {"model.norm.weight": "/dev/zero"}}'),
            [],
            "names /dev/zero; its files must lie in its directory",
        ),
        (index("[" * 100_000), [], "nested too deeply"),
        (
            lambda directory: (directory / "config.json").write_text('{"a":' * 100_000),
            [],
            "config.json: not JSON: nested too deeply",
        ),
        (config(siaf_mode="cubic"), [], "config.json: model.siaf_mode='cubic': "),
        (config(hidden_act=["silu"]), [], "config.json: model.hidden_act=['silu']: "),
        (config(num_hidden_layers=None), [], "config.json: model.num_layers: is required"),
        (config(siaf_terms=3), [], "model.layers.0.mlp.siaf."),
        (
            config(),
            ["--config", "pi/tiny", *OVERRIDES, "model.rope_theta=50"],
            "config.json: model.rope_theta=50.0 (config.json: 100.0): must be equal",
        ),
        (config(), ["--config", "alpha/tiny"], "config.json: describes a model of family pi, --config one of alpha"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(directory, tmp_path, capsys, damage, words, message):
    damage(directory)
    assert main(["convert", str(directory), "--from", "huggingface", "--output", str(tmp_path / "new"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_changes_nothing_is_accepted(ours, directory, tmp_path):
    harmless = {
        "rope_scaling": {"type": "default"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "sliding_window": None,
    }
    change_config(
        directory, **harmless, use_cache=True, torch_dtype="bfloat16", attention_dropout=0.1, use_qk_norm=False
    )
    shard = directory / "model-1-of-2.safetensors"
    frequencies = {f"model.{where}rotary_emb.inv_freq": np.ones(4, np.float32) for where in ("", "layers.0.self_attn.")}
    foreign.write_file(shard, foreign.read_file(shard) | frequencies)
    assert_same(
        store.open_checkpoint(convert.import_file(directory, "huggingface", None, tmp_path / "new")).tensors(), ours[1]
    )


def test_a_tied_model_has_no_head_of_its_own():
    config = small(tie_word_embeddings=True)
    naming = FAMILIES["pi"].formats["huggingface"]
    written = naming.to_foreign("here", random_parameters(config), config)
    assert "lm_head.weight" not in written and "model.embed_tokens.weight" in written


def test_a_key_that_a_llama_leaves_out_is_compared_too(directory, tmp_path, capsys):
    """transformers takes 1e-6 and 10000 where config.json is silent: another --config would compute something else."""
    additions = {
        name: None
        for name in json.loads((directory / "config.json").read_text())
        if name.startswith(("siaf_", "aug_shortcut_"))
    }
    change_config(directory, model_type="llama", rope_theta=None, rms_norm_eps=None, **additions)
    start = [
        "convert",
        str(directory),
        "--from",
        "huggingface",
        "--config",
        "pi/tiny",
        *OVERRIDES,
        "--output",
        str(tmp_path / "new"),
    ]
    assert main(start) == 2
    error = capsys.readouterr().err
    assert (
        "model.rope_theta=100.0 (config.json: 10000.0)" in error
        and "model.rms_norm_eps=1e-05 (config.json: 1e-06)" in error
    )


@pytest.mark.parametrize("form", ["hf", "w.safetensors", "dotted.5b"])
def test_where_an_export_may_go(ours, tmp_path, capsys, form):
    output = tmp_path / form
    if form != "dotted.5b":
        file = output if output.suffix else output / "mine"
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    assert main(["convert", str(ours[0].path), "--to", "huggingface", "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert ("a new directory: a name without a dot" if form == "dotted.5b" else "nothing is overwritten") in error


def test_an_import_from_nowhere(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "nowhere"), "--from", "huggingface", "--output", str(tmp_path / "new")]) == 2
    assert "nowhere: no such file or directory" in capsys.readouterr().err
