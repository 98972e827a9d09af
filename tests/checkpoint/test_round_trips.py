"""Every format of every family, out and in and out again: the same tensors, and the same bytes of the files."""

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, store
from pangu_ms.config import load_config
from pangu_ms.core.dtypes import BFLOAT16, to_bfloat16
from pangu_ms.models.registry import FAMILIES
from tests.checkpoint.common import assert_same

pytestmark = pytest.mark.fast
SMALL = ["model.vocab_size=64", "model.hidden_size=64", "model.num_heads=4", "model.seq_length=16"]
CASES = [(family, format) for family, parts in FAMILIES.items() for format in parts.formats]


def saved(root, family):
    """A checkpoint with random weights; returns its configuration."""
    config, rng = load_config(f"{family}/tiny", SMALL), np.random.default_rng(0)
    specs = config.model.parameters()
    weights = {
        name: rng.standard_normal(shape, np.float32)
        if specs[name].dtype == "float32"
        else rng.integers(0, 4, shape).astype(np.int32)
        for name, shape in config.model.parameter_shapes().items()
    }
    store.save(root, 0, {"model": weights}, {}, config)
    return config


@pytest.mark.parametrize("family, format", CASES)
def test_one_file(family, format, tmp_path):
    config = saved(tmp_path / "ours", family)
    convert.export_file(tmp_path / "ours", format, tmp_path / "out.safetensors")
    back = convert.import_file(tmp_path / "out.safetensors", format, config, tmp_path / "back")
    assert_same(store.open_checkpoint(back).tensors(), store.open_checkpoint(tmp_path / "ours").tensors())
    convert.export_file(back, format, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


@pytest.mark.parametrize(
    "family, format", [(family, format) for family, format in CASES if FAMILIES[family].formats[format].write_config]
)
def test_a_directory_of_several_files_in_half_precision(family, format, tmp_path):
    saved(tmp_path / "ours", family)
    convert.export_file(tmp_path / "ours", format, tmp_path / "out", "bfloat16", max_shard_bytes=50_000)
    back = convert.import_file(tmp_path / "out", format, None, tmp_path / "back", dtype="bfloat16")
    stored, ours = store.open_checkpoint(back).stored(), store.open_checkpoint(tmp_path / "ours").tensors()
    assert stored.keys() == ours.keys()
    for name, tensor in stored.items():
        found = tensor.array()
        assert found.dtype == BFLOAT16 and (found == to_bfloat16(ours[name])).all(), name
    convert.export_file(back, format, tmp_path / "again", "bfloat16", max_shard_bytes=50_000)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "again")]
    assert contents[0] == contents[1] and len(contents[0]) > 3
