"""A MindIR package: a directory that runs without the model code.

    model.mindir        prefill and cached decoding over one copy of the weights; above 1 GB of weights
                        model_graph.mindir and model_variables/ instead
    kernels/            for a CPU: the same graph with our kernels, without weights, and their sources; see kernels.py
    tokenizer/          SentencePiece model and its settings, or Hugging Face's files
    run.pyz             the runner: `python run.pyz --prompt ...`
    requirements.txt    the Python packages that run.pyz needs: pip install -r requirements.txt
    manifest.json       SHA-256 of every file, model, inputs and outputs, versions; written last
    manifest.sig        only in a signed package, see signature.py

The hashes detect accidents: files that were truncated, altered or mixed up. They do not stop an attacker, who can
compute new ones; the signature does. Signed or not, a package is refused if its graph would make MindSpore open a
library, run Python or write files; see graph_file.py. The graph in kernels/ is read only where the user allows it.
"""

import dataclasses
import logging
import mmap
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ascend_ops.errors import OperatorError
from pangu_ms.core import format_version, small_json
from pangu_ms.core.errors import ExportError
from pangu_ms.core.files import sha256_file, sha256_json
from pangu_ms.core.protobuf import Bytes
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.export import kernels
from pangu_ms.export.graph_file import External, GraphFile
from pangu_ms.export.kernels import Kernels
from pangu_ms.export.signature import SIGNATURE, require_signed
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.domains import Domains

log = logging.getLogger(__name__)
FORMAT_VERSION = 2
"""In version 1 the graph appended a chunk to every sequence of a batch."""
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
"""A larger manifest is not read; real manifests have a few kilobytes."""
NUM_INPUTS = 5
"""Inputs of a graph without domains."""
CACHES = (".cache.keys", ".cache.values")
"""How the names of the parameters of the KV cache end."""
GRAPH_NAMES = ("model.mindir", "model_graph.mindir")
"""MindSpore writes the second file if the weights exceed 1 GB."""
MAX_KEY_BYTES = 1 << 16
"""A larger key file is not read."""
KEY_LENGTHS = (16, 24, 32)
"""Bytes of an AES key."""
ENCRYPTION_MODES = ("AES-GCM", "AES-CBC")


def read_key(path: Path | str | None) -> bytes | None:
    """Read an AES key of 16, 24 or 32 bytes from a file. A newline that follows such a key is dropped.

    Raises:
        ExportError: the file cannot be read, or does not hold a key of one of these lengths.
    """
    if path is None:
        return None
    try:
        key = small_json.read_bytes(Path(path), MAX_KEY_BYTES, pipes=True)
    except ValueError as error:
        raise ExportError(f"{path}: the key cannot be read ({error})") from None
    if len(key) not in KEY_LENGTHS:
        key = key.rstrip(b"\r\n")
    if len(key) not in KEY_LENGTHS:
        raise ExportError(
            f"{path}: holds {len(key)} bytes; an AES key has 16, 24 or 32; make one: openssl rand -hex 16 > {path}"
        )
    return key


