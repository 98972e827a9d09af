"""What makes a step directory trustworthy: its manifest, and files of the sizes and digests that it names. No mindspore
import."""

import re
import stat
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint.sharded import RANK_FILE
from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import CheckpointError
from pangu_ms.core.progress import progress_bar

FORMAT_VERSION = 2
"""1 was that of version 0.1.0, whose config.yaml and state.json have no format version; it is still read."""
MANIFEST = "manifest.json"
STEP = re.compile(r"step-(\d{8,})(\.old)?")


class NewerCheckpoint(CheckpointError):
    """Whole, and written by a newer version: to go on from an older one instead would lose the steps between."""


def verified(path: Path, digests: bool = True, progress: bool = False) -> dict[str, Any]:
    """The manifest of a step directory after checking it, sizes and, unless told otherwise, digests.

    Raises:
        NewerCheckpoint: a newer version of this program wrote it.
        CheckpointError: what is wrong with it.
    """
    try:
        manifest = _read(path)
        sizes = {
            name: _size(path / name) for name in manifest["files"]
        }  # all of them before the first digest, which may take minutes
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
    try:
        manifest = small_json.read_object(path / MANIFEST)
        intact = manifest.pop("sha256") == files.sha256_json(manifest)
    except small_json.Missing:
        raise CheckpointError(
            f"{path}: {MANIFEST} is missing, so the directory is not whole; use another checkpoint"
        ) from None
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: {MANIFEST} is damaged ({error}); use another checkpoint") from None
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
    """Whether it has a step, files of the directory with sizes and digests, and groups of tensors: a digest does not
    say who computed it."""
    entries, groups = manifest.get("files"), manifest.get("tensors")
    return (
        type(manifest.get("step")) is int
        and isinstance(entries, dict)
        and all(_is_entry(name, entry) for name, entry in entries.items())
        and isinstance(groups, dict)
        and all(type(count) is int for count in groups.values())
    )


def _is_entry(name: str, entry: Any) -> bool:
    inside = name != MANIFEST and not Path(name).is_absolute() and ".." not in Path(name).parts
    return (
        inside and isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
    )
