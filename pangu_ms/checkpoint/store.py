"""The checkpoint store: directories that are whole or not there. No mindspore import.

    ROOT/step-00000100/model.safetensors        one group of tensors; model-00001-of-00003.safetensors ... beyond
    max_shard_bytes
                       model-rank-00007.safetensors ... of a checkpoint that is cut over the ranks of a plan: see
                       sharded.py
                       optimizer.safetensors    further groups, if any
                       state.json               what the training loop needs to go on; opaque here
                       config.yaml              the resolved run configuration
                       tokenizer/               copy of the tokenizer, so that text can be generated from this directory
                       alone
                       manifest.json            written last: size and SHA-256 of every file, versions, git revision;
                       see manifest.py

A save goes to a temporary name, is flushed and renamed (see commit.py). A reader trusts a step only after its manifest,
sizes and digests.
"""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import commit, safetensors_file, sharded
from pangu_ms.checkpoint.manifest import MANIFEST, STEP, NewerCheckpoint, verified
from pangu_ms.checkpoint.step_files import Contents, json_bytes, write_step
from pangu_ms.config import RunConfig, dump_config, load_config
from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import CheckpointError, OutputError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.models.common.strict import check_names_and_shapes
from pangu_ms.parallel.plan import Plan

__all__ = ["Checkpoint", "check_names_and_shapes", "latest_valid", "open_checkpoint", "save", "write"]

_log = logging.getLogger(__name__)

STATE, STATE_VERSION = "state.json", 1
MAX_SHARD_BYTES = 4 << 30  # below the 5 GB that object stores take in one request

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

    def stored(self, group: str = "model") -> sharded.Stored:
        """The tensors of one group by name, on disk: to be read one at a time, or in parts.

        Raises:
            CheckpointError: it has no such group, or a rank's file does not fit the plan of its config.yaml.
        """
        if group not in self.groups:
            raise CheckpointError(
                f"{self.path}: has no {group} tensors; it holds {', '.join(self.groups)}; use another checkpoint"
            )
        ranks = {
            int(match[2]): self.path / name
            for name in self.manifest["files"]
            if (match := sharded.RANK_FILE.fullmatch(name)) and match[1] == group
        }
        if ranks:
            return sharded.read_ranks(str(self.path), ranks, Plan.of(self.config()))
        shard = re.compile(re.escape(group) + r"(-\d{5}-of-\d{5})?\.safetensors")
        paths = [self.path / name for name in self.manifest["files"] if shard.fullmatch(name)]
        return {name: sharded.whole(*entry) for path in paths for name, entry in safetensors_file.index(path).items()}

    def each(self, group: str = "model") -> Iterator[tuple[str, np.ndarray]]:
        """The tensors of one group, one after the other; see `tensors`."""
        return ((name, tensor.values()) for name, tensor in self.stored(group).items())

    def tensors(self, group: str = "model") -> Tensors:
        """The tensors of one group by name, with the shapes and dtypes that were saved; those of a sharded checkpoint
        are put together.

        Raises:
            CheckpointError: see `stored`.
        """
        return dict(self.each(group))

    def state(self) -> dict[str, Any]:
        """What the training loop stored.

        Raises:
            CheckpointError: state.json is damaged, or was written by a newer version of this program.
        """
        try:
            state = small_json.read_object(self.path / STATE, finite=False)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {STATE} is damaged ({error}); use another checkpoint") from None
        format_version.require_known(
            state.pop(format_version.KEY, format_version.FIRST), STATE_VERSION, self.path / STATE, CheckpointError
        )
        return state

    def config(self) -> RunConfig:
        """The configuration of the run that saved it."""
        return load_config(str(self.path / "config.yaml"))

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that was saved with the step; None where there is none.

        Raises:
            DataError: it is damaged.
        """
        path = self.tokenizer_path()
        return Tokenizer.load(path) if path else None

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

    A step that exists is replaced: the later save wins. Two processes that save into one root do so one after the
    other.

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
    # Whatever may fail without touching the disk is done first.
    contents = description(state, config, tokenizer)
    for group, tensors in groups.items():
        for name, names in shards(group, {name: array.nbytes for name, array in tensors.items()}, max_shard_bytes):
            contents[name] = safetensors_file.encode({name: tensors[name] for name in names})
    return write(root, step, contents, {group: len(tensors) for group, tensors in groups.items()}, keep)


def write(root: Path, step: int, contents: Contents, groups: dict[str, int], keep: int = 0) -> Path:
    """Commit one step from the bytes of its files; see `save`.

    Args:
        contents: all files but the manifest; their pieces are made when their turn has come.
        groups: number of tensors of each group.
    """
    with new_step(root, step, keep) as temporary:
        write_step(temporary, contents, step, groups)
    return step_path(root, step)


def step_path(root: Path, step: int) -> Path:
    """The directory of a committed step."""
    return Path(root) / f"step-{step:08d}"


@contextlib.contextmanager
def new_step(root: Path, step: int, keep: int = 0, temporary: Path | None = None) -> Iterator[Path]:
    """Yield the name of a directory, to be made and filled by `write_step`, that is committed when the block ends
    without an error; see `save`.

    Args:
        temporary: that name where several processes have to know it; one that `commit.leftovers` finds.
    """
    root, target = Path(root), step_path(root, step)
    with files.writing(target):
        root.mkdir(parents=True, exist_ok=True)
        with commit.only_saver(root) as alone:
            if alone:
                commit.remove_leftovers(root, _looks_complete)
            temporary = temporary or commit.temporary_name(target)
            shutil.rmtree(temporary, ignore_errors=True)  # a killed save's, where the file system has no locks
            try:
                yield temporary
                commit.commit(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if keep:
                _retain(root, target, keep)


def latest_valid(root: Path, digests: bool = True, progress: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are all there with the right size and digest.

    Returns:
        The checkpoint or None, and one line for each newer or unfinished directory that was passed over; the lines are
        logged as warnings.

    Raises:
        NewerCheckpoint: the newest is of a newer version of this program.
    """
    root = Path(root)
    passed_over = [f"{path}: a save or removal that did not finish; ignored" for path in commit.leftovers(root)]
    found = None
    for path in step_directories(root):
        try:
            found = _open(path, digests, progress)
            break
        except NewerCheckpoint:
            raise
        except CheckpointError as error:
            passed_over.append(str(error))
    for line in passed_over:
        _log.warning("%s", line)
    return found, passed_over


