"""Resharding against plain numpy slices; kills, damage, memory."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pangu_ms.checkpoint import sharded, store
from pangu_ms.checkpoint.reshard import Source, reshard
from pangu_ms.cli import main as cli
from pangu_ms.config import dump_config, load_config
from pangu_ms.core.errors import CheckpointError
from tests.checkpoint.common import assert_same
from tests.checkpoint.reshard_common import (
    ALPHA,
    ALPHA_PLANS,
    PI,
    PI_PLANS,
    assert_lies_as,
    fails,
    planned,
    save,
    whole_arrays,
)

TIED = [*PI, "model.tie_word_embeddings=true"]


@pytest.mark.parametrize(
    "base, plans", [(ALPHA, ALPHA_PLANS), (PI, PI_PLANS), (TIED, PI_PLANS)], ids=["alpha", "pi", "tied"]
)
def test_a_ring_of_plans_gives_every_slice_as_numpy_does_and_comes_back_to_the_same_bytes(tmp_path, base, plans):
    config = load_config(base[0], base[1:])
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.model").write_bytes(b"\x00pieces")
    groups = whole_arrays(config)
    path = first = save(tmp_path / "whole", config, groups, tokenizer=tokenizer)
    for number, plan in enumerate(plans):
        new = planned(base, plan)
        path = reshard(Source.of(store.open_checkpoint(path)), tmp_path / str(number), new)
        checkpoint = store.open_checkpoint(path)
        assert_lies_as(checkpoint, plan, groups)
        assert checkpoint.config() == new
        for group, tensors in groups.items():
            assert_same(checkpoint.tensors(group), tensors)
    path = reshard(Source.of(checkpoint), tmp_path / "again", config, whole=True)
    for file in ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "tokenizer/vocab.model"):
        assert (path / file).read_bytes() == (first / file).read_bytes(), file


def test_a_checkpoint_in_slices_gives_one_tensor_after_the_other(tmp_path, monkeypatch):
    config = planned(ALPHA, ALPHA_PLANS[3])
    path = reshard(Source.of(store.open_checkpoint(save(tmp_path / "a", config))), tmp_path / "b", config)
    read, original = [], sharded.StoredTensor.read
    monkeypatch.setattr(
        sharded.StoredTensor, "read", lambda self, wanted: (read.append(self), original(self, wanted))[1]
    )
    each = store.open_checkpoint(path).each("optimizer")
    assert next(each)[0] == "adam_m.word_embedding.weight" and len(read) == 1


@pytest.fixture
def in_slices(tmp_path):
    """A sharded checkpoint of eight ranks."""
    config = planned(ALPHA, ALPHA_PLANS[3])
    return reshard(Source.of(store.open_checkpoint(save(tmp_path / "a", config))), tmp_path / "b", config)


def test_the_command_goes_there_and_back(tmp_path, in_slices, capsys):
    assert (
        cli.main(
            [
                "ckpt",
                "reshard",
                str(in_slices.parent),
                "--output",
                str(tmp_path / "c"),
                "--whole",
                "--step",
                "5",
                "--json",
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert (
        result["whole"]
        and result["global_batch_size"] == {"before": 24, "after": 24}
        and result["parallel"]["pipeline_stage"] == 1
    )
    assert (tmp_path / "c/checkpoints/step-00000005/model.safetensors").read_bytes() == (
        tmp_path / "a/step-00000005/model.safetensors"
    ).read_bytes()
    assert (
        cli.main(["ckpt", "reshard", str(tmp_path / "c"), "--output", str(tmp_path / "d"), "parallel.model_parallel=4"])
        == 0
    )
    assert "for 4 ranks (pp 1, dp 1, mp 4)" in capsys.readouterr().out
    assert_same(
        store.open_checkpoint(tmp_path / "d").tensors("optimizer"),
        whole_arrays(store.open_checkpoint(tmp_path / "d").config())["optimizer"],
    )


def test_mistakes_are_told_before_anything_is_read_or_written(tmp_path, in_slices, capsys, monkeypatch):
    monkeypatch.setattr("pangu_ms.core.files.sha256_file", lambda path: pytest.fail("digests take minutes"))
    to = ["--output", tmp_path / "c"]
    assert "must divide num_heads=4" in fails(capsys, in_slices, *to, "parallel.model_parallel=8")
    assert "micro_batch_num=7: must divide train.batch_size=12" in fails(
        capsys, in_slices, *to, "parallel.micro_batch_num=7"
    )
    assert "model.num_layers=8: a checkpoint keeps its configuration; only parallel.*" in fails(
        capsys, in_slices, *to, "model.num_layers=8"
    )
    assert "has no step 4; its steps: 5; name one" in fails(capsys, in_slices.parent, *to, "--step", 4)
    assert "a: has other content (step-00000005); nothing is overwritten" in fails(
        capsys, in_slices, "--output", tmp_path / "a", "--whole"
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "1000 bytes are free; the tensors take" in fails(capsys, in_slices, *to, "--whole")
    (in_slices / "optimizer-rank-00006.safetensors").unlink()
    assert "optimizer-rank-00006.safetensors (rank 6's optimizer tensors) is missing" in fails(
        capsys, in_slices, *to, "--whole"
    )
    assert not (tmp_path / "c").exists()


def test_damage_and_another_model_are_named(tmp_path, in_slices, capsys):
    config = load_config(ALPHA[0], [*ALPHA[1:], "model.seq_length=32"])
    with pytest.raises(
        CheckpointError, match=r"2 of another shape: position_embedding.weight \(16, 64\) instead of \(32, 64\)"
    ):
        reshard(Source.of(store.open_checkpoint(in_slices)), tmp_path / "c", config)
    file = in_slices / "model-rank-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "model-rank-00002.safetensors has another content" in fails(
        capsys, in_slices, "--output", tmp_path / "c", "--whole"
    )
    assert not (tmp_path / "c").exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("reads", [1, 40, 120])
def test_a_kill_leaves_the_source_and_no_target(tmp_path, in_slices, monkeypatch, reads):
    before = {path.name: path.read_bytes() for path in in_slices.iterdir()}
    config = load_config(ALPHA[0], ALPHA[1:])
    if (child := os.fork()) == 0:
        left, original = iter(range(reads)), sharded.StoredTensor.read

        def read_or_die(*args):
            return original(*args) if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(sharded.StoredTensor, "read", read_or_die)
        reshard(Source.of(store.open_checkpoint(in_slices)), tmp_path / "c", config, whole=True)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name[:14] for path in (tmp_path / "c").glob("*step*")] == [".step-00000005"]
    assert {path.name: path.read_bytes() for path in in_slices.iterdir()} == before
    reshard(Source.of(store.open_checkpoint(in_slices)), tmp_path / "c", config, whole=True)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [".lock", "step-00000005"]


MEASURE = r"""
import re, sys
from pathlib import Path
from pangu_ms.checkpoint import store
from pangu_ms.checkpoint.reshard import Source, reshard
from pangu_ms.config import load_config
import tqdm

