"""Writes files as torch.save does, without torch."""

import argparse
import io
import pickle
import random
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.core.dtypes import BFLOAT16, bits

KINDS = {
    "float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "int32": "Int", "int16": "Short",
    "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip


class Global:
    """A name that is pickled without being imported."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self) -> None:  # pickle demands that what it will call can be called
        raise AssertionError


class Storage:
    """The bytes that tensors share."""

    def __init__(self, array: np.ndarray):
        self.kind = "BFloat16" if array.dtype == BFLOAT16 else KINDS[array.dtype.name]
        self.numel, self.content = array.size, bits(np.ascontiguousarray(array)).tobytes()


@dataclass
class T:
    """A tensor: an array, or a view of a storage."""

    array: np.ndarray | None = None
    storage: Storage | None = None
    start: Any = 0
    shape: Any = None
    strides: Any = None
    parameter: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.array is not None:
            self.storage = self.storage or Storage(self.array)
            self.shape = self.array.shape
            self.strides = tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))


class Pickler(pickle._Pickler):
    """The pickler in Python, whose way to write names can be changed."""

    # dill, which lm-eval imports, changes the entry of classes for all.
    dispatch = {**pickle._Pickler.dispatch, type: pickle._Pickler.save_type}

    def __init__(self, file, protocol: int, storages: list[Storage], legacy: bool):
        super().__init__(file, protocol)
        self.storages, self.legacy = storages, legacy

    def save_a_name(self, name: Global) -> None:
        self.write(b"c" + f"{name.module}\n{name.name}\n".encode())
        self.memoize(name)

    dispatch[Global] = save_a_name

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        key = str(self.storages.index(value))
        return ("storage", Global("torch", f"{value.kind}Storage"), key, "cpu", value.numel) + (None,) * self.legacy

    def reducer_override(self, value):
        if not isinstance(value, T):
            return NotImplemented
        function = Global("torch._utils", "_rebuild_tensor_v2")
        arguments = (value.storage, value.start, value.shape, value.strides, False, OrderedDict())
        if value.parameter:
            plain = T(None, value.storage, value.start, value.shape, value.strides)
            return Global("torch._utils", "_rebuild_parameter"), (plain, True, OrderedDict())
        if value.attributes:
            kind = Global("torch", "Tensor")
            return Global("torch._tensor", "_rebuild_from_type_v2"), (function, kind, arguments, value.attributes)
        return function, arguments


def pickled(value: Any, storages: list[Storage], protocol: int = 2, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol, storages, legacy).dump(value)
    return file.getvalue()


def save(path: Path, value: Any, protocol: int = 2) -> Path:
    """Write a value, with each array in it as a tensor, in the form of PyTorch 1.6 and later."""
    storages: list[Storage] = []
    content = pickled(with_tensors(value), storages, protocol)
    return write_zip(path, members(content, storages))


def members(content: bytes, storages: list[Storage]) -> dict[str, bytes]:
    data = {f"archive/data/{key}": storage.content for key, storage in enumerate(storages)}
    return {"archive/data.pkl": content, "archive/byteorder": b"little", **data, "archive/version": b"3\n"}


def write_zip(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, piece in content.items():
            archive.writestr(name, piece)
    return path


def save_legacy(path: Path, value: Any) -> Path:
    """As `save`, in the form of PyTorch before 1.6."""
    storages: list[Storage] = []
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts.append(pickled(with_tensors(value), storages, legacy=True))
    parts.append(pickle.dumps([str(key) for key in range(len(storages))], 2))
    parts += [storage.numel.to_bytes(8, "little") + storage.content for storage in storages]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))
    return path


def with_tensors(value: Any) -> Any:
    """The value with each array in dictionaries and lists as a tensor."""
    if isinstance(value, np.ndarray):
        return T(value)
    if isinstance(value, dict):
        return type(value)((key, with_tensors(below)) for key, below in value.items())
    return [with_tensors(below) for below in value] if type(value) is list else value


def notes(iteration: int = 1000, version: float | None = 3.0, **args: Any) -> dict[str, Any]:
    """What Megatron saves beside the weights, with objects of the classes that it uses."""
    found = {
        "args": argparse.Namespace(params_dtype=Global("torch", "float16"), data_path=["x"], **args),
        "iteration": iteration,
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.RandomState(1).get_state(),
        "torch_rng_state": np.zeros(16, np.uint8),
        "rng_tracker_states": {"model-parallel-rng": np.zeros(16, np.uint8)},
        "scale": np.float32(1.5),
    }
    return found if version is None else found | {"checkpoint_version": version}
