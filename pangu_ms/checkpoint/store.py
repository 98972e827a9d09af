"""The checkpoint store: each step is a directory that is written atomically. No mindspore import.

    ROOT/step-00000100/
        model.safetensors       the group of tensors "model". A group above max_shard_bytes is split into
                                model-00001-of-00003.safetensors and so on; a group that is sharded over the ranks of
                                a plan has the files model-rank-00007.safetensors and so on (see sharded.py). Stacks
                                are stored member by member (see models/common/stacks.py)
        model/NAME.safetensors  one member of a stack (an expert of a layer), where experts are kept on the host while
                                training (train/offload); likewise optimizer/NAME.safetensors
        routing.safetensors     the model's tables of integers, if it has any; a reader finds them in the group "model"
        optimizer.safetensors   further groups, if any
        state.json              what the training loop needs to resume; the store does not interpret it
        config.yaml             the resolved run configuration
        tokenizer/              a copy of the tokenizer, so that this directory alone can generate text
        manifest.json           written last: size and SHA-256 of every file, versions, git revision (step_directory.py)

A quantized checkpoint (quantized.py) is one of another kind: its matrices are in int8 or bfloat16, as its manifest
says.

A step is written under a temporary name, flushed and renamed (see commit.py). A reader trusts it only after it has
verified the manifest, the sizes and the digests.
"""

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import commit, safetensors_file, sharded
from pangu_ms.checkpoint.lazy import Stored
from pangu_ms.checkpoint.step_directory import (
    MANIFEST,
    STEP,
    Contents,
    NewerCheckpoint,
    json_bytes,
    verified,
    write_step,
)
from pangu_ms.config import RunConfig, dump_config, load_config
from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import CheckpointError, OutputError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.models.common.stacks import members
from pangu_ms.models.common.strict import check_names_and_shapes
from pangu_ms.parallel.plan import Plan

__all__ = ["Checkpoint", "check_names_and_shapes", "latest_valid", "open_checkpoint", "save", "write"]

_log = logging.getLogger(__name__)

STATE, STATE_VERSION = "state.json", 1
MODEL, ROUTING = "model", "routing"
QUANTIZED, QUANTIZED_DTYPES = "quantized", ("int8", "bfloat16")
"""The manifest's entry that says how a checkpoint is quantized, and the dtypes of its matrices."""
PARTIAL = ".partial"
"""Directory of a conversion that is not finished; see partial.py."""
MAX_SHARD_BYTES = 4 << 30
"""Chosen below 5 GB, the largest upload that object stores accept in one request."""

