"""Weights as bfloat16 and float16: rounded to the nearest, ties to even; kept bit for bit; said in one line."""

import json

import numpy as np
import pytest
import safetensors.numpy

from pangu_ms.checkpoint import convert, foreign, store
from pangu_ms.cli.main import main
from pangu_ms.core.dtypes import BFLOAT16, bits, cast, to_bfloat16, widened
from pangu_ms.core.errors import CheckpointError
from tests.checkpoint.alpha_tensors import foreign_tensors, our_tensors
from tests.checkpoint.common import SIZES, assert_same, small_config

OFFICIAL = ["--from", "official", "--config", "alpha/tiny", *SIZES, "model.num_layers=3"]


def values() -> np.ndarray:
    """float32 of every size: random bits, ties in both directions, subnormal, zero, the largest that stay finite."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 20000, dtype=np.uint32).view(np.float32)
    ties = (np.arange(1, 4001, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    near = np.concatenate([(ties.view(np.uint32) + 1).view(np.float32), (ties.view(np.uint32) - 1).view(np.float32)])
    edge = np.array(
        [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.3895313892515355e38, -3.39e38, 1e-45, 65504, 65520], np.float32
    )
    found = np.concatenate([random, ties, -ties, near, edge])
    return found[np.abs(found) < np.float32(3.396e38)]


def nearest(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 in float64, from the definition: the one of two neighbours with the smaller distance, or
    with an even last bit."""
    below = array.view(np.uint32) & 0xFFFF0000
    low, high = (
        below.view(np.float32).astype(np.float64),
        (below + np.uint32(0x10000)).view(np.float32).astype(np.float64),
    )
    exact = array.astype(np.float64)
    up = np.abs(high - exact) < np.abs(exact - low)
    tie = np.abs(high - exact) == np.abs(exact - low)
    return np.where(up | (tie & (below >> 16 & 1 == 1)), high, low)


def test_bfloat16_is_the_nearest_and_ties_go_to_even():
    rounded = to_bfloat16(values())
    assert rounded.dtype == BFLOAT16
    np.testing.assert_array_equal(widened(rounded).astype(np.float64), nearest(values()))
    one = widened(to_bfloat16(np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)))
    assert one.tolist() == [1, 1 + 2**-6, 1 + 2**-7]
    assert np.isinf(widened(to_bfloat16(np.array([3.4e38], np.float32))))[0]
    assert np.isnan(widened(to_bfloat16(np.array([0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)))).all()


def test_bfloat16_is_what_pytorch_makes():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(
        bits(to_bfloat16(values())), torch.from_numpy(values()).to(torch.bfloat16).view(torch.uint16).numpy()
    )


def test_all_ways_between_dtypes():
    base = np.array([[1.0, -2.5, 0.099975586], [3.140625, 65504, 6e-8]], np.float32)
    half = cast("w", {"x": base}, "float16")["x"]
    np.testing.assert_array_equal(half, base.astype(np.float16))
    for source in (half, to_bfloat16(base), base.astype(np.float64), base.T):
        name = "bfloat16" if source.dtype == BFLOAT16 else source.dtype.name
        for dtype in ("float32", "float16", "bfloat16"):
            if (name, dtype) == ("bfloat16", "float16"):
                continue  # 65504 becomes 65536 there
            found = cast("w", {"x": source}, dtype)["x"]
            exact = widened(source).astype(np.float32)
            expected = nearest(np.ascontiguousarray(exact)) if dtype == "bfloat16" else exact.astype(dtype)
            np.testing.assert_array_equal(widened(found), expected)
    with pytest.raises(CheckpointError, match="w: x has values that are not finite in float16"):
        cast("w", {"x": to_bfloat16(base)}, "float16")
    with pytest.raises(CheckpointError, match="w: x has values that are not finite in bfloat16"):
        cast("w", {"x": np.array([3.4e38], np.float32)}, "bfloat16")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_bfloat16_out_of_a_checkpoint_and_back(tmp_path, suffix, capsys):
    """Once rounded, nothing changes any more, in a file or in a checkpoint."""
    foreign.write_file(tmp_path / "w.npz", foreign_tensors("official"))
    assert main(["convert", str(tmp_path / "w.npz"), *OFFICIAL, "--output", str(tmp_path / "ours")]) == 0
    capsys.readouterr()
    file, kept = tmp_path / f"w{suffix}", tmp_path / "kept"
    assert (
        main(["convert", str(tmp_path / "ours"), "--to", "official", "--dtype", "bfloat16", "--output", str(file)]) == 0
    )
    assert (
        capsys.readouterr().out.splitlines()[0] == "weights: float32 narrowed to bfloat16, each rounded to the nearest"
    )
    assert main(["convert", str(file), *OFFICIAL, "--dtype", "bfloat16", "--json", "--output", str(kept)]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][0] == "weights: bfloat16, kept"
    assert {tensor.spec.code for tensor in store.open_checkpoint(kept).stored().values()} == {"BF16"}
    assert_same(
        store.open_checkpoint(kept).tensors(),
        {name: nearest(array).astype(np.float32) for name, array in our_tensors(3).items()},
    )
    assert main(["convert", str(file), *OFFICIAL, "--output", str(tmp_path / "wide")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "weights: bfloat16 widened to float32, which holds them exactly"
    assert_same(store.open_checkpoint(tmp_path / "wide").tensors(), store.open_checkpoint(kept).tensors())
    convert.export_file(kept, "official", tmp_path / "again.safetensors", dtype="bfloat16")
    assert_same(foreign.read_file(tmp_path / "again.safetensors"), foreign.read_file(file))


def test_float16_is_rounded_as_numpy_rounds(tmp_path):
    step = store.save(tmp_path / "ours", 0, {"model": our_tensors(3)}, {}, small_config(3))
    convert.export_file(step, "huggingface", tmp_path / "w.safetensors", dtype="float16")
    found = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(
        found["transformer.wte.weight"], our_tensors(3)["word_embedding.weight"].astype(np.float16)
    )
    assert {array.dtype for array in found.values()} == {np.dtype(np.float16)}


def test_numpys_files_have_no_bfloat16(tmp_path, capsys):
    step = store.save(tmp_path / "ours", 0, {"model": our_tensors(3)}, {}, small_config(3))
    command = ["convert", str(step), "--to", "official", "--dtype", "bfloat16", "--output"]
    assert main([*command, str(tmp_path / "w.npz")]) == 2
    assert "numpy's files have no bfloat16; it goes into a .safetensors" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "w.safetensors")]) == 0
