"""Opens weights that MindSpore saved in one part for each rank, by foreign names: the released 512 parts of
PanGu-alpha, and directories rank_N/. No mindspore import.

    DIR/filerted_0.ckpt ... DIR/filerted_511.ckpt    the parts, as they are published; or DIR/rank_0/FILE.ckpt ...
    *_ckpt_strategy.ckpt                             says how each tensor was cut
    *word_embedding.npy, *position_embedding.npy, *top_query_embedding.npy
                                                     the three embeddings, whole, which replace those of the parts

Source: specification A7.2; MindFormers 1.0, research/pangualpha/convert_weight.
"""

import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pangu_ms.checkpoint.lazy import Readable, Stored
from pangu_ms.checkpoint.mindspore_shards import SourcePlan, index, rank_files
from pangu_ms.checkpoint.safetensors_file import Contents, Location, Spec, require_code
from pangu_ms.checkpoint.sharded import gather, whole
from pangu_ms.core import files
from pangu_ms.core.errors import CheckpointError, PlanError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data import npz_file
from pangu_ms.models.common.weights import Format

SUFFIXES = (".ckpt", ".safetensors")
_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)
_COUNTERS = ("step_num", "epoch_num", "global_step", "current_iterator_step")
"""Scalars that say how far the training was; all parts of one release have the same."""
_BLOCK = re.compile(r"(.*?)\.(\d+)\..+")
_SHOWN = 5  # numbers or names listed


@dataclass(frozen=True)
class Release:
    """The weights of all parts by canonical foreign names; they stay on the disk."""

    stored: Stored
    spellings: dict[str, str]
    """Canonical name -> the name in the files."""
    parts: list[Path]
    tables: dict[str, Path]
    """The .npy file of each tensor that has one, by canonical name."""