Tensors = dict[str, np.ndarray]
Check = Callable[[Path], None]
"""Raises OutputError unless a checkpoint may be written to a directory."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified step directory."""

    path: Path
    step: int
    """Optimizer steps done when it was saved."""
    manifest: dict[str, Any]

    @property
    def quantized(self) -> str:
        """dtype of the matrices of a quantized checkpoint, see quantized.py; empty for any other checkpoint.

        Raises:
            CheckpointError: it is none that this version knows.
        """
        if QUANTIZED not in self.manifest:
            return ""
        kind = self.manifest[QUANTIZED]
        weights = kind.get("weights") if isinstance(kind, dict) else None
        if weights not in QUANTIZED_DTYPES:
            raise CheckpointError(
                f"{self.path}: is quantized to {weights!r:.40}; this version knows {', '.join(QUANTIZED_DTYPES)}; use"
                " the version that wrote it, or another checkpoint"
            )
        return weights

    def require_not_quantized(self) -> None:
        """Raise CheckpointError if the checkpoint is quantized: its tensors are not those of the model."""
        if self.quantized:
            source = self.manifest[QUANTIZED].get("source")
            made_from = source.get("checkpoint") if isinstance(source, dict) else None
            raise CheckpointError(
                f"{self.path}: is quantized to {self.quantized}, whose numbers are rounded; this verb needs them as"
                f" they were; name the checkpoint it was made from{f' ({made_from})' if made_from else ''}"
            )

    @property
    def groups(self) -> list[str]:
        """Names of the groups of tensors."""
        return [group for group in self.manifest["tensors"] if group != ROUTING]

    def stored(self, group: str = "model") -> Stored:
        """The tensors of one group by name. They stay on the disk; each can be read on its own, or in parts.

        Raises:
            CheckpointError: there is no such group, a rank's file does not fit the plan of config.yaml, or the
                checkpoint is quantized.
        """
        self.require_not_quantized()
        return self.stored_as_is(group)

    def stored_as_is(self, group: str = "model") -> Stored:
        """As `stored`, but with the tensors of a quantized checkpoint, which are not the model's; see quantized.py."""
        if group not in self.groups:
            raise CheckpointError(
                f"{self.path}: has no {group} tensors; it holds {', '.join(self.groups)}; use another checkpoint"
            )
        ranks = {}
        for name in self.manifest["files"]:
            if (match := sharded.RANK_FILE.fullmatch(name)) and match[1] == group:
                ranks[int(match[2])] = self.path / name
        if ranks:
            return sharded.read_ranks(str(self.path), ranks, Plan.of(self.config()))
        files_of = f"{MODEL}|{ROUTING}" if group == MODEL else re.escape(group)
        shard = re.compile(rf"({files_of})(-\d{{5}}-of-\d{{5}}|/[^/]+)?\.safetensors")
        paths = [self.path / name for name in self.manifest["files"] if shard.fullmatch(name)]
        return sharded.joined(
            str(self.path), {name: entry for path in paths for name, entry in safetensors_file.index(path).items()}
        )

    def each(self, group: str = "model") -> Iterator[tuple[str, np.ndarray]]:
        """Read the tensors of one group one after the other; see `tensors`."""
        return ((name, tensor.values()) for name, tensor in self.stored(group).items())

    def tensors(self, group: str = "model") -> Tensors:
        """Read the tensors of one group by name, with the shapes and dtypes that were saved. The slices of a sharded
        checkpoint are joined.

        Raises:
            CheckpointError: see `stored`.
        """
        return dict(self.each(group))

    def state(self) -> dict[str, Any]:
        """The state of the training loop, as it was given to `save`.

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
        """The configuration of the run that saved the checkpoint."""
        return load_config(str(self.path / "config.yaml"))

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that was saved with the step; None where there is none.

        Raises:
            DataError: it is damaged.
        """
        path = self.tokenizer_path()
        return Tokenizer.load(path) if path else None

    def tokenizer_path(self) -> Path | None:
        """Directory of the tokenizer that was saved with the step; None if there is none."""
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
    allowed: Check = lambda root: None,
) -> Path:
    """Save one step atomically. If the process is killed or the disk is full, the earlier checkpoints stay as they
    were.

    If the step exists, it is replaced. Two processes that save into one root wait for each other.

    Args:
        root: directory of the run's checkpoints; made if needed.
        step: optimizer steps done.
        groups: tensors by name for each group, such as "model" and "optimizer"; any shape and memory order.
        state: JSON values that the training loop needs to resume.
        config: resolved configuration.
        tokenizer: directory to copy, or None.
        keep: number of newest checkpoints to keep; 0 keeps all.
        max_shard_bytes: a group larger than this is split into several files.
        allowed: see `new_step`.

    Returns:
        The step's directory.

    Raises:
        CheckpointError: `tokenizer` is not a directory, or a dtype cannot be stored.
        OutputError: the disk is full or not writable.
    """
    # Errors that do not depend on the disk are found first.
    contents = description(state, config, tokenizer)
    stored = {group: dict(members(tensors)) for group, tensors in with_routing(groups).items()}
    for group, tensors in stored.items():
        for name, names in shards(group, {name: array.nbytes for name, array in tensors.items()}, max_shard_bytes):
            contents[name] = safetensors_file.encode({name: tensors[name] for name in names})
    return write(
        root, step, contents, {group: len(tensors) for group, tensors in stored.items()}, keep, allowed=allowed
    )


