"""Files of torch.save: read without torch, and without running anything in them."""

import argparse
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from pangu_ms.checkpoint import convert, foreign, store, torch_file
from pangu_ms.checkpoint.pickle_values import Opaque
from pangu_ms.core.dtypes import BFLOAT16, to_bfloat16, widened
from pangu_ms.core.errors import CheckpointError
from tests.checkpoint.alpha_tensors import foreign_tensors, our_tensors
from tests.checkpoint.common import assert_same, small_config
from tests.checkpoint.torch_writer import KINDS, Storage, T, members, notes, pickled, save, save_legacy, write_zip

pytestmark = pytest.mark.fast


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    found = {
        kind: (rng.normal(size=(3, 4)) * 50).astype(kind)
        for kind in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
    }
    return found | {
        "bfloat16": to_bfloat16(rng.normal(size=(2, 3)).astype(np.float32)),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 5), np.float32),
    }


def read(path) -> dict[str, np.ndarray]:
    return {name: tensor.array() for name, tensor in torch_file.index(path).items()}


def refused(path) -> str:
    """The message about a file, which is one line."""
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value) and "; " in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_and_every_protocol(tmp_path, protocol):
    assert_same(read(save(tmp_path / "w.pt", arrays(), protocol)), arrays())


def test_the_old_form(tmp_path):
    value = {"model": OrderedDict(arrays()), **notes()}
    found = read(save_legacy(tmp_path / "w.pt", value))
    assert_same({name[6:]: array for name, array in found.items() if name.startswith("model.")}, arrays())
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[:-9])
    assert "it may be cut off" in refused(tmp_path / "cut.pt")
    (tmp_path / "tar.pt").write_bytes(b"x" * 257 + b"ustar" + b"0" * 300)
    assert "a tar archive, as PyTorch 0.1 wrote it" in refused(tmp_path / "tar.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "a pickle that torch.save did not write: it begins with a dict" in refused(tmp_path / "plain.pt")


def test_views_parameters_and_what_stands_beside_them(tmp_path):
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    storage = Storage(whole)
    value = {
        "rows": T(None, storage, 6, (2, 6), (6, 1)),
        "columns": T(None, storage, 2, (4, 2), (6, 1)),
        "transposed": T(None, storage, 0, (6, 4), (1, 6)),
        "parameter": T(None, storage, 0, (4, 6), (6, 1), parameter=True),
        "attributed": T(None, storage, 1, (), (), attributes={"tensor_model_parallel": True}),
        "list": [whole[:1], {"deep": whole[1:2]}],
        **notes(num_layers=31),
    }
    path = save(tmp_path / "w.pt", value)
    found = torch_file.index(path)
    expected = {
        "rows": whole[1:3],
        "columns": whole[:, 2:4],
        "transposed": whole.T,
        "parameter": whole,
        "attributed": whole[0, 1],
        "list.0": whole[:1],
        "list.1.deep": whole[1:2],
    }
    assert found.keys() == expected.keys() | {"torch_rng_state", "rng_tracker_states.model-parallel-rng"}
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].array(), array, err_msg=name)
        part = tuple(slice(size // 3, size) for size in array.shape)
        np.testing.assert_array_equal(found[name].read(part), array[part], err_msg=name)
    saved = torch_file.load(path)
    assert isinstance(saved["args"], Opaque) and saved["args"].state["num_layers"] == 31
    assert saved["iteration"] == 1000 and saved["checkpoint_version"] == 3.0
    assert isinstance(saved["scale"], Opaque) and saved["random_rng_state"] == random.getstate()


class Runs:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open({!r}, 'w')",), "builtins.eval"),
        (exec, ("open({!r}, 'w')",), "builtins.exec"),
        (getattr, (os, "system"), "builtins.getattr"),
        (os.mkdir, ("{}",), "posix.mkdir"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_runs_nothing(tmp_path, function, arguments, name, protocol):
    made = tmp_path / "made"
    arguments = tuple(one.format(str(made)) if isinstance(one, str) else "os" for one in arguments)
    value = {"w": np.ones(3, np.float32), "x": Runs(function, *arguments)}
    for path in (save(tmp_path / "zip.pt", value, protocol), save_legacy(tmp_path / "old.pt", value)):
        message = refused(path)
        assert f"names '{name}', which a file of weights does not need; nothing was executed" in message
        assert not made.exists()
    content = pickle.dumps(value["x"], protocol)  # the file would do its harm, so that the test tests something
    if name in ("posix.mkdir", "builtins.exec"):
        pickle.loads(content)
        assert made.exists()


def test_functions_of_expected_packages_are_not_called_either(tmp_path):
    """numpy has functions that run text; they stay names."""
    made = tmp_path / "made"
    runs = pickle.dumps({}, 2)[:-1] + b"X\x01\x00\x00\x00xcnumpy.testing._private.utils\nrunstring\n"
    text = f"open({str(made)!r}, 'w')".encode()
    runs += b"(X" + struct.pack("<I", len(text)) + text + b"}tRs."
    pickle.loads(runs)
    assert made.exists()
    made.unlink()
    path = write_zip(tmp_path / "w.pt", members(runs, []))
    assert isinstance(torch_file.load(path)["x"], Opaque) and not made.exists()


def test_archives_that_are_no_weights(tmp_path):
    path = tmp_path / "w.pt"
    storages = []
    content = pickled({"w": T(np.ones(30, np.float32))}, storages)
    whole = members(content, storages)
    for change, message in (
        ({"archive/byteorder": b"big"}, "its numbers are big-endian"),
        ({"archive/code/__torch__.py": b"x"}, "a program (TorchScript)"),
        ({"other/data.pkl": b"."}, "a zip archive with 2 data.pkl"),
        ({"archive/data/0": b"1234"}, "storage 0 has 4 bytes; its 30 values take 120"),
        ({"archive/../../etc/x": b"1"}, "a member is called 'archive/../../etc/x'"),
        ({"/etc/x": b"1"}, "a member is called '/etc/x'"),
    ):
        assert message in refused(write_zip(path, whole | change))
    assert "it has no storage 0" in refused(
        write_zip(path, {name: piece for name, piece in whole.items() if "data/0" not in name})
    )
    assert "a zip archive with 0 data.pkl" in refused(write_zip(path, {"a/b": b""}))
    bomb = {"archive/data/0": bytes(10**7)}
    message = refused(write_zip(path, whole | bomb, zipfile.ZIP_DEFLATED))
    assert "is compressed or encrypted, which torch.save does not do" in message
    content = write_zip(path, whole).read_bytes()
    for size in (0, 3, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, piece in whole.items():
            archive.writestr(name, piece)
        archive.filelist[-1].header_offset = archive.filelist[0].header_offset
    assert "overlaps another member" in refused(path)


def broken(*pieces: bytes) -> bytes:
    return b"\x80\x02" + b"".join(pieces)


@pytest.mark.parametrize(
    "content, message",
    [
        (broken(b"."), "a value is missing"),
        (broken(b"}"), "exhausted before seeing STOP"),
        (broken(b"h\x05."), "it uses value 5, which it does not have"),
        (broken(b"t."), "a mark is missing"),
        (b"\x80\x06}.", "pickle protocol 6"),
        (broken(b"K\x01K\x02R."), "it calls what is no function"),
        (broken(b"K\x01Q."), "a storage that torch.save does not describe so"),
        (broken(b"}]K\x01s."), "a list as a key"),
        (broken(b"K\x01K\x02K\x03s."), "it sets an item of a int"),
        (broken(b"ctorch._utils\n_rebuild_tensor_v2\n)R."), "TypeError"),
        (broken(b"\x82\x01."), "pickle opcode EXT1"),
        (broken(b"(cos\nsystem\no."), "names 'os.system'"),
        (broken(b"(dm\xff\xff."), ""),
    ],
)
def test_damaged_pickles(tmp_path, content, message):
    assert message in refused(write_zip(tmp_path / "w.pt", members(content, [])))


VIEW = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    b"K\x10tQK\x00\x8a\x08" + (1 << 60).to_bytes(8, "little") + b"K\x00\x86K\x00K\x00\x86\x89}tR"
)
"""A tensor of 1 << 60 rows of no values."""


@pytest.mark.parametrize(
    "content, message",
    [
        (broken(b"ctorch\nSize\n", VIEW, b"\x85R."), "a View where a list belongs"),
        (broken(b"ccollections\nOrderedDict\n", VIEW, b"\x85R."), "a View where a list belongs"),
        (
            broken(b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nK\x00", VIEW, b"tR."),
            "a View where a list belongs",
        ),
        (broken(b"ctorch._tensor\n_rebuild_from_type_v2\n(]K\x00)tR."), "it calls what is no function"),
        (broken(b"}\x8b\x00\x08\x00\x00", b"\x7f" * 2048, b"K\x01s."), "pickle opcode LONG4"),
        (broken(b"}X\xe9\x03\x00\x00", b"k" * 1001, b"}K\x00", VIEW, b"ss."), "has more than 1000 characters"),
    ],
)
def test_what_would_never_end_or_fill_the_memory(tmp_path, content, message):
    storages = [Storage(np.zeros(16, np.float32))]
    assert message in refused(write_zip(tmp_path / "w.pt", members(content, storages)))


def test_lists_that_no_message_can_show(tmp_path):
    """Their text would have 2 ** 60 characters."""
    level = []
    for _ in range(60):
        level = [level] * 2
    magic, version, system = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}
    for pickles, message in (
        ((magic, level), "version a list of PyTorch's old form"),
        ((magic, version, system, {}, [level]), "the list of its storages is not that of its tensors"),
    ):
        (tmp_path / "w.pt").write_bytes(b"".join(pickle.dumps(one, 2) for one in pickles))
        assert message in refused(tmp_path / "w.pt")


def test_bombs_end_quickly(tmp_path):
    """Values that name each other: twenty levels of ten make 10 ** 20 names; and deep nesting."""
    path = tmp_path / "w.pt"
    level = [1]
    for _ in range(20):
        level = [level] * 10
    assert "nests deeper or wider" in refused(save(path, {"a": tuple(level)}))
    loop = broken(b"}q\x00X\x01\x00\x00\x00ah\x00s.")
    assert "a.a.a.a... nests deeper or wider" in refused(write_zip(path, members(loop, [])))
    deep = broken(b"}" + b")" + b"\x85" * 50_000 + b"K\x01s.")
    assert "a tuple as a key" in refused(write_zip(path, members(deep, [])))
    large = broken(b"}X\x01\x00\x00\x00a" + b")" + b"\x85" * 20_000 + b"s.")
    assert "nests deeper or wider" in refused(write_zip(path, members(large, [])))
    write_zip(path, members(bytes((1 << 24) + 1), []))
    assert "its data.pkl has 16,777,217 bytes" in refused(path)


@pytest.mark.parametrize(
    "start, shape, strides",
    [(0, (31,), (1,)), (1, (30,), (1,)), (0, (2, 20), (20, 1)), (0, (10**12,), (0,)), (-1, (1,), (1,)),
     (0, (3,), (1, 1)), (0, (3.0,), (1,)), (0, [3], (1,)), (True, (3,), (1,)), (0, (3,), (-1,))],
)  # fmt: skip
def test_tensors_that_do_not_fit_their_storage(tmp_path, start, shape, strides):
    tensor = T(None, Storage(np.ones(30, np.float32)), start, shape, strides)
    message = refused(save(tmp_path / "w.pt", {"w": tensor}))
    assert "does not fit its 30 values" in message or "damaged pickle" in message


def test_two_tensors_of_one_name(tmp_path):
    one = np.ones(2, np.float32)
    assert "'a.b' stands there twice" in refused(save(tmp_path / "w.pt", {"a": {"b": one}, "a.b": one}))
    assert r"a tensor is called 'a\nb'" in refused(save(tmp_path / "w.pt", {"a\nb": one}))


def test_flipped_bits_end_in_a_message_or_in_the_right_tensors(tmp_path):
    value = {"a": np.arange(40, dtype=np.float32), "b": {"c": np.ones((3, 5), np.float16)}, **notes()}
    path = tmp_path / "w.pt"
    content = save(path, value).read_bytes()
    expected = read(path)
    torch_file.verify(path)
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for position, bit in zip(rng.integers(0, len(content), 500), rng.integers(0, 8, 500)):
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        try:
            torch_file.verify(path)
            assert_same(read(path), expected)
            outcomes["read"] += 1
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 300, outcomes


def test_flipped_bits_in_the_old_form_and_without_checksums_never_end_otherwise(tmp_path):
    value = {"a": np.arange(40, dtype=np.float32), "b": {"c": np.ones((3, 5), np.float16)}, **notes()}
    storages = []
    pickle_ = pickled({"w": T(np.ones(30, np.float32)), **notes()}, storages)
    old = save_legacy(tmp_path / "old.pt", value)
    content, rng = old.read_bytes(), np.random.default_rng(2)
    for _ in range(60):
        changed = bytearray(content)
        changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        old.write_bytes(changed)
        inner = bytearray(pickle_)
        inner[rng.integers(len(inner))] ^= 1 << int(rng.integers(8))
        for path in (old, write_zip(tmp_path / "new.pt", members(bytes(inner), storages))):
            try:
                read(path)
            except CheckpointError as error:
                assert "\n" not in str(error)


def test_no_file(tmp_path):
    assert "cannot be read" in refused(tmp_path / "none.pt")
    assert "cannot be read" in refused(tmp_path)


def test_bfloat16_of_numpy(tmp_path):
    array = to_bfloat16(np.linspace(-2, 2, 7, dtype=np.float32))
    found = read(save(tmp_path / "w.pt", {"w": array}))["w"]
    assert found.dtype == BFLOAT16 and found.tobytes() == array.tobytes()


def test_hugging_face_directories_of_older_models(tmp_path):
    """The community's ports of PanGu-alpha are published as pytorch_model-0000N-of-0000M.bin."""
    config = small_config(3)
    tensors = foreign_tensors("huggingface")
    step = store.save(tmp_path / "ours", 0, {"model": our_tensors(3)}, {"step": 0}, config)
    directory = convert.export_file(step, "huggingface", tmp_path / "directory")
    whole = (directory / foreign.WEIGHTS).rename(tmp_path / "kept.safetensors")
    names = sorted(tensors)
    files = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, own in files.items():
        save(directory / file, OrderedDict((name, tensors[name]) for name in own))
    weight_map = {name: file for file, own in files.items() for name in own}
    index = directory / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = convert.import_file(directory, "huggingface", None, tmp_path / "again")
    assert_same(store.open_checkpoint(found).tensors(), our_tensors(3))
    index.unlink()
    with pytest.raises(CheckpointError, match="holds no model.safetensors .nor model.safetensors.index.json; nor pyt"):
        foreign.weight_files(directory)
    save(directory / "pytorch_model.bin", tensors)
    assert foreign.weight_files(directory) == [directory / "pytorch_model.bin"]
    whole.rename(directory / foreign.WEIGHTS)
    assert foreign.weight_files(directory) == [directory / foreign.WEIGHTS]


@pytest.mark.slow
def test_what_torch_writes_and_reads(tmp_path):
    """The writer of these tests against torch.load, and the reader against torch.save, in both forms."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        torch.nn.Linear(5, 3), torch.nn.Embedding(7, 4).bfloat16(), torch.nn.LayerNorm(3).half()
    )
    matrix = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    attributed = torch.nn.Parameter(torch.randn(3, 2))
    attributed.tensor_model_parallel = True
    value = {
        "model": {"language_model": module.state_dict()},
        "views": {"columns": matrix[:, 2:4], "transposed": matrix.T, "scalar": matrix[1, 1], "empty": matrix[:0]},
        "parameters": [torch.nn.Parameter(matrix[1:3]), attributed],
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
        **notes(),
        "args": argparse.Namespace(params_dtype=torch.float16, num_layers=31),
    }
    value["numbers"] = {kind: (torch.randn(2, 3) * 20).to(getattr(torch, kind)) for kind in KINDS}
    del value["torch_rng_state"], value["rng_tracker_states"]  # numpy's here
    expected = {f"model.language_model.{name}": tensor for name, tensor in module.state_dict().items()}
    expected |= {f"views.{name}": tensor for name, tensor in value["views"].items()}
    expected |= {f"parameters.{i}": tensor.detach() for i, tensor in enumerate(value["parameters"])}
    expected |= {f"numbers.{name}": tensor for name, tensor in value["numbers"].items()}
    for options in ({}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False}):
        torch.save(value, tmp_path / "w.pt", **options)
        torch_file.verify(tmp_path / "w.pt")
        found = torch_file.index(tmp_path / "w.pt")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            widest = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(found[name].values(), widest.numpy(), err_msg=name)
        assert torch_file.load(tmp_path / "w.pt")["args"].state["num_layers"] == 31
    tensors = {"p": T(np.ones((2, 2), np.float32), parameter=True), "t": T(np.ones(3, np.float32), attributes={"x": 1})}
    for write in (save, save_legacy):
        written = write(tmp_path / "ours.pt", {"tensors": arrays() | tensors, **notes()})
        loaded = torch.load(written, weights_only=False)["tensors"]
        for name, array in arrays().items():
            np.testing.assert_array_equal(loaded[name].float().numpy(), widened(array).astype(np.float32), err_msg=name)