def open_release(
    directory: Path,
    strategies: list[Path],
    naming: Format,
    embeddings: Path | None = None,
    progress: bool = False,
) -> Release:
    """Find the tensors of a release.

    Args:
        directory: the parts.
        strategies: one merged strategy file, or one file for each pipeline stage.
        naming: the format of the names.
        embeddings: directory of .npy files; None takes those of `directory`, if there are any.
        progress: show a bar while the parts are opened.

    Raises:
        CheckpointError: a part is missing, damaged, there twice or of another release.
        PlanError: a strategy file cannot be used, or is of another model.
    """
    where = str(directory)
    plan = SourcePlan.read(strategies)
    canonical = _Names(naming)
    stages = {}
    for stage, layouts in plan.stages.items():
        names = canonical.of(strategies[0], layouts)
        stages[stage] = {name: layouts[found] for name, found in names.items()}
    plan = dataclasses.replace(plan, stages=stages)
    paths = part_files(directory, plan, strategies)
    tables = table_files(embeddings or directory, naming, required=embeddings is not None)
    spellings: dict[str, str] = {}

    def opened() -> Iterator[tuple[int, Contents]]:
        counters = _Counters()
        with progress_bar(progress, total=len(paths), desc="open", unit="part") as bar:
            for rank, path in paths.items():
                contents = index(path)
                counters.check(path, contents)
                names = canonical.of(path, contents)
                _require_named(path, strategies, plan.stages[rank // plan.stage_size], names, tables)
                spellings.update(names)
                bar.update()
                yield rank, {name: contents[found] for name, found in names.items() if name not in tables}

    stored = gather(where, opened(), plan.layout)
    _require_all(where, plan, stored, tables)
    whole_tables = {name: open_table(path) for name, path in tables.items()}
    spellings |= {name: path.name for name, path in tables.items()}
    return Release(stored | whole_tables, spellings, list(paths.values()), tables)


def part_files(directory: Path, plan: SourcePlan, strategies: list[Path]) -> dict[int, Path]:
    """The part of each rank: of directories rank_N/, or PREFIX<N>.ckpt in `directory` itself.

    Raises:
        CheckpointError: there are no parts; or one is missing, there twice, of a rank that the strategy does not have,
            or named otherwise than the others.
    """
    directory = Path(directory)
    if any(directory.glob("rank_*/")):
        return rank_files(directory, plan)
    of_strategies = {os.path.realpath(path) for path in strategies}
    found = _numbered(
        [
            path
            for path in sorted(directory.iterdir())
            if path.suffix in SUFFIXES
            and not path.name.startswith(".")  # such as the ._NAME that macOS adds
            and os.path.realpath(path) not in of_strategies
        ]
    )
    if not found:
        raise CheckpointError(
            f"{directory}: holds no parts; they are NAME_0.ckpt, NAME_1.ckpt, ..., or rank_0/NAME.ckpt, ...; name their"
            " directory"
        )
    if (last := max(found)) >= plan.world:
        raise CheckpointError(
            f"{found[last]}: is part {last}, and the strategy is of {plan.world} parts, counted from 0; name the"
            " strategy file of this release"
        )
    if missing := [str(rank) for rank in range(plan.world) if rank not in found]:
        raise CheckpointError(
            f"{directory}: part {_some(missing)} is missing; all {plan.world} are needed; unpack or download again"
        )
    return dict(sorted(found.items()))


def _numbered(paths: list[Path]) -> dict[int, Path]:
    """Files NAME_<N>.ckpt by their number.

    Raises:
        CheckpointError: they have several names, or a number twice or none.
    """
    found: dict[int, Path] = {}
    first_name = ""
    for path in paths:
        match = _NUMBERED.fullmatch(path.stem)
        if not match:
            raise CheckpointError(
                f"{path}: has no number; the parts of a release are NAME_0{path.suffix}, NAME_1{path.suffix}, ...; move"
                " it elsewhere"
            )
        name, rank = match[1], int(match[2])
        if found and name != first_name:
            raise CheckpointError(
                f"{path.parent}: holds {next(iter(found.values())).name} and {path.name}; the parts of one release have"
                " one name and a number; move those of other releases elsewhere"
            )
        if rank in found:
            raise CheckpointError(
                f"{path.parent}: {found[rank].name} and {path.name} are both part {rank}; must be one file; remove the"
                " wrong one"
            )
        first_name, found[rank] = name, path
    return found


def table_files(directory: Path, naming: Format, required: bool) -> dict[str, Path]:
    """The .npy files of a directory that hold whole tensors, by canonical name.

    Raises:
        CheckpointError: two files are of the same tensor; or there is none and `required` is set.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(directory).glob("*.npy")):
        name = next((name for end, name in naming.npy_files if path.name.endswith(end)), None)
        if name is None:
            continue
        if name in found:
            raise CheckpointError(
                f"{directory}: {found[name].name} and {path.name} are both the {name}; must be one; move the other one"
                " elsewhere"
            )
        found[name] = path
    if required and not found:
        ends = ", ".join(f"*{end}" for end, _ in naming.npy_files) or "none in this format"
        raise CheckpointError(f"{directory}: holds no embeddings; they are {ends}; name their directory")
    return found


def open_table(path: Path) -> Readable:
    """A .npy file's array, which stays on the disk.

    Raises:
        CheckpointError: the file is damaged or holds something else.
    """
    try:
        with files.open_ordinary(path) as file:
            shape, in_columns, dtype = npz_file.read_header(path.name, file)
            if dtype.kind != "f" or dtype.byteorder == ">":
                raise ValueError(f"{dtype} numbers; must be floating-point")
            spec = Spec(require_code(path.name, dtype), shape[::-1] if in_columns else shape)
            start = file.tell()
            if (size := file.seek(0, 2) - start) != spec.nbytes or min(shape, default=0) < 0:
                raise ValueError(f"{size:,} bytes for {dtype} {list(shape)}")
    except npz_file.ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a whole .npy array ({reason}); copy or download it again") from None
    tensor = whole(spec, Location(path, ((start, spec.nbytes),)))
    return tensor.T if in_columns else tensor


class _Names:
    """Canonical names of many files, which mostly have the same names."""

    def __init__(self, naming: Format):
        self._naming = naming
        self._found: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, where: Path, names: Iterable[str]) -> dict[str, str]:
        """Canonical name -> the name found, without those that are not weights."""
        key = tuple(names)
        if key not in self._found:
            self._found[key] = self._naming.canonical_names(str(where), key)
        return self._found[key]


class _Counters:
    """The counters of the first part, which those of all others must equal."""

    def __init__(self) -> None:
        self._first: tuple[Path, dict[str, float | None]] | None = None

    def check(self, path: Path, contents: Contents) -> None:
        """Raise CheckpointError unless a part is of the same step as the first one."""
        found = {name: _scalar(*contents[name]) for name in _COUNTERS if name in contents}
        first_path, first = self._first = self._first or (path, found)
        for name in sorted(found.keys() | first.keys()):
            if found.get(name) != first.get(name):
                raise CheckpointError(
                    f"{path}: {name} is {_said(found.get(name))}, in {first_path.name} {_said(first.get(name))}; all"
                    " parts must be of one step; download those that are of another one again"
                )


def _scalar(spec: Spec, location: Location) -> float | None:
    values = spec.values(np.asarray(location.map(spec))).reshape(-1)
    return float(values[0]) if values.size else None


def _said(value: float | None) -> str:
    return "not there" if value is None else f"{value:g}"


def _require_named(
    path: Path, strategies: list[Path], layouts: Collection[str], names: dict[str, str], tables: dict[str, Path]
) -> None:
    """Raise PlanError if a part holds a weight that the strategy does not name: nothing would say how it was cut."""
    if unnamed := [found for name, found in names.items() if name not in layouts and name not in tables]:
        raise PlanError(
            f"{strategies[0]}: does not name {_some(unnamed)}, which {path} holds ({_depths(layouts, names)}); must be"
            " of the same model; name the strategy file of this release"
        )


def _require_all(where: str, plan: SourcePlan, stored: Stored, tables: dict[str, Path]) -> None:
    """Raise PlanError if the parts lack weights that the strategy names, apart from the tables of .npy files."""
    for layouts in plan.stages.values():
        if absent := [name for name in layouts if name not in stored and name not in tables]:
            raise PlanError(
                f"{where}: the parts lack {_some(absent)}, which the strategy names ({_depths(layouts, stored)}); must"
                " be of the same model; name the strategy file of this release, and its --embeddings"
            )


def _depths(layouts: Iterable[str], names: Iterable[str]) -> str:
    """How many blocks the strategy and the parts have, for messages."""
    counts = []
    for found in (layouts, names):
        numbers = [int(match[2]) for name in found if (match := _BLOCK.fullmatch(name))]
        counts.append(max(numbers) + 1 if numbers else 0)
    return f"the strategy has {counts[0]} numbered blocks, the parts have {counts[1]}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
