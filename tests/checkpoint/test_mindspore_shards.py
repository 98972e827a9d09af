"""MindSpore's sharded checkpoints against its own transform_checkpoints."""

import json
import os
import shutil

import numpy as np
import pytest

from pangu_ms.checkpoint import safetensors_file, sharded, store
from pangu_ms.checkpoint.mindspore_shards import index
from pangu_ms.cli import main as cli
from pangu_ms.parallel.plan import Plan
from pangu_ms.parallel.strategy_file import write_parameter_layouts
from tests.checkpoint.common import assert_same
from tests.checkpoint.reshard_common import ALPHA, fails, overrides, planned, rank_slice, whole_arrays


@pytest.fixture(scope="module")
def ms_shards(tmp_path_factory, mindspore_cpu):
    """MindSpore's checkpoints of plan (2, 2, 2): strategy file, a directory of .ckpt and one of .safetensors."""
    import mindspore as ms

    root, plan = tmp_path_factory.mktemp("ms"), (2, 2, 2, 1, 1, 1, 3)
    config = planned(ALPHA, plan)
    for stage in (0, 1):
        write_parameter_layouts(Plan.of(config), stage, root / "strategies" / f"stage{stage}.ckpt")
    ms.merge_pipeline_strategys(str(root / "strategies"), str(root / "strategy.ckpt"))
    groups = whole_arrays(config)
    groups["model"]["final_norm.weight"] = groups["model"]["final_norm.weight"].astype(np.float32)
    arrays = {
        name: array for tensors in groups.values() for name, array in tensors.items() if name not in ("count", "seen")
    }
    for rank in range(8):
        held = {name: rank_slice(plan, name, array, rank) for name, array in arrays.items()}
        values = [
            {"name": name, "data": ms.Tensor(np.ascontiguousarray(found[0]))} for name, found in held.items() if found
        ]
        for kind in ("ckpt", "safetensors"):
            (root / kind / f"rank_{rank}").mkdir(parents=True)
            step = [{"name": "global_step", "data": ms.Tensor(9)}]
            ms.save_checkpoint(
                values + step,
                str(root / kind / f"rank_{rank}" / f"m.{kind}"),
                format=kind,
                crc_check=kind == "ckpt" and rank == 1,
            )
    return root, config, arrays


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_mindspores_own_shards_come_out_as_its_own_tool_has_them(tmp_path, ms_shards, kind, capsys):
    import mindspore as ms

    root, _, arrays = ms_shards
    plan = (1, 4, 1, 0, 0, 4)
    arguments = [
        "ckpt",
        "reshard",
        "--from-mindspore",
        str(root / kind),
        "--config",
        *ALPHA,
        *overrides(plan),
        "--step",
        "9",
        "--json",
    ]
    stages = [str(root / "strategies" / f"stage{stage}.ckpt") for stage in (0, 1)]
    assert (
        cli.main(
            [
                *arguments,
                "--output",
                str(tmp_path / "out"),
                "--strategy",
                *(stages if kind == "ckpt" else [str(root / "strategy.ckpt")]),
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["left_out"] == ["global_step"] and result["output"].endswith("step-00000009")
    checkpoint = store.open_checkpoint(tmp_path / "out")
    assert_same(checkpoint.tensors("model") | checkpoint.tensors("optimizer"), arrays)
    if kind == "ckpt":
        write_parameter_layouts(Plan.of(planned(ALPHA, plan)), 0, tmp_path / "target.ckpt")
        ms.transform_checkpoints(
            str(root / "ckpt"), str(tmp_path / "ms"), "q", str(root / "strategy.ckpt"), str(tmp_path / "target.ckpt")
        )
        for rank in range(4):
            theirs = {
                name: value.asnumpy()
                for name, value in ms.load_checkpoint(str(tmp_path / "ms" / f"rank_{rank}" / f"q{rank}.ckpt")).items()
            }
            for group in checkpoint.groups:
                ours = safetensors_file.read(checkpoint.path / sharded.rank_file(group, rank))
                assert_same({name: theirs[name] for name in ours}, ours)


def test_bfloat16_of_mindspore_keeps_its_bits(tmp_path, mindspore_cpu):
    import mindspore as ms

    values = np.array([[1.5, -3.25], [2.0**100, 0.0]], np.float32)
    for kind in ("ckpt", "safetensors"):
        tensors = [
            {"name": "w", "data": ms.Tensor(values, ms.bfloat16)},
            {"name": "s", "data": ms.Tensor(2.0, ms.float32)},
        ]
        ms.save_checkpoint(tensors, str(tmp_path / f"m.{kind}"), format=kind)
        spec, place = index(tmp_path / f"m.{kind}")["w"]
        assert spec.code == "BF16" and index(tmp_path / f"m.{kind}")["s"][0].shape == ()
        np.testing.assert_array_equal(place.map(spec), values.view(np.uint32) >> 16)
        np.testing.assert_array_equal(sharded.whole(spec, place).values(), values)


def test_what_is_wrong_with_mindspores_files_is_one_line(tmp_path, ms_shards, capsys):
    root, _, _ = ms_shards
    here = tmp_path / "ckpt"
    shutil.copytree(root / "ckpt", here)
    arguments = [
        "--from-mindspore",
        here,
        "--strategy",
        root / "strategy.ckpt",
        "--output",
        tmp_path / "out",
        "--config",
        ALPHA[0],
        *ALPHA[1:],
    ]
    assert "64 missing: blocks.3." in fails(capsys, *arguments, "model.num_layers=8")
    assert "of another shape" in fails(capsys, *arguments, "model.seq_length=32")
    assert "unexpected: blocks.2." in fails(capsys, *arguments, "model.num_layers=3")
    one_stage = [word if word != root / "strategy.ckpt" else root / "strategies" / "stage0.ckpt" for word in arguments]
    assert "rank_7: the strategy has 4 ranks" in fails(capsys, *one_stage)
    shutil.rmtree(here / "rank_3")
    assert "weight that rank 3 should have is in no file" in fails(capsys, *arguments)
    shutil.copytree(root / "ckpt" / "rank_3", here / "rank_3")
    file = here / "rank_5" / "m.ckpt"
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size - 100)
    assert f"{file}: not a whole MindSpore checkpoint" in fails(capsys, *arguments)
    file.unlink()
    assert "rank 5 has no .ckpt or .safetensors; must be one file" in fails(capsys, *arguments)
    for rank in range(4, 8):
        shutil.rmtree(here / f"rank_{rank}")
    assert "none of the ranks 4 to 7 has" in fails(capsys, *arguments)
    assert not (tmp_path / "out").exists()