def with_routing(groups: dict[str, Tensors]) -> dict[str, Tensors]:
    """The groups as files hold them: the model's tables of integers are a group of their own."""
    tensors = groups.get(MODEL, {})
    tables = {name: array for name, array in tensors.items() if array.dtype.kind == "i"}
    if not tables:
        return groups
    weights = {name: array for name, array in tensors.items() if name not in tables}
    return groups | {MODEL: weights, ROUTING: tables}


def write(
    root: Path,
    step: int,
    contents: Contents,
    groups: dict[str, int],
    keep: int = 0,
    kind: dict[str, Any] | None = None,
    allowed: Check = lambda root: None,
) -> Path:
    """Save one step from the bytes of its files; see `save`.

    Args:
        contents: all files but the manifest. Their pieces are iterated over as they are written.
        groups: number of tensors of each group.
        kind: see `write_step`.
        allowed: see `new_step`.
    """
    with new_step(root, step, keep, allowed=allowed) as temporary:
        write_step(temporary, contents, step, groups, kind=kind)
    return step_path(root, step)


def step_path(root: Path, step: int) -> Path:
    """The directory of a committed step."""
    return Path(root) / f"step-{step:08d}"


@contextlib.contextmanager
def new_step(
    root: Path, step: int, keep: int = 0, temporary: Path | None = None, allowed: Check = lambda root: None
) -> Iterator[Path]:
    """Open a context in which one step is written; see `save`.

    The context yields the path of a directory that the block must create and fill with `write_step`. When the block
    ends without an error, the directory is committed.

    Args:
        temporary: the path to use, if several processes have to know it. `commit.leftovers` must be able to find it.
        allowed: called with `root` when no other process saves there any more; it raises OutputError if what that
            process wrote must not be added to. A command that writes a new checkpoint has checked this at its start,
            too, but another one may have begun at the same time.
    """
    root, target = Path(root), step_path(root, step)
    with files.writing(target):
        root.mkdir(parents=True, exist_ok=True)
        with commit.only_saver(root) as alone:
            if alone:
                commit.remove_leftovers(root, _looks_complete)
            allowed(root)
            temporary = temporary or commit.temporary_name(target)
            shutil.rmtree(temporary, ignore_errors=True)  # a killed save may have left it, if there are no locks
            try:
                yield temporary
                commit.commit(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if keep:
                _retain(root, target, keep)


def latest_valid(root: Path, digests: bool = True, progress: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files all have the right size and digest.

    Returns:
        The checkpoint or None, and one line for each newer or unfinished directory that was skipped. The lines are also
        logged as warnings.

    Raises:
        NewerCheckpoint: a newer version of this program wrote the newest checkpoint.
    """
    found, passed_over = _newest(Path(root), digests, progress)
    _warn(passed_over)
    return found, passed_over


def _newest(root: Path, digests: bool, progress: bool) -> tuple[Checkpoint | None, list[str]]:
    """See `latest_valid`; nothing is logged."""
    passed_over = [f"{path}: a save or removal that did not finish; ignored" for path in commit.leftovers(root)]
    if (root / PARTIAL).is_dir():
        passed_over.append(f"{root / PARTIAL}: a conversion that did not finish; the same command goes on")
    found = None
    for path in step_directories(root):
        try:
            found = _open(path, digests, progress)
            break
        except NewerCheckpoint:
            raise
        except CheckpointError as error:
            passed_over.append(str(error))
    return found, passed_over


def _warn(lines: list[str]) -> None:
    for line in lines:
        _log.warning("%s", line)


def open_checkpoint(path: Path, digests: bool = True, progress: bool = False) -> Checkpoint:
    """Open a checkpoint.

    Args:
        path: a step directory; or a directory of step directories, or a run's directory with `checkpoints/` in it. Of
            these two the newest valid step is opened.
        digests: False compares only sizes; use it for a first look at a checkpoint that will be opened again.
        progress: show a bar while digests are computed.

    Raises:
        CheckpointError: there is no valid checkpoint; the message names what was found and what is wrong with it.
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
    checkpoint, passed_over = _newest(root, digests, progress)
    if checkpoint is None:
        seen = " | ".join(passed_over) or "no step-* directory in it"
        raise CheckpointError(f"{root}: no valid checkpoint ({seen}); name a directory that holds one, or train again")
    _warn(passed_over)
    return checkpoint


def _open(path: Path, digests: bool, progress: bool) -> Checkpoint:
    manifest = verified(path, digests, progress)
    return Checkpoint(path, manifest["step"], manifest)


def description(state: dict[str, Any], config: RunConfig, tokenizer: Path | None) -> Contents:
    """The files of a step that hold no tensors, without the manifest."""
    return {
        STATE: [state_bytes(state)],
        "config.yaml": [dump_config(config).encode()],
        **tokenizer_files(tokenizer),
    }


def state_bytes(state: dict[str, Any]) -> bytes:
    """The content of a step's state.json."""
    return json_bytes({format_version.KEY: STATE_VERSION} | state)


def tokenizer_files(tokenizer: Path | None) -> dict[str, list[bytes]]:
    """The files of a tokenizer directory, under the names that they have in a step.

    Raises:
        CheckpointError: there is no such directory, or it holds weights.
    """
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
    found = [path for path in sorted(tokenizer.rglob("*")) if path.is_file()]
    return {f"tokenizer/{path.relative_to(tokenizer).as_posix()}": [path.read_bytes()] for path in found}


def shards(group: str, sizes: dict[str, int], max_bytes: int = MAX_SHARD_BYTES) -> Iterator[tuple[str, list[str]]]:
    """Distribute the tensors of a group over files, in the given order.

    Args:
        group: name of the group; the file names begin with it.
        sizes: bytes of each tensor by name.
        max_bytes: largest size of a file; only a single larger tensor exceeds it.

    Yields:
        The name of each file, and the names of its tensors.
    """
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
    """Step directories, newest first; an `.old` one follows the one that replaces it."""
    found = []
    for path in root.glob("step-*"):
        if (match := STEP.fullmatch(path.name)) and path.is_dir():
            found.append((int(match[1]), not match[2], path))
    return [path for _, _, path in sorted(found, reverse=True)]


def require_unused(root: Path) -> None:
    """Raise OutputError unless a new checkpoint may be written to `root`. Leftovers of a killed save are ignored."""
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root}: is a file; a checkpoint goes into a directory; name another --output")
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if not files.LEFT_BY_SAVES.fullmatch(path.name):
            raise OutputError(
                f"{root}: has other content ({path.name}); nothing is overwritten; name a new --output or empty it"
            )


def require_no_checkpoints(output: Path) -> None:
    """Raise OutputError if `output` holds checkpoints or is the directory of a run. A new checkpoint of step 0 would be
    mistaken for a checkpoint of that run."""
    if next(Path(output).glob("step-*"), None) or next(Path(output).glob("checkpoints/step-*"), None):
        raise OutputError(f"{output}: holds checkpoints; nothing is overwritten; name a new --output")


def _looks_complete(path: Path) -> bool:
    """Whether the manifest and all sizes are right. Digests are not compared: for many gigabytes this would take
    minutes at every save."""
    try:
        return bool(verified(path, digests=False))
    except CheckpointError:
        return False


def _retain(root: Path, written: Path, keep: int) -> None:
    """Remove all steps older than the newest `keep` complete ones. Damaged steps that are newer stay, so that a resumed
    run warns of them."""
    steps = step_directories(root)
    complete = [path for path in steps if path == written or _looks_complete(path)]
    for path in steps[steps.index(complete[:keep][-1]) + 1 :]:
        if path != written:
            commit.discard(path)
