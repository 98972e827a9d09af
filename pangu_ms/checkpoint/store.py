"""The checkpoint store: directories that are whole or not there. No mindspore import.

    ROOT/step-00000100/model.safetensors        one group of tensors; model-00001-of-00003.safetensors ... beyond max_shard_bytes
                       optimizer.safetensors    further groups, if any
                       state.json               what the training loop needs to go on; opaque here
                       config.yaml              the resolved run configuration
                       tokenizer/               copy of the tokenizer, so that text can be generated from this directory alone
                       manifest.json            written last: size and SHA-256 of every file, versions, git revision

A save goes to a temporary name, is flushed and renamed (see commit.py). A reader trusts a step only after its manifest, sizes and digests.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms import files
from pangu_ms.checkpoint import commit, safetensors_file
from pangu_ms.checkpoint.provenance import provenance
from pangu_ms.checkpoint.strict import check_names_and_shapes
from pangu_ms.config import RunConfig, dump_config, load_config
from pangu_ms.errors import CheckpointError

__all__ = ["Checkpoint", "check_names_and_shapes", "latest_valid", "open_checkpoint", "save"]

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_SHARD_BYTES = 4 << 30  # below the 5 GB that object stores take in one request
_STEP = re.compile(r"step-(\d{8,})(\.old)?")

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A verified step directory."""

    path: Path
    step: int
    """Optimizer steps done when it was saved."""
    manifest: dict[str, Any]

    @property
    def groups(self) -> list[str]:
        """Names of its groups of tensors."""
        return list(self.manifest["tensors"])

    def tensors(self, group: str = "model") -> Tensors:
        """The tensors of one group by name, with the shapes and dtypes that were saved.

        Raises:
            CheckpointError: it has no such group.
        """
        if group not in self.groups:
            raise CheckpointError(f"{self.path}: has no {group} tensors; it holds {', '.join(self.groups)}; use another checkpoint")
        shard = re.compile(re.escape(group) + r"(-\d{5}-of-\d{5})?\.safetensors")
        tensors: Tensors = {}
        for name in self.manifest["files"]:
            if shard.fullmatch(name):
                tensors |= safetensors_file.read(self.path / name)
        return tensors

    def state(self) -> dict[str, Any]:
        """What the training loop stored."""
        return json.loads((self.path / "state.json").read_text(encoding="utf-8"))

    def config(self) -> RunConfig:
        """The configuration of the run that saved it."""
        return load_config(str(self.path / "config.yaml"))

    def tokenizer_path(self) -> Path | None:
        """Directory of its tokenizer, if one was saved."""
        return next((self.path / "tokenizer" for name in self.manifest["files"] if name.startswith("tokenizer/")), None)


