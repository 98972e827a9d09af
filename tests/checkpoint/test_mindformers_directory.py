"""Checkpoint directories of MindFormers 1.9, of one rank and of several; those that it really wrote are converted in
tests/mindformers."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign, mindformers_directory, store
from pangu_ms.cli.main import main
from pangu_ms.core.errors import CheckpointError
from pangu_ms.parallel.layout import Layout
from tests.checkpoint import releases
from tests.checkpoint.alpha_tensors import foreign_tensors, our_tensors
from tests.checkpoint.common import SIZES, assert_same, small_config

OVERRIDES = [*SIZES, "model.num_layers=3"]
RANKS, CUTS = 4, 2  # two replicas of two slices


def names(rank, ranks=RANKS, kind="model"):
    return f"pangu_alpha-{kind}-{rank:07d}-{ranks:07d}.safetensors"


def one_rank(root, tensors, iteration=12):
    """What a run on one device leaves."""
    directory = root / f"checkpoint/iteration_{iteration:08d}"
    foreign.write_file(directory / names(0, 1), tensors)
    foreign.write_file(directory / names(0, 1, "opt"), {"adam_m.final_norm.bias": np.zeros(8, np.float32)})
    (directory / "common.json").write_text("{}")
    (root / "checkpoint/latest_checkpointed_iteration.txt").write_text(str(iteration))
    return directory


def several_ranks(root, tensors):
    """What four ranks leave, of which 0 and 2, 1 and 3 hold the same: matrices cut along the first dimension, the last
    block's along the second, vectors whole; the second replica of the first matrix is not stored."""
    directory = root / "checkpoint/iteration_00000012"
    slices, described, stored = [{} for _ in range(RANKS)], {}, {}
    for name, array in tensors.items():
        cuts = [1] * array.ndim
        if array.ndim == 2:
            cuts["query_layer" in name] = CUTS
        shape = [size // cut for size, cut in zip(array.shape, cuts)]
        chunks = []
        for place in itertools.product(*map(range, cuts)):
            offset = [at * size for at, size in zip(place, shape)]
            chunks.append({"global_offset": offset, "local_shape": shape})
            ranks = [rank for rank in range(RANKS) if max(cuts) == 1 or rank % CUTS == max(place)]
            part = array[tuple(slice(at, at + size) for at, size in zip(offset, shape))]
            stored[str((name, tuple(offset)))] = [
                {"file_name": names(rank), "storage_rank": rank, "rank_group": ranks} for rank in ranks
            ]
            for rank in ranks if name != next(iter(tensors)) else ranks[:1]:
                slices[rank][name] = part
        described[name] = {"global_shape": list(array.shape), "axis_fragmentations": cuts, "chunk": chunks}
    optimizer = {"global_shape": [8], "chunk": [{"global_offset": [0], "local_shape": [8]}]}
    described["adam_m.final_norm.bias"] = optimizer
    stored["('adam_m.final_norm.bias', (0,))"] = [{"file_name": names(0, kind="opt"), "storage_rank": 0}]
    for rank, own in enumerate(slices):
        foreign.write_file(directory / names(rank), own)
    (directory / "metadata.json").write_text(json.dumps({"state_dict_metadata": described, "storage_data": stored}))
    return directory


def convert_directory(directory, tmp_path, *options):
    arguments = ["convert", str(directory), "--from", "mindformers", "--config", "alpha/tiny", *OVERRIDES]
    return main([*arguments, "--output", str(tmp_path / "ours"), *options])


@pytest.mark.slow
def test_metadata_that_mindformers_itself_writes(tmp_path):
    """For the slices of `several_ranks`, by a child, since importing it has side effects."""
    directory = several_ranks(tmp_path / "run", our_tensors(3))
    ours = json.loads((directory / "metadata.json").read_text())
    (directory / "metadata.json").rename(tmp_path / "told.json")
    code = """
import json, sys
import mindspore as ms
from mindspore.parallel import Layout
from mindformers.checkpoint.metadata import save_metadata
from mindformers.checkpoint.sharded_tensor import build_sharded_tensor
told = json.load(open(sys.argv[1]))
cards, tensors = Layout((2, 2), ("dp", "tp")), {}
for name, entry in told["state_dict_metadata"].items():
    axes = ["tp" if cut > 1 else "None" for cut in entry.get("axis_fragmentations", [1])]
    tensors[name] = [
        build_sharded_tensor(name, ms.float32, chunk["local_shape"], entry["global_shape"],
                             entry.get("axis_fragmentations", [1]), chunk["global_offset"], layout=cards(*axes))
        for chunk in entry["chunk"]
    ]
places = [
    (place["file_name"], place["storage_rank"], place.get("rank_group"), eval(key))
    for key, found in told["storage_data"].items() for place in found
]
save_metadata({0: tensors}, places, sys.argv[2])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "told.json"), str(directory / "metadata.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((directory / "metadata.json").read_text())
    assert written.keys() == ours.keys() and written["storage_data"].keys() == ours["storage_data"].keys()
    assert convert_directory(directory, tmp_path) == 0
    assert_same(store.open_checkpoint(tmp_path / "ours").tensors(), our_tensors(3))


@pytest.mark.parametrize("make", [one_rank, several_ranks])
def test_a_run_is_converted_from_its_last_checkpoint(make, tmp_path):
    directory = make(tmp_path / "run", our_tensors(3))
    if make is one_rank:
        one_rank(tmp_path / "run", our_tensors(3), 6)
        (tmp_path / "run/checkpoint/latest_checkpointed_iteration.txt").write_text("12\n")
    named = tmp_path / "run" if make is one_rank else directory
    assert convert_directory(named, tmp_path) == 0
    checkpoint = store.open_checkpoint(tmp_path / "ours")
    assert_same(checkpoint.tensors(), our_tensors(3))
    imported = checkpoint.state()["imported"]
    assert imported["format"] == "mindformers" and len(imported["sha256"]) == (1 if make is one_rank else RANKS)


def test_earlier_pangualpha_has_the_official_names(tmp_path):
    """MindFormers 1.0 to 1.3: PanguAlphaHeadModel, whose conversion script gives the embeddings names of their own."""
    official = foreign_tensors("official")
    embeddings = {"word": "word", "position": "position", "query": "top_query"}
    renamed = {f"{new}_embedding_table": f"{old}_embedding.embedding_table" for new, old in embeddings.items()}
    tensors = {
        next((new for new, end in renamed.items() if name.endswith(end)), name): array
        for name, array in official.items()
    }
    assert set(renamed) <= tensors.keys()
    tensors["backbone.blocks.0.key_past"] = np.zeros((1, 2, 3, 4), np.float32)
    foreign.write_file(tmp_path / "pangualpha.ckpt", tensors)
    convert.import_file(tmp_path / "pangualpha.ckpt", "mindformers", small_config(3), tmp_path / "ours")
    assert_same(store.open_checkpoint(tmp_path / "ours").tensors(), our_tensors(3))


def test_parts_of_ranks_with_their_strategy(tmp_path):
    """The earlier form of MindFormers 1.8 and 1.9: rank_N/, without metadata.json."""
    config = releases.small()
    shapes = config.model.parameter_shapes()
    tensors = {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in shapes.items()}
    axes = (("dp", 2), ("mp", 4))
    layouts = {name: Layout(shape, axes, ((),) * len(shape)) for name, shape in shapes.items()}
    layouts |= {name: Layout(shape, axes, (("mp",), ()), ("dp",)) for name, shape in shapes.items() if len(shape) == 2}
    named = layouts | {f"adam_m.{name}": layout for name, layout in layouts.items()}
    releases.write_strategy(tmp_path / "ckpt_strategy.ckpt", named)
    for rank in range(8):
        own = {name: np.ascontiguousarray(array[layouts[name].slices(rank)]) for name, array in tensors.items()}
        own |= {f"adam_m.{name}": array * 0 for name, array in own.items()} | {"global_step": np.array(12, np.int32)}
        path = tmp_path / f"checkpoint/rank_{rank}/pangu_alpha_rank_{rank}-1_12.safetensors"
        foreign.write_file(path, own)
    words = ["--from", "mindformers", "--strategy", str(tmp_path / "ckpt_strategy.ckpt"), "--config", "alpha/tiny"]
    words += [*releases.OVERRIDES, "--output", str(tmp_path / "ours")]
    assert main(["convert", str(tmp_path / "checkpoint"), *words]) == 0
    assert_same(store.open_checkpoint(tmp_path / "ours").tensors(), tensors)


def without(name):
    return lambda directory: (directory / name).unlink()


def metadata(change):
    def apply(directory):
        tree = json.loads((directory / "metadata.json").read_text())
        change(tree["state_dict_metadata"], tree["storage_data"])
        (directory / "metadata.json").write_text(json.dumps(tree))

    return apply


def truncate(directory):
    path = directory / names(1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


FIRST = "word_embedding.weight"
DAMAGES = {
    "metadata": (without("metadata.json"), "has 4 files of 4 ranks and no metadata.json"),
    "file": (without(names(0)), f"a slice of {FIRST} should be in {names(0)}, {names(2)}, and is not"),
    "truncated": (truncate, "not a whole safetensors file"),
    "chunk": (metadata(lambda described, _: described[FIRST]["chunk"].pop()), f"1 of the 2 slices of {FIRST}"),
    "shape": (
        metadata(lambda described, _: [part.update(local_shape=[3, 8]) for part in described[FIRST]["chunk"]]),
        f"{FIRST} has shape [6, 8], metadata.json says [3, 8]",
    ),
    "other shape": (
        metadata(lambda described, _: described["final_norm.bias"].update(global_shape=[16])),
        "names 1 of the 2 slices of final_norm.bias",
    ),
    "dimensions": (
        metadata(lambda described, _: described["final_norm.bias"].update(global_shape=[1 << 60] * 9999)),
        "does not describe a checkpoint (ValueError('final_norm.bias: 9,999 dimensions, more than 32'))",
    ),
    "foreign": (metadata(lambda described, stored: stored.clear()), "does not describe a checkpoint (KeyError"),
    "outside": (
        metadata(lambda _, stored: [entry[0].update(file_name="../x.safetensors") for entry in stored.values()]),
        "should be in",
    ),
    "name": (metadata(lambda described, _: described.pop(FIRST)), f"1 missing: {FIRST}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_directories_are_one_line(damage, tmp_path, capsys):
    apply, message = DAMAGES[damage]
    directory = several_ranks(tmp_path / "run", our_tensors(3))
    for path in directory.iterdir():
        path.chmod(0o600)
    apply(directory)
    if damage == "outside":
        for rank in (2, 3):
            (directory / names(rank)).unlink()
    assert convert_directory(directory, tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_a_tracker_that_names_nothing(tmp_path):
    one_rank(tmp_path / "run", our_tensors(3))
    for text in ("13", "", "x" * 50, "9" * 400):
        (tmp_path / "run/checkpoint/latest_checkpointed_iteration.txt").write_text(text)
        with pytest.raises(CheckpointError, match="of which there is no directory with weights"):
            mindformers_directory.find(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds no checkpoint of MindFormers"):
        mindformers_directory.find(tmp_path)


def test_a_directory_of_something_else(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert convert_directory(tmp_path / "empty", tmp_path) == 2
    assert "holds no checkpoint of MindFormers" in capsys.readouterr().err
    directory = one_rank(tmp_path / "run", our_tensors(3))
    assert main(["convert", str(directory), "--from", "mindformers", "--output", str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert "does not say which model it is" in error and "--config" in error and "hidden_size=8" in error
