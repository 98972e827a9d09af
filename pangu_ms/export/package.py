"""A MindIR package: a directory that runs without the model code.

    model.mindir | model_graph.mindir + model_variables/   prefill and cached decoding over one copy of the weights
    tokenizer/                                             SentencePiece model and its settings, or Hugging Face's files
    run.pyz                                                `python run.pyz --prompt ...`: the runner of this file, needs mindspore and the tokenizer's packages
    manifest.json                                          sha256 of every file, model, signatures, versions; written last
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.errors import ExportError
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_run.files import sha256_file, sha256_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPH_NAMES = ("model.mindir", "model_graph.mindir")  # MindSpore writes the second form for more than 1 GB of weights
KEY_LENGTHS = (16, 24, 32)


def read_key(path: Path | str | None) -> bytes | None:
    """An AES key from a file: 16, 24 or 32 bytes, a final newline not counted.

    Raises:
        ExportError: no such file, or another length.
    """
    if path is None:
        return None
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: the key cannot be read ({error.strerror})") from None
    if len(key) not in KEY_LENGTHS:
        key = key.rstrip(b"\r\n")
    if len(key) not in KEY_LENGTHS:
        raise ExportError(f"{path}: holds {len(key)} bytes; an AES key has 16, 24 or 32; make one: openssl rand -hex 16 > {path}")
    return key


def file_entries(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a directory, the manifest left out."""
    paths = [p for p in sorted(directory.rglob("*")) if p.is_file() and p != directory / MANIFEST]
    return {p.relative_to(directory).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in paths}


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own SHA-256."""
    return manifest | {"sha256": sha256_json(manifest)}


@dataclass(frozen=True)
class Package:
    """A package whose files are what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "Package":
        """Check every hash.

        Raises:
            ExportError: not a package, or a file is missing, altered or was added.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            entries, digest = manifest["files"], manifest.pop("sha256")
        except (FileNotFoundError, NotADirectoryError):
            raise ExportError(f"{path}: holds no {MANIFEST}; not a MindIR package; write one with `pangu export`") from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ExportError(f"{path / MANIFEST}: is damaged ({error}); export again") from None
        if manifest.get("format_version") != FORMAT_VERSION:
            raise ExportError(f"{path}: format version {manifest.get('format_version')}; this program reads version {FORMAT_VERSION}; export again")
        if digest != sha256_json(manifest):
            raise ExportError(f"{path / MANIFEST}: was altered; the package is not what was exported and is refused; export again")
        found = file_entries(path)
        wrong = [f"{name} is missing" for name in entries if name not in found]
        wrong += [f"{name} was altered" for name in entries if name in found and found[name] != entries[name]]
        wrong += [f"{name} was added" for name in found if name not in entries]
        if wrong:
            raise ExportError(f"{path}: {'; '.join(wrong)}; the package is not what was exported and is refused; export again")
        return cls(path, manifest)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        return Tokenizer.load(self.path / "tokenizer")

    def decoder(self, key: bytes | None = None) -> Decoder:
        """Load the graph into MindSpore.

        Raises:
            ExportError: the package is encrypted and the key is missing or wrong.
        """
        import mindspore as ms
        from mindspore import nn

        mode = self.manifest["encryption"]
        if mode and key is None:
            raise ExportError(f"{self.path}: the graph is encrypted ({mode}); give its key with --key-file")
        graph = next(self.path / name for name in GRAPH_NAMES if (self.path / name).exists())
        try:
            loaded = ms.load(str(graph), **({"dec_key": key, "dec_mode": mode} if mode else {}))
        except RuntimeError as error:
            if not mode:
                raise
            raise ExportError(f"{graph}: cannot be decrypted; the key in --key-file is not the one it was exported with") from error
        return Decoder(nn.GraphCell(loaded), GraphShape(**self.manifest["graph"]))