def save(
    root: Path,
    step: int,
    groups: dict[str, Tensors],
    state: dict[str, Any],
    config: RunConfig,
    tokenizer: Path | None = None,
    keep: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Commit one step; a kill or a full disk at any instant leaves the earlier checkpoints as they were.

    A step that exists is replaced: the later save wins. Two processes that save into one root do so one after the other.

    Args:
        root: directory of the run's checkpoints; made if needed.
        step: optimizer steps done.
        groups: tensors by name for each group, such as "model" and "optimizer"; any shape and memory order.
        state: JSON values.
        config: resolved configuration.
        tokenizer: directory to copy, or None.
        keep: number of newest checkpoints to keep; 0 keeps all.
        max_shard_bytes: a group larger than this is cut into several files.

    Returns:
        The step's directory.

    Raises:
        CheckpointError: `tokenizer` is not a directory, or a dtype cannot be stored.
        OutputError: the disk is full or not writable.
    """
    root = Path(root)
    target = root / f"step-{step:08d}"
    # Whatever may fail without touching the disk is done first.
    contents: dict[str, Iterable[Any]] = {"state.json": [_json(state)], "config.yaml": [dump_config(config).encode()], **_tokenizer_files(tokenizer)}
    for group, tensors in groups.items():
        contents |= {name: safetensors_file.encode(shard) for name, shard in _shards(group, tensors, max_shard_bytes)}
    manifest = {"format_version": FORMAT_VERSION, "step": step, **provenance(), "tensors": {group: len(tensors) for group, tensors in groups.items()}}
    with files.writing(target):
        root.mkdir(parents=True, exist_ok=True)
        with commit.only_saver(root) as alone:
            if alone:
                commit.remove_leftovers(root, _looks_complete)
            temporary = commit.temporary_name(target)
            try:
                _write_step(temporary, contents, manifest)
                commit.commit(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if keep:
                _retain(root, target, keep)
    return target


def latest_valid(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are all there with the right size and digest.

    Returns:
        The checkpoint or None, and one line for each newer or unfinished directory that was passed over; the lines are logged as warnings.
    """
    root = Path(root)
    passed_over = [f"{path}: a save or removal that did not finish; ignored" for path in commit.leftovers(root)]
    found = None
    for path in _steps(root):
        try:
            found = _verified(path)
            break
        except CheckpointError as error:
            passed_over.append(str(error))
    for line in passed_over:
        _log.warning("%s", line)
    return found, passed_over


def open_checkpoint(path: Path) -> Checkpoint:
    """A step directory itself, or the newest valid one of a checkpoint root or of a run directory that contains `checkpoints/`.

    Raises:
        CheckpointError: there is none; the message names what was seen and what is wrong with it.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; a checkpoint is a step-* directory, the directory of these, or a run's directory")
    if (path / MANIFEST).exists() or _STEP.fullmatch(path.resolve().name):
        return _verified(path)
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoint, passed_over = latest_valid(root)
    if checkpoint is None:
        seen = " | ".join(passed_over) or "no step-* directory in it"
        raise CheckpointError(f"{root}: no valid checkpoint ({seen}); name a directory that holds one, or train again")
    return checkpoint


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _tokenizer_files(tokenizer: Path | None) -> dict[str, list[bytes]]:
    if tokenizer is None:
        return {}
    tokenizer = Path(tokenizer)
    if not tokenizer.is_dir():
        raise CheckpointError(f"{tokenizer}: no such directory; a tokenizer is a directory; name the one that `pangu tokenizer train` wrote")
    return {f"tokenizer/{path.relative_to(tokenizer).as_posix()}": [path.read_bytes()] for path in sorted(tokenizer.rglob("*")) if path.is_file()}


def _shards(group: str, tensors: Tensors, max_bytes: int) -> Iterator[tuple[str, Tensors]]:
    """File names with their tensors, in the given order; a file exceeds `max_bytes` only if a single tensor does."""
    shards: list[Tensors] = [{}]
    room = max_bytes
    for name, array in tensors.items():
        if array.nbytes > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = array
        room -= array.nbytes
    for number, shard in enumerate(shards, 1):
        yield f"{group}-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else f"{group}.safetensors", shard


def _write_step(directory: Path, contents: dict[str, Iterable[Any]], manifest: dict[str, Any]) -> None:
    """Write and flush all files, the manifest last, and the directories' entries."""
    manifest = manifest | {"files": {name: _write_file(directory / name, pieces) for name, pieces in contents.items()}}
    _write_file(directory / MANIFEST, [_json(manifest | {"sha256": files.sha256_json(manifest)})])
    for path in [p for p in directory.rglob("*") if p.is_dir()] + [directory]:
        files.sync_path(path)


def _write_file(path: Path, pieces: Iterable[Any]) -> dict[str, Any]:
    """Write pieces of bytes to a new file, flushed; its size and digest, taken from memory and not read back from the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _steps(root: Path) -> list[Path]:
    """Step directories, newest first; an `.old` one after the one that replaces it."""
    found = [(int(match[1]), not match[2], path) for path in root.glob("step-*") if (match := _STEP.fullmatch(path.name)) and path.is_dir()]
    return [path for _, _, path in sorted(found, reverse=True)]


def _verified(path: Path, digests: bool = True) -> Checkpoint:
    """Open a step directory after checking manifest and sizes and, unless told otherwise, digests.

    Raises:
        CheckpointError: what is wrong with it.
    """
    try:
        manifest = _read_manifest(path)
        for name, entry in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != entry["bytes"]:
                raise CheckpointError(f"{path}: {name} has {size} bytes, its manifest says {entry['bytes']}; use another checkpoint")
            if digests and files.sha256_file(path / name) != entry["sha256"]:
                raise CheckpointError(f"{path}: {name} has another content than its manifest says (SHA-256); use another checkpoint")
    except FileNotFoundError as error:
        name = Path(error.filename).relative_to(path)
        raise CheckpointError(f"{path}: {name} is missing, so the directory is not whole; use another checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); use another checkpoint or mend the disk") from None
    return Checkpoint(path, manifest["step"], manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        digest = manifest.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{path}: {MANIFEST} is damaged; use another checkpoint") from None
    if manifest.get("format_version", 0) != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {manifest.get('format_version')}; this program reads {FORMAT_VERSION}; use the pangu_ms that wrote it")
    match = _STEP.fullmatch(path.name)
    if digest != files.sha256_json(manifest) or (match and int(match[1]) != manifest["step"]):
        raise CheckpointError(f"{path}: {MANIFEST} was changed after it was written; use another checkpoint")
    return manifest


def _looks_complete(path: Path) -> bool:
    """Whether manifest and sizes are right; digests of many gigabytes would cost minutes at each save."""
    try:
        return bool(_verified(path, digests=False))
    except CheckpointError:
        return False


def _retain(root: Path, written: Path, keep: int) -> None:
    """Remove all steps older than the newest `keep` complete ones; damaged newer ones stay, to be named when the run resumes."""
    steps = _steps(root)
    complete = [path for path in steps if path == written or _looks_complete(path)]
    for path in steps[steps.index(complete[:keep][-1]) + 1 :]:
        if path != written:
            commit.discard(path)
