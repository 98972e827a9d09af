"""Our kernels in a package: a second graph, which calls them, and their C++ sources.

    kernels/graph.mindir    the graph that calls kernels, without weights: it takes those of the other graph
    kernels/*.cc, *.h       what the kernels' library is compiled from, where the package runs

MindIR names a library by its absolute path. The file has PLACE instead, and gets the path when it is loaded. Both are
used only where the user allows it, since the sources are code of whoever made the package.
"""

import ctypes
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ascend_ops import library
from ascend_ops.errors import OperatorError
from ascend_ops.table import OPERATORS
from pangu_ms.core.protobuf import Bytes, content, fields, message_field
from pangu_ms.export.graph_file import ATTRIBUTE_STRINGS, MODEL_PRIMITIVES, PRIMITIVE_ATTRIBUTES

DIRECTORY = "kernels"
GRAPH = f"{DIRECTORY}/graph.mindir"
PLACE = "{kernels}"
"""Stands in the file for the path of the library."""
SOURCE = re.compile(rf"{DIRECTORY}/(\w[\w.]*\.(?:cc|h))", re.ASCII)
"""A source's path in a package, and its name."""


def with_library(model: Bytes, old: str, new: str) -> bytes:
    """The bytes of a MindIR file, in which operators that call library `old` call `new`."""
    parts = []
    for number, value, whole in fields(model):
        is_primitive = number == MODEL_PRIMITIVES
        parts.append(
            message_field(number, _with_library(content(value), f"{old}:", f"{new}:")) if is_primitive else bytes(whole)
        )
    return b"".join(parts)


def _with_library(primitive: Bytes, old: str, new: str) -> bytes:
    parts = []
    for number, value, whole in fields(primitive):
        if number not in PRIMITIVE_ATTRIBUTES or old.encode() not in bytes(whole):
            parts.append(bytes(whole))
            continue
        attribute = b""
        for key, part, text in fields(content(value)):
            is_text = key in ATTRIBUTE_STRINGS
            replaced = bytes(content(part)).replace(old.encode(), new.encode()) if is_text else b""
            attribute += message_field(key, replaced) if is_text else bytes(text)
        parts.append(message_field(number, attribute))
    return b"".join(parts)


@dataclass(frozen=True)
class Kernels:
    """The sources of a package's kernels."""

    texts: Mapping[str, str]
    """File name -> text."""

    @classmethod
    def read(cls, package: Path, names: Mapping[str, object]) -> "Kernels | None":
        """Those among the files `names` of a package; None if it has no kernels."""
        if GRAPH not in names:
            return None
        found = {match[1]: name for name in names if (match := SOURCE.fullmatch(name))}
        return cls({plain: (package / name).read_text("utf-8", "replace") for plain, name in sorted(found.items())})

    @property
    def sha256(self) -> str:
        """Of all sources, with their names."""
        return hashlib.sha256(repr(sorted(self.texts.items())).encode()).hexdigest()

    @property
    def are_installed(self) -> bool:
        """Whether this installation has the same sources."""
        return dict(self.texts) == library.sources()

    def build(self) -> Path:
        """Path of the library, which is compiled unless it exists.

        Raises:
            OperatorError: there is no compiler, or it fails, or the library cannot be opened.
        """
        path = library.build(texts=self.texts)
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            raise OperatorError(f"{error}; delete it and start again") from error
        return path


class _Symbol(ctypes.Structure):
    """Dl_info of dladdr."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def not_in(path: Path, kernels: set[str]) -> list[str]:
    """Those kernels that the library at `path` does not define itself. MindSpore would also find functions of the
    libraries that it depends on, such as `abort` and `system` of libc."""
    library, program, missing = ctypes.CDLL(str(path)), ctypes.CDLL(None), []
    for name in sorted(kernels):
        found = _Symbol()
        try:
            address = ctypes.cast(getattr(library, name), ctypes.c_void_p)
        except AttributeError:
            missing.append(name)
            continue
        if not program.dladdr(address, ctypes.byref(found)) or found.file != bytes(path):
            missing.append(name)
    return missing


def require_onednn(path: Path, kernels: set[str]) -> None:
    """Raise OperatorError if one of these kernels needs the oneDNN that MindSpore brings, and the library at `path`
    does not find it. MindSpore must have been imported."""
    needing = {name for operator in OPERATORS.values() if operator.onednn for name in operator.kernels}
    if needing & kernels and not ctypes.CDLL(str(path)).ascend_ops_onednn_version():
        raise OperatorError("the kernels of products need oneDNN 3, which MindSpore 2.9 brings and 2.7 does not")


def announcement(package: Path | str, kernels: Kernels | None) -> str:
    """What --allow-kernels will do, in one line."""
    if kernels is None:
        return f"{package}: --allow-kernels: the package has no kernels; it runs MindSpore's own operators"
    what = f"{len(kernels.texts)} files of source in {package}/kernels, SHA-256 {kernels.sha256}"
    if kernels.are_installed:
        return f"--allow-kernels: {what}: those of this installation, called by the graph of whoever made the package"
    return f"--allow-kernels: compiles and runs {what}: code of whoever made the package ({', '.join(kernels.texts)})"