def peak_kib():  # not ru_maxrss, which a process inherits from its parent
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

source = Source.of(store.open_checkpoint(Path(sys.argv[1]), digests=False))
config = load_config(sys.argv[3])
before = peak_kib()
reshard(source, Path(sys.argv[2]), config, whole=sys.argv[4] == "1")
print(peak_kib() - before)
"""


def test_memory_is_that_of_one_parameter_and_not_of_the_model(tmp_path):
    wide = ["alpha/tiny", "model.hidden_size=256", "model.num_heads=8", "model.vocab_size=512", "model.num_layers=8"]
    config = load_config(wide[0], wide[1:])
    sizes = {name: np.zeros(shape, np.float32) for name, shape in config.model.parameter_shapes().items()}
    groups = {
        "model": sizes,
        "optimizer": {prefix + name: array for prefix in ("adam_m.", "adam_v.") for name, array in sizes.items()},
    }
    path = store.save(tmp_path / "0", 5, groups, {}, config)
    largest, total = max(array.nbytes for array in sizes.values()), 3 * sum(array.nbytes for array in sizes.values())
    plans = [(2, 4, 2, 1, 1, 4, 4), (1, 1, 2, 0, 0, 7, 1), (1, 1, 1, 0, 0, 8)]
    for number, plan in enumerate(plans, 1):
        new = tmp_path / f"{number}.yaml"
        new.write_text(dump_config(planned(wide, plan)))
        arguments = [str(path), str(tmp_path / str(number)), str(new), str(int(plan is plans[-1]))]
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        grown = int(run.stdout) << 10
        assert total > 60 * largest and grown < 4 * largest
        path = tmp_path / str(number) / "step-00000005"


def test_resharding_does_not_import_mindspore():
    code = "import sys, pangu_ms.cli.ckpt_reshard; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
