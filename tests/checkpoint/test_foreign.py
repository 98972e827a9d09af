"""One-file weights: .ckpt, .npz, .safetensors."""

import json
import os
import resource
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_ms.checkpoint import foreign, mindspore_shards, safetensors_file
from pangu_ms.core.dtypes import BFLOAT16, widened
from pangu_ms.core.errors import CheckpointError, OutputError
from pangu_ms.core.protobuf import message_field, number_field
from tests.checkpoint.common import assert_same

SUFFIXES = [".ckpt", ".npz", ".safetensors"]
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
TENSORS = {
    "a.weight": BASE,
    "a.half": BASE.astype(np.float16),
    "a.columns": BASE[:, 1:3],
    "a.turned": BASE.T,
    "scalar": np.float32(2).reshape(()),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"weights{suffix}"
    foreign.write_file(path, {"old": BASE})
    foreign.write_file(path, TENSORS)  # replaces it
    assert_same(foreign.read_file(path), TENSORS)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "directory", "absent"])
def test_damaged_files_are_one_line(tmp_path, suffix, damage):
    path = tmp_path / f"weights{suffix}"
    if damage == "directory":
        path.mkdir()
    elif damage != "absent":
        foreign.write_file(path, TENSORS)
        content = path.read_bytes()
        path.unlink()  # MindSpore makes it read-only
        path.write_bytes(
            {"empty": b"", "half": content[: len(content) // 2], "garbage": b"<html>not found</html>" * 9}[damage]
        )
    with pytest.raises(CheckpointError) as error:
        foreign.read_file(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_unknown_suffix(tmp_path):
    for call, suffix in ((foreign.read_file, ".pkl"), (lambda path: foreign.write_file(path, TENSORS), ".bin")):
        with pytest.raises(
            CheckpointError, match=rf"unknown kind of file '{suffix}'; weights are .ckpt, .npz, .safetensors"
        ):
            call(tmp_path / f"pytorch_model{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_keeps_the_old_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    foreign.write_file(path, TENSORS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(OutputError, match="free some room"):
            foreign.write_file(path, {"large": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(foreign.read_file(path), TENSORS)
    assert os.listdir(tmp_path) == [path.name]


def test_bfloat16_is_read_bit_for_bit(tmp_path):
    values = np.array([[1.0, -2.5], [3.140625, 1e-30], [np.inf, 0.0]], np.float32)
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)  # exact for all but 1e-30
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"x": upper}, path)
    _retype(path)
    found = widened(foreign.read_file(path)["x"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values, rtol=2**-7)
    np.testing.assert_array_equal(found[:1], values[:1])


def _retype(path):
    """Turn the U16 tensors of a file into BF16 by its header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"U16"', b'"BF16"').rstrip()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def test_bfloat16_of_mindspore(tmp_path):
    import mindspore as ms

    path = tmp_path / "w.ckpt"
    ms.save_checkpoint([{"name": "x", "data": ms.Tensor(BASE, dtype=ms.bfloat16)}], str(path))
    found = foreign.read_file(path)["x"]
    assert found.dtype == BFLOAT16
    assert_same({"x": widened(found)}, {"x": BASE})
    foreign.write_file(tmp_path / "v.ckpt", {"x": found})
    assert ms.load_checkpoint(str(tmp_path / "v.ckpt"))["x"].dtype == ms.bfloat16
    assert_same(foreign.read_file(tmp_path / "v.ckpt"), {"x": found})


def test_files_of_the_library_are_read(tmp_path):
    tensors = {f"x{i}": BASE.astype(dtype) for i, dtype in enumerate("f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 ?".split())}
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors", {"any": "metadata"})
    assert_same(safetensors_file.read(tmp_path / "w.safetensors"), tensors)
    foreign.write_file(tmp_path / "v.safetensors", tensors)
    assert_same(safetensors.numpy.load_file(tmp_path / "v.safetensors"), tensors)


def test_a_dtype_without_a_code(tmp_path):
    with pytest.raises(CheckpointError, match="x: dtype complex128"):
        foreign.write_file(tmp_path / "w.safetensors", {"x": np.zeros(1, complex)})
    assert not list(tmp_path.iterdir())


def test_a_shape_larger_than_the_file_claims_no_memory(tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        foreign.read_file(tmp_path / "w.safetensors")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 250), st.binary(min_size=1, max_size=4))
def test_a_damaged_header_is_never_a_traceback(tmp_path_factory, position, bytes_):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    content = b"".join(bytes(piece) for piece in safetensors_file.encode({"a": BASE, "b": BASE[0], "c": BASE > 3}))
    path.write_bytes(content[:position] + bytes_ + content[position + len(bytes_) :])
    try:
        safetensors_file.read(path)
    except CheckpointError:
        pass


SOUND = {
    "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]},
}


def with_second(**changes):
    return json.dumps(SOUND | {"b": SOUND["b"] | changes})


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (with_second(data_offsets=[1, 3]), 3),  # overlaps
        (with_second(data_offsets=[3, 5]), 5),  # leaves a hole
        (json.dumps(SOUND), 5),  # leaves bytes behind
        (with_second(shape=[2.0]), 4),
        ('{"a":' * 100_000, 4),
    ],
)
def test_a_header_that_the_library_refuses(tmp_path, header, size):
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(size))
    with pytest.raises((safetensors.SafetensorError, TypeError)):
        safetensors.numpy.load_file(path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        safetensors_file.read(path)


@pytest.mark.parametrize("shape", [[1] * 33, [1 << 62] * 200_000, [1 << 63, 0]])
def test_shapes_that_no_array_has(tmp_path, shape):
    """The product of so many large numbers would take hours."""
    header = json.dumps({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 1]}})
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(1))
    (tmp_path / "w.ckpt").write_bytes(ckpt(bytes(4), shape))
    for name in ("w.safetensors", "w.ckpt"):
        with pytest.raises(CheckpointError) as error:
            foreign.read_file(tmp_path / name)
        assert ("dimensions, more than 32" in str(error.value)) == (len(shape) > 32) and len(str(error.value)) < 500


def test_a_header_that_names_a_tensor_twice(tmp_path):
    header = json.dumps(SOUND)[:-1] + ',"a":' + json.dumps(SOUND["a"]) + "}"
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(CheckpointError, match="key 'a' stands twice"):
        safetensors_file.read(tmp_path / "w.safetensors")


def ckpt(content, dims=(2, 3), times=1):
    """A MindSpore checkpoint with one float32 tensor."""
    tensor = b"".join(number_field(1, dim) for dim in dims) + message_field(2, b"Float32") + message_field(3, content)
    return message_field(1, message_field(1, b"x") + message_field(2, tensor)) * times


@pytest.mark.parametrize(
    "content",
    [
        ckpt(bytes(4000)),
        ckpt(bytes(8)),
        ckpt(bytes(24), times=2),
        ckpt(bytes(24), dims=(-2, -3)),
        ckpt(bytes(24), dims=(1 << 40, 1 << 40)),
    ],
)
def test_a_ckpt_whose_content_is_not_what_its_dims_say(tmp_path, content, monkeypatch):
    import mindspore

    monkeypatch.setattr(mindspore, "load_checkpoint", None)  # which would write past the array's end
    path = tmp_path / "w.ckpt"
    path.write_bytes(content)
    for read in (foreign.read_file, mindspore_shards.index):
        with pytest.raises(CheckpointError, match="not a whole MindSpore checkpoint"):
            read(path)


def test_a_ckpt_of_these_parts_is_read(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(ckpt(BASE[0].tobytes()))
    assert_same(foreign.read_file(tmp_path / "w.ckpt"), {"x": BASE[0].reshape(2, 3)})


def test_text_beside_the_weights_of_a_ckpt(tmp_path):
    import mindspore as ms

    ms.save_checkpoint(
        [{"name": "x", "data": ms.Tensor(BASE)}], str(tmp_path / "w.ckpt"), append_dict={"epoch": 3, "said": "hello"}
    )
    assert_same({"x": foreign.read_file(tmp_path / "w.ckpt")["x"]}, {"x": BASE})


@pytest.mark.parametrize("member", [b"", b"text", b"\x93NUMPY\x01\x00\x10\x00(((((((((((((((("])
def test_an_npz_with_a_strange_member(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(CheckpointError, match="w.npz: "):
        foreign.read_file(tmp_path / "w.npz")


def test_an_npz_with_objects(tmp_path):
    np.savez(tmp_path / "w.npz", x=np.array([{}]))
    with pytest.raises(CheckpointError, match="not a whole .npz archive"):
        foreign.read_file(tmp_path / "w.npz")