def file_entries(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a directory, except the manifest and its signature."""
    return {name: _entry(path) for name, path in _files(directory).items()}


def _files(directory: Path) -> dict[str, Path]:
    apart = (directory / MANIFEST, directory / SIGNATURE)
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path not in apart]
    return {path.relative_to(directory).as_posix(): path for path in paths}


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own SHA-256."""
    return manifest | {"sha256": sha256_json(manifest)}


@dataclass(frozen=True)
class Package:
    """An opened package, whose files agree with its manifest."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str, verify_key: Path | str | None = None) -> "Package":
        """Open a package and verify every hash.

        Args:
            path: its directory.
            verify_key: PEM file of a public key; if it is given, the signature is verified first.

        Raises:
            ExportError: the directory is not a package; a file is missing, was altered or was added; or the signature
                is missing or was made with another key.
        """
        path = Path(path)
        content = _read_manifest(path)
        if verify_key:
            require_signed(path, content, verify_key)
        try:
            manifest = small_json.parse_object(content)
            digest = manifest.pop("sha256")
            intact = digest == sha256_json(manifest)
        except (ValueError, KeyError) as error:
            raise ExportError(f"{path / MANIFEST}: is damaged ({error}); export again") from None
        found = manifest.get(format_version.KEY)
        format_version.require_known(found, FORMAT_VERSION, path / MANIFEST, ExportError)
        if found != FORMAT_VERSION:
            raise ExportError(
                f"{path / MANIFEST}: format version {found} has another graph than {FORMAT_VERSION}, which this"
                " version of pangu-ms runs; run the package with its own run.pyz, or export it again"
            )
        if not intact:
            raise ExportError(
                f"{path / MANIFEST}: was altered; the package is not what was exported and is refused; export again"
            )
        if wrong := _first_invalid_entry(manifest):
            raise ExportError(f"{path / MANIFEST}: {wrong}; no export writes that; export again")
        if changed := _changed(path, manifest["files"]):
            raise ExportError(
                f"{path}: {'; '.join(changed)}; the package is not what was exported and is refused; export again"
            )
        return cls(path, manifest)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which has those of all files."""
        return sha256_json(self.manifest)

    @property
    def shape(self) -> GraphShape:
        """The static shapes of the graph."""
        return GraphShape(**self.manifest["graph"])

    @property
    def domains(self) -> Domains:
        """The domains that the model tells apart."""
        return Domains(tuple(self.manifest.get("domains", ())), self.manifest.get("default_domain", ""))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return Tokenizer.load(self.path / "tokenizer")

    def require_key(self, key: bytes | None) -> None:
        """Raise ExportError if the graph is encrypted and no key is given, or if a key is given and the graph is not
        encrypted."""
        mode = self.manifest["encryption"]
        if mode and key is None:
            raise ExportError(f"{self.path}: the graph is encrypted ({mode}); give its key with --key-file")
        if key is not None and not mode:
            raise ExportError(
                f"{self.path}: the graph is not encrypted, so that anybody may have made it; leave --key-file out, or"
                " export it with the key"
            )

    @property
    def kernels(self) -> Kernels | None:
        """The sources of its kernels, if it has some."""
        return Kernels.read(self.path, self.manifest["files"])

    def decoder(self, key: bytes | None = None, allow_kernels: bool = False) -> Decoder:
        """Check the graph (see `require_harmless`), and load it into MindSpore.

        Args:
            key: the AES key of an encrypted package, else None.
            allow_kernels: whether the package's kernels, if it has some, may be compiled and run; where that is not
                possible, a warning says so.

        Raises:
            ExportError: the key is missing, wrong or not needed; the graph would load a library, run Python, or read or
                write other files; or the shapes of the graph are not those of the manifest.
        """
        if allow_kernels and self.kernels:
            try:
                return self.decoder_with_kernels(key)
            except OperatorError as error:
                log.warning("%s. Until then the package runs MindSpore's own operators, which are slower.", error)
        self.require_key(key)
        self.require_harmless(key)
        return self._decoder(self._load(self._graph(), key))

    def decoder_with_kernels(self, key: bytes | None = None) -> Decoder:
        """As `decoder`, for the graph that calls the package's kernels, which are compiled unless their library exists.

        Raises:
            ExportError: see `decoder`.
            OperatorError: the kernels cannot be compiled or run here.
        """
        self.require_key(key)
        mode, graph = self.manifest["encryption"], self.path / kernels.GRAPH
        if not self.kernels or self.manifest["target"] != "CPU":
            raise OperatorError(f"{self.path}: has no kernels for a CPU; export it on one with this version")
        weights = self.require_harmless(key).weights
        library = self.kernels.build()
        import mindspore as ms  # noqa: F401 - it loads the oneDNN that kernels look for

        model = kernels.with_library(_content(graph, key, mode), kernels.PLACE, str(library))
        found = self._harmless(graph, model, str(library))
        if missing := kernels.not_in(library, found.kernels):
            raise ExportError(
                f"{graph}: calls {missing[0]}, which is no function of the package's source; the package is refused;"
                " export again"
            )
        kernels.require_onednn(library, found.kernels)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "graph.mindir"
            file.write_bytes(encrypted(model, key, mode))
            cell = self._load(file, key)
        self._fill(cell, weights, key)
        decoder = self._decoder(cell)
        decoder.with_kernels = True
        return decoder

    def _load(self, graph: Path, key: bytes | None) -> Any:
        """The cell of a MindIR file."""
        import mindspore as ms
        from mindspore import nn

        mode = self.manifest["encryption"]
        try:
            return nn.GraphCell(ms.load(str(graph), **({"dec_key": key, "dec_mode": mode} if mode else {})))
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"{graph}: MindSpore {ms.__version__} cannot load it ({reason}); export it again with this version"
            ) from error

    def _decoder(self, cell: Any) -> Decoder:
        caches = [parameter for parameter in cell.get_parameters() if parameter.name.endswith(CACHES)]
        return Decoder(cell, self.shape, self.domains, caches)

    def _fill(self, cell: Any, weights: dict[str, Bytes | External], key: bytes | None) -> None:
        """Give the parameters of a graph without weights the values that another graph has."""
        opened: dict[str, Bytes] = {}
        for parameter in cell.get_parameters():
            value = weights.get(parameter.name, b"")
            if isinstance(value, External):
                if value.location not in opened:
                    file = self.path / value.location
                    opened[value.location] = _content(file, key, self.manifest["encryption"])
                value = opened[value.location][value.offset : value.offset + value.length]
            array = parameter.asnumpy()  # the parameter's own memory, not a copy
            if len(value) != array.nbytes:
                raise ExportError(
                    f"{self.path / kernels.GRAPH}: its parameter {parameter.name} has not the size that it has in"
                    f" {self._graph().name}; the package is refused; export again"
                )
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(value, np.uint8)

    def _graph(self) -> Path:
        return next(self.path / name for name in GRAPH_NAMES if name in self.manifest["files"])

    def require_harmless(self, key: bytes | None = None) -> GraphFile:
        """Raise ExportError unless the graph only computes, has the shapes of the manifest, and uses the weights of the
        package. Returns the graph."""
        graph = self._graph()
        return self._harmless(graph, _content(graph, key, self.manifest["encryption"]))

    def _harmless(self, graph: Path, content: Bytes, library: str = "") -> GraphFile:
        """See `require_harmless`; operators may call `library`."""
        try:
            found = GraphFile.read(content, library)
        except ExportError:  # a ValueError, too; its message is ready for the user
            raise
        except (ValueError, RecursionError) as error:
            raise ExportError(f"{graph}: is no MindIR ({error}); the package is refused; export again") from None
        if found.refused:
            raise ExportError(
                f"{graph}: holds {found.refused[0]}; a package's graph may run nothing but MindSpore's own operators;"
                " it is refused"
            )
        if strange := found.locations - self.manifest["files"].keys():
            raise ExportError(f"{graph}: has weights in {min(strange)}, which is no file of the package; it is refused")
        shape = self.shape
        caches = [dims for name, dims in found.parameters.items() if name.endswith(CACHES)]
        caches_fit = bool(caches) and all(dims[:1] == [shape.batch_size * (shape.capacity + 1)] for dims in caches)
        inputs_fit = len(found.inputs) == NUM_INPUTS + bool(self.domains.names)
        if not caches_fit or not inputs_fit or found.inputs[:1] != [[shape.batch_size + shape.chunk]]:
            raise ExportError(
                f"{self.path / MANIFEST}: graph={self.manifest['graph']}: the graph itself has other shapes; the"
                " package is refused; export again"
            )
        return found


