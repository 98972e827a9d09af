"""The store without accidents, and what it says about damaged directories."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from pangu_ms.checkpoint import store
from pangu_ms.core import files
from pangu_ms.core.errors import CheckpointError
from tests.checkpoint.common import (
    assert_is_step,
    assert_same,
    groups_of,
    save,
    small_config,
)


def test_what_was_saved_comes_back(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 100)
    assert path.name == "step-00000100"
    for given in (path, path.parent, tmp_path / "run"):
        checkpoint = store.open_checkpoint(given)
        assert checkpoint.path == path
        assert_is_step(checkpoint, 100)
        assert checkpoint.config() == small_config()
        assert checkpoint.tokenizer_path() is None


def test_manifest_says_what_and_who(tmp_path):
    manifest = store.open_checkpoint(save(tmp_path, 7)).manifest
    assert manifest["tensors"] == {"model": 2, "optimizer": 2}
    assert manifest["files"].keys() == {"model.safetensors", "optimizer.safetensors", "state.json", "config.yaml"}
    assert {"python", "pangu_ms", "mindspore", "numpy"} <= manifest["versions"].keys()
    assert manifest["format_version"] == 2 and manifest["created"].endswith("+00:00") and "git_revision" in manifest


def test_views_of_any_memory_order_keep_their_values(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {
        "columns": base[:, 2:4],
        "transposed": base.T,
        "reversed": base[::-1],
        "fortran": np.asfortranarray(base),
    }
    tensors |= {"big": base.astype(">f4"), "scalar": np.float32(3).reshape(()), "empty": base[:0], "flags": base[0] > 2}
    path = store.save(tmp_path, 1, {"model": tensors}, {}, small_config())
    expected = {name: np.array(array, array.dtype.newbyteorder("<"), order="C") for name, array in tensors.items()}
    assert_same(store.open_checkpoint(path).tensors(), expected)
    assert_same(safetensors.numpy.load_file(path / "model.safetensors"), expected)  # and the library agrees


def test_large_groups_are_cut_into_files(tmp_path):
    path = save(tmp_path, 1, max_shard_bytes=5000)
    assert sorted(p.name for p in path.glob("model*")) == ["model.safetensors"]
    assert sorted(p.name for p in path.glob("optimizer*")) == [
        "optimizer-00001-of-00002.safetensors",
        "optimizer-00002-of-00002.safetensors",
    ]
    assert_is_step(store.open_checkpoint(path), 1)


def test_the_tokenizer_is_copied(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    (tokenizer / "sub").mkdir(parents=True)
    (tokenizer / "vocab.model").write_bytes(b"\x00pieces")
    (tokenizer / "sub" / "words.txt").write_text("a\n")
    copy = store.open_checkpoint(save(tmp_path / "root", 1, tokenizer=tokenizer)).tokenizer_path()
    assert (copy / "vocab.model").read_bytes() == b"\x00pieces" and (copy / "sub" / "words.txt").read_text() == "a\n"
    (copy / "vocab.model").write_bytes(b"\x01pieces")
    with pytest.raises(CheckpointError, match="tokenizer/vocab.model has another content"):
        store.open_checkpoint(tmp_path / "root")
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        save(tmp_path / "root", 1, tokenizer=tmp_path / "nowhere")


def _flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "byte": (lambda step: _flip(step / "model.safetensors", -1), "model.safetensors has another content"),
    "truncated": (lambda step: os.truncate(step / "optimizer.safetensors", 100), "optimizer.safetensors has 100 bytes"),
    "grown": (lambda step: (step / "state.json").write_text("{}" * 999), "state.json has 1998 bytes"),
    "missing": (lambda step: (step / "config.yaml").unlink(), "config.yaml is missing"),
    "no manifest": (lambda step: (step / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest cut": (lambda step: os.truncate(step / "manifest.json", 50), "manifest.json is damaged"),
    "manifest list": (lambda step: (step / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "empty": (lambda step: [path.unlink() for path in step.iterdir()], "manifest.json is missing"),
    "newer format": (lambda step: _edit(step, format_version=3), "format version 3"),
    "edited": (lambda step: _edit(step, step=5), "was changed after it was written"),
}


def _edit(directory, **fields):
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | fields))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_steps_are_passed_over_and_named(tmp_path, caplog, kind):
    damage, reason = DAMAGE[kind]
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    checkpoint, passed_over = store.latest_valid(tmp_path)
    assert_is_step(checkpoint, 1)
    assert (
        len(passed_over) == 1
        and passed_over[0].startswith(f"{tmp_path / 'step-00000002'}: ")
        and reason in passed_over[0]
    )
    assert passed_over[0] in caplog.text
    with pytest.raises(CheckpointError, match=reason):
        store.open_checkpoint(tmp_path / "step-00000002")


def test_a_renamed_step_is_not_another_step(tmp_path):
    save(tmp_path, 1).rename(tmp_path / "step-00000009")
    assert store.latest_valid(tmp_path)[0] is None


def test_every_byte_of_the_manifest_counts(tmp_path):
    path = save(tmp_path, 1) / "manifest.json"
    text = path.read_bytes()
    for position in range(0, len(text), 7):
        path.write_bytes(text[:position] + b"7" + text[position + 1 :])
        checkpoint, _ = store.latest_valid(tmp_path)
        assert checkpoint is None or text[position : position + 1] in b"7 \n", position


def test_when_nothing_is_valid_all_reasons_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        store.open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no valid checkpoint \(no step-\* directory in it\)"):
        store.open_checkpoint(tmp_path)
    (save(tmp_path, 1) / "state.json").unlink()
    (save(tmp_path, 2) / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="step-00000002: model.safetensors is missing.*step-00000001: state.json is missing"
    ) as error:
        store.open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_a_group_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no teacher tensors; it holds model, optimizer"):
        store.open_checkpoint(save(tmp_path, 1)).tensors("teacher")


def test_leftovers_are_named_then_removed_by_the_next_save(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / ".step-00000002.0123abcd.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    checkpoint, passed_over = store.latest_valid(tmp_path)
    assert_is_step(checkpoint, 1)
    assert [line for line in passed_over if str(leftover) in line]
    save(tmp_path, 2)
    assert not leftover.exists() and store.latest_valid(tmp_path)[1] == []


def _names(root):
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


def test_retention_keeps_the_newest_complete_ones(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert _names(tmp_path) == ["step-00000004", "step-00000005"]
    (tmp_path / "step-00000005" / "manifest.json").unlink()
    save(tmp_path, 6, keep=2)  # 5 does not count, and stays to be named
    assert _names(tmp_path) == ["step-00000004", "step-00000005", "step-00000006"]
    save(tmp_path, 3, keep=1)  # just written: stays although 6 is newer
    assert _names(tmp_path) == ["step-00000003", "step-00000006"]
    save(tmp_path, 7)
    assert len(_names(tmp_path)) == 3


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, generation=0)
    save(tmp_path, 1, generation=1)
    checkpoint, _ = store.latest_valid(tmp_path)
    assert checkpoint.state()["generation"] == 1
    assert_is_step(checkpoint, 1)
    assert _names(tmp_path) == ["step-00000001"]


def test_names_and_shapes_are_strict():
    tensors = {f"n{i}": np.zeros((2, 3)) for i in range(9)}
    store.check_names_and_shapes("here", tensors, dict.fromkeys(tensors, (2, 3)))
    expected = {f"n{i}": (2, 3) for i in range(1, 8)} | {"n8": (3, 2), "m": (1,)}
    with pytest.raises(CheckpointError) as error:
        store.check_names_and_shapes("here", tensors, expected)
    assert str(error.value).startswith(
        "here: 1 missing: m; 1 unexpected: n0; 1 of another shape: n8 (2, 3) instead of (3, 2); "
    )
    with pytest.raises(CheckpointError, match="9 unexpected: n0, n1, n2, n3, n4, and 4 more"):
        store.check_names_and_shapes("here", tensors, {})


def test_a_state_that_is_no_json_fails_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        store.save(tmp_path / "root", 1, groups_of(1), {"step": np.int64(1)}, small_config())
    assert not (tmp_path / "root").exists()


def test_the_store_does_not_import_mindspore():
    code = "import sys, pangu_ms.checkpoint.convert, pangu_ms.cli.convert; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_mindir_package_is_named_as_one(tmp_path):
    manifest = {"format_version": 2, "graph": {}, "files": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"sha256": files.sha256_json(manifest)}))
    with pytest.raises(CheckpointError, match="is a MindIR package, which `pangu run-mindir` runs"):
        store.open_checkpoint(tmp_path)
