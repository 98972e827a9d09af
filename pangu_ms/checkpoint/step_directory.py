"""The directory of one step: writes its files and manifest, and verifies them. No mindspore import.

The manifest makes a directory trustworthy: it is written last, and names the size and digest of every file.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pangu_ms
from pangu_ms.checkpoint.sharded import RANK_FILE
from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import CheckpointError
from pangu_ms.core.progress import progress_bar

FORMAT_VERSION = 2
"""pangu-ms 0.1.0 wrote version 1, whose config.yaml and state.json have no format version; it is still read."""
MANIFEST = "manifest.json"
STEP = re.compile(r"step-(\d{8,})(\.old)?")
Contents = dict[str, Iterable[Any]]
"""The files of a step by name, each as pieces of bytes."""


class NewerCheckpoint(CheckpointError):
    """The checkpoint was written by a newer version. Resuming from an older checkpoint instead would lose the steps
    between, so a reader never skips such a checkpoint."""


def json_bytes(value: Any) -> bytes:
    """Encode a JSON value as the content of a file of a step."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_step(
    directory: Path,
    contents: Contents,
    step: int,
    groups: dict[str, int],
    written: dict[str, Any] | None = None,
    kind: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and flush the files of a step, the manifest last, and flush the directories that hold them; returns the
    manifest's entries of all files.

    Args:
        directory: the step's directory.
        contents: all files but the manifest and those of `written`.
        step: number of the step.
        groups: number of tensors of each group.
        written: files that are there already: what `write_file` returned, by name.
        kind: further entries of the manifest, which say that the checkpoint is of another kind (see quantized.py).
    """
    entries = {name: write_file(directory / name, pieces) for name, pieces in contents.items()} | (written or {})
    manifest = {"format_version": FORMAT_VERSION, "step": step, **(kind or {}), **provenance()}
    manifest |= {"tensors": groups, "files": entries}
    write_file(directory / MANIFEST, [json_bytes(manifest | {"sha256": files.sha256_json(manifest)})])
    for path in [*(p for p in directory.rglob("*") if p.is_dir()), directory]:
        files.sync_path(path)
    return entries


def write_file(path: Path, pieces: Iterable[Any]) -> dict[str, Any]:
    """Write pieces of bytes to a new file and flush it.

    Returns:
        The file's entry in the manifest: its size and digest, computed from memory, not read back from the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def verified(path: Path, digests: bool = True, progress: bool = False) -> dict[str, Any]:
    """Verify a step directory; returns its manifest.

    Args:
        path: the directory.
        digests: also compare the digest of every file, which reads all of them; False compares the sizes alone.
        progress: show a bar.

    Raises:
        NewerCheckpoint: a newer version of this program wrote it.
        CheckpointError: the directory is incomplete or damaged; the message says how.
    """
    try:
        manifest = _read(path)
        # All sizes are compared before the first digest: digests of many gigabytes take minutes.
        sizes = {name: _size(path / name) for name in manifest["files"]}
        for name, entry in manifest["files"].items():
            if sizes[name] != entry["bytes"]:
                raise CheckpointError(
                    f"{path}: {name} has {sizes[name]} bytes, its manifest says {entry['bytes']}; use another"
                    " checkpoint"
                )
        with progress_bar(progress, total=sum(sizes.values()), unit="B", unit_scale=True, desc="verify") as bar:
            for name, entry in manifest["files"].items() if digests else ():
                if files.sha256_file(path / name) != entry["sha256"]:
                    raise CheckpointError(
                        f"{path}: {name} has another content than its manifest says (SHA-256); use another checkpoint"
                    )
                bar.update(entry["bytes"])
    except FileNotFoundError as error:
        name = str(Path(error.filename).relative_to(path))
        of_rank = f" (rank {int(match[2])}'s {match[1]} tensors)" if (match := RANK_FILE.fullmatch(name)) else ""
        raise CheckpointError(
            f"{path}: {name}{of_rank} is missing, so the directory is not whole; use another checkpoint"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); use another checkpoint or mend the disk"
        ) from None
    return manifest


def _read(path: Path) -> dict[str, Any]:
    """Read the manifest of a step directory, and check it against its own digest and the directory's name."""
    try:
        manifest = small_json.read_object(path / MANIFEST)
        intact = manifest.pop("sha256") == files.sha256_json(manifest)
    except small_json.Missing:
        raise CheckpointError(
            f"{path}: {MANIFEST} is missing, so the directory is not whole; use another checkpoint"
        ) from None
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: {MANIFEST} is damaged ({error}); use another checkpoint") from None
    if intact and "graph" in manifest:
        raise CheckpointError(
            f"{path}: is a MindIR package, which `pangu run-mindir` runs; name the checkpoint that it was made from"
        )
    # A damaged manifest may show any version; only an intact one proves that a newer program wrote it.
    format_version.require_known(
        manifest.get(format_version.KEY), FORMAT_VERSION, path, NewerCheckpoint if intact else CheckpointError
    )
    match = STEP.fullmatch(path.name)
    if not intact or not _is_whole(manifest) or (match and int(match[1]) != manifest["step"]):
        raise CheckpointError(f"{path}: {MANIFEST} was changed after it was written; use another checkpoint")
    return manifest


def _size(file: Path) -> int:
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{file.parent}: {file.name} is not an ordinary file; use another checkpoint")
    return found.st_size


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has a step, files of the directory with sizes and digests, and groups of tensors.

    The manifest's own digest does not show this, since anybody can compute it.
    """
    entries, groups = manifest.get("files"), manifest.get("tensors")
    if type(manifest.get("step")) is not int or not isinstance(entries, dict) or not isinstance(groups, dict):
        return False
    entries_are_whole = all(_is_entry(name, entry) for name, entry in entries.items())
    return entries_are_whole and all(type(count) is int for count in groups.values())


def _is_entry(name: str, entry: Any) -> bool:
    if name == MANIFEST or Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(entry, dict):
        return False
    return type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)


def provenance() -> dict[str, Any]:
    """How a checkpoint was made, as JSON values: the time (UTC), versions of packages, and the git revision."""
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_revision": git_revision(),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of those packages that it computes with and that are installed."""
    found = {"python": platform.python_version(), "pangu_ms": pangu_ms.__version__}
    for name in ("mindspore", "numpy", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


@functools.cache
def git_revision() -> str | None:
    """The commit of this package's checkout, with "-dirty" if files differ from it; None for an installed package."""
    checkout = Path(pangu_ms.__file__).resolve().parents[1]
    # git searches the parent directories too: it would find the user's own repository around a virtual environment.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