def open_checkpoint(path: Path, digests: bool = True, progress: bool = False) -> Checkpoint:
    """A step directory itself, or the newest valid one of a checkpoint root or of a run directory that contains
    `checkpoints/`.

    Args:
        digests: False checks sizes only, for a first look at what will be opened again.
        progress: show a bar while digests are computed.

    Raises:
        CheckpointError: there is none; the message names what was seen and what is wrong with it.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such directory; a checkpoint is a step-* directory, the directory of these, or a run's"
            " directory"
        )
    if (path / MANIFEST).exists() or STEP.fullmatch(path.resolve().name):
        return _open(path, digests, progress)
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoint, passed_over = latest_valid(root, digests, progress)
    if checkpoint is None:
        seen = " | ".join(passed_over) or "no step-* directory in it"
        raise CheckpointError(f"{root}: no valid checkpoint ({seen}); name a directory that holds one, or train again")
    return checkpoint


def _open(path: Path, digests: bool, progress: bool) -> Checkpoint:
    manifest = verified(path, digests, progress)
    return Checkpoint(path, manifest["step"], manifest)


def description(state: dict[str, Any], config: RunConfig, tokenizer: Path | None) -> Contents:
    """The files of a step that hold no tensors."""
    return {
        STATE: [json_bytes({format_version.KEY: STATE_VERSION} | state)],
        "config.yaml": [dump_config(config).encode()],
        **tokenizer_files(tokenizer),
    }


def tokenizer_files(tokenizer: Path | None) -> dict[str, list[bytes]]:
    """The files of a tokenizer directory as a step keeps them."""
    if tokenizer is None:
        return {}
    tokenizer = Path(tokenizer)
    if not tokenizer.is_dir():
        raise CheckpointError(
            f"{tokenizer}: no such directory; a tokenizer is a directory; name the one that `pangu tokenizer train`"
            " wrote"
        )
    if any(tokenizer.glob("*.safetensors")):
        raise CheckpointError(
            f"{tokenizer}: holds weights beside the tokenizer; a checkpoint keeps the tokenizer alone; copy its files"
            " to a directory of their own"
        )
    return {
        f"tokenizer/{path.relative_to(tokenizer).as_posix()}": [path.read_bytes()]
        for path in sorted(tokenizer.rglob("*"))
        if path.is_file()
    }


def shards(group: str, sizes: dict[str, int], max_bytes: int = MAX_SHARD_BYTES) -> Iterator[tuple[str, list[str]]]:
    """File names with the names of their tensors, in the given order; a file exceeds `max_bytes` only if a single
    tensor does."""
    cut: list[list[str]] = [[]]
    room = max_bytes
    for name, size in sizes.items():
        if size > room and cut[-1]:
            cut.append([])
            room = max_bytes
        cut[-1].append(name)
        room -= size
    for number, names in enumerate(cut, 1):
        yield f"{group}-{number:05d}-of-{len(cut):05d}.safetensors" if len(cut) > 1 else f"{group}.safetensors", names


def step_directories(root: Path) -> list[Path]:
    """Step directories, newest first; an `.old` one after the one that replaces it."""
    found = [
        (int(match[1]), not match[2], path)
        for path in root.glob("step-*")
        if (match := STEP.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, _, path in sorted(found, reverse=True)]


def require_no_checkpoints(output: Path) -> None:
    """Raise OutputError if a checkpoint of step 0 would stand beside others in `output`, or in a run's directory, and
    be taken for theirs."""
    if next(Path(output).glob("step-*"), None) or next(Path(output).glob("checkpoints/step-*"), None):
        raise OutputError(f"{output}: holds checkpoints; nothing is overwritten; name a new --output")


def _looks_complete(path: Path) -> bool:
    """Whether manifest and sizes are right; digests of many gigabytes would cost minutes at each save."""
    try:
        return bool(verified(path, digests=False))
    except CheckpointError:
        return False


def _retain(root: Path, written: Path, keep: int) -> None:
    """Remove all steps older than the newest `keep` complete ones; damaged newer ones stay, to be named when the run
    resumes."""
    steps = step_directories(root)
    complete = [path for path in steps if path == written or _looks_complete(path)]
    for path in steps[steps.index(complete[:keep][-1]) + 1 :]:
        if path != written:
            commit.discard(path)
