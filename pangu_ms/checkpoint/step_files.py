"""The files of a step directory as they are written. No mindspore import."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint.manifest import FORMAT_VERSION, MANIFEST
from pangu_ms.checkpoint.provenance import provenance
from pangu_ms.core import files

Contents = dict[str, Iterable[Any]]
"""Files by name, each as pieces of bytes."""


def json_bytes(value: Any) -> bytes:
    """A JSON value as a step keeps it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_step(
    directory: Path, contents: Contents, step: int, groups: dict[str, int], written: dict[str, Any] | None = None
) -> None:
    """Write and flush all files, the manifest last, and the directories' entries.

    Args:
        groups: number of tensors of each group.
        written: files that are there already, each with what `write_file` returned.
    """
    entries = {name: write_file(directory / name, pieces) for name, pieces in contents.items()} | (written or {})
    manifest = {"format_version": FORMAT_VERSION, "step": step, **provenance(), "tensors": groups, "files": entries}
    write_file(directory / MANIFEST, [json_bytes(manifest | {"sha256": files.sha256_json(manifest)})])
    for path in [p for p in directory.rglob("*") if p.is_dir()] + [directory]:
        files.sync_path(path)


def write_file(path: Path, pieces: Iterable[Any]) -> dict[str, Any]:
    """Write pieces of bytes to a new file, flushed; its size and digest, taken from memory and not read back from the
    disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}