def encrypted(content: bytes, key: bytes | None, mode: str) -> bytes:
    """The bytes of a file, as MindSpore encrypts them; without a key as they are."""
    if key is None:
        return content
    from mindspore._c_expression import _encrypt

    return _encrypt(content, len(content), key, len(key), mode)


def _content(graph: Path, key: bytes | None, mode: str) -> memoryview:
    """The bytes of a MindIR file, decrypted."""
    if not mode:
        # Mapped, not read: up to 1 GB of weights may be in this file.
        with open(graph, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    from mindspore._c_expression import _decrypt  # ms.load decrypts with the same function

    assert key, "`require_key` comes first"
    content = _decrypt(str(graph), key, len(key), mode)
    if not content:
        raise ExportError(f"{graph}: cannot be decrypted; the key in --key-file is not the one it was exported with")
    return memoryview(content)


def _read_manifest(path: Path) -> bytes:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise ExportError(f"{path}: holds no {MANIFEST}; not a MindIR package; write one with `pangu export`")
    try:
        return small_json.read_bytes(manifest, MAX_MANIFEST_BYTES)
    except ValueError as error:
        raise ExportError(f"{manifest}: {error}; not a MindIR package; write one with `pangu export`") from None


def _first_invalid_entry(manifest: dict[str, Any]) -> str:
    """Describe the first entry of a manifest that no export would write; "" if there is none.

    The check is needed even if the manifest's own SHA-256 is right, since anybody can compute that.
    """
    entries, graph = manifest.get("files"), manifest.get("graph")
    if not isinstance(entries, dict) or not any(name in entries for name in GRAPH_NAMES):
        return "files: names no graph"
    for name, entry in entries.items():
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or str(plain) != name or not name.isprintable():
            return f"files: {name!a} is no file of the package"
        has_size = isinstance(entry, dict) and _is_size(entry.get("bytes"), 0)
        if not has_size or not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))):
            return f"files: {name}: has no size and digest"
    names = [field.name for field in dataclasses.fields(GraphShape)]
    if not isinstance(graph, dict) or sorted(graph) != sorted(names):
        return f"graph: must have whole numbers above 0 for {', '.join(names)}"
    if not all(_is_size(value, 1) for value in graph.values()):
        return f"graph: must have whole numbers above 0 for {', '.join(names)}"
    if not graph["chunk"] <= graph["capacity"] <= graph["seq_length"]:
        return f"graph={graph}: its sizes do not fit together"
    domains = manifest.get("domains", [])
    if not isinstance(domains, list) or not all(isinstance(name, str) and name for name in domains):
        return "domains: must be a list of names"
    if manifest.get("default_domain", "") not in ("", *domains):
        return "default_domain: is none of the domains"
    for name, known in (("encryption", ("", *ENCRYPTION_MODES)), ("target", ("CPU", "Ascend"))):
        if manifest.get(name) not in known:
            return f"{name}: must be one of {', '.join(map(repr, known))}"
    return ""


def _is_size(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 40


def _changed(path: Path, entries: dict[str, dict[str, Any]]) -> list[str]:
    """The differences between the files and the manifest's entries. Only files of the right size are read."""
    found = _files(path)
    missing = [f"{name} is missing" for name in entries if name not in found]
    altered = [f"{name} was altered" for name in entries if name in found and _differs(found[name], entries[name])]
    return missing + altered + [f"{name} was added" for name in found if name not in entries]


def _differs(path: Path, entry: dict[str, Any]) -> bool:
    return path.stat().st_size != entry["bytes"] or _entry(path) != entry
