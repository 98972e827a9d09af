"""Reads and writes weights in the layout of Megatron-LM: one file for each tensor-parallel part. Merging reads nothing.
No mindspore import.

    DIRECTORY/latest_checkpointed_iteration.txt      a number, or "release"
    DIRECTORY/iter_0001000/mp_rank_00/model_optim_rng.pt
    DIRECTORY/mp_rank_00_model_states.pt             DeepSpeed's form, which CodeGeeX uses

A part holds slices of the matrices: rows of those that heads, feed-forward channels or the vocabulary come out of,
columns of those that they go into. Norms and the biases of the latter are in every part. The position tables are whole
in PanGu-alpha's port, while CodeGeeX slices the query table. Query, key and value are apart in both; other programs
fuse them, in an order that `checkpoint_version` says.

Source: specification A7.4.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.checkpoint import foreign, torch_file
from pangu_ms.checkpoint.lazy import Readable, Slices, Stored
from pangu_ms.checkpoint.pickle_values import Opaque
from pangu_ms.checkpoint.safetensors_file import Spec
from pangu_ms.core import files, small_json
from pangu_ms.core.errors import CheckpointError, ConfigError
from pangu_ms.models.common.config import ModelConfig, ParameterSpec
from pangu_ms.models.common.weights import Format

Say = Callable[[str], None]
TRACKER = "latest_checkpointed_iteration.txt"
SUFFIXES = (*torch_file.SUFFIXES, ".safetensors")
_PART = re.compile(r"mp_rank_(\d+)(?:_(\d+))?(?:_model_states)?")
_ITERATION = re.compile(r"iter_\d+|global_step\d+|release")
_CUT = ("heads", "ffn", "vocab")
"""Logical axes along which parts are slices."""
_FUSED = re.compile(r"(.+)\.(query_key_value|key_value)\.(weight|bias)")
_DEFAULT_MULTIPLE = 128  # Megatron's --make-vocab-size-divisible-by, which it multiplies by the number of parts
_DRIFT = 0.05
"""Largest difference, as a share of the largest value, between copies of one tensor in the parts of one run. They are
updated apart, and some kernels do not add in a fixed order."""


@dataclass(frozen=True)
class _Part:
    """One file."""

    path: Path
    tensors: Stored
    notes: dict[str, Any]
    """What stands beside the weights, such as "iteration"."""

    def note(self, name: str) -> int | float | str | None:
        """A plain value that stands beside the weights; None if there is none."""
        return _plain(self.notes.get(name))

    def argument(self, name: str) -> int | float | str | None:
        """A setting of the run that saved the file; None if it does not say."""
        args = self.notes.get("args")
        state = args.state if isinstance(args, Opaque) else args
        return _plain(state.get(name)) if isinstance(state, dict) else None


def _plain(value: Any) -> int | float | str | None:
    """The value, unless it is one that a message could not show: those may nest without end."""
    return value if isinstance(value, (int, float, str)) else None


def open_weights(path: Path, naming: Format, model: ModelConfig, say: Say) -> tuple[Stored, list[Path]]:
    """The merged tensors of a model by Megatron's names, and the files that they are in. The tensors are not read, but
    for small ones that every part holds, and one to see that parts differ.

    Args:
        path: a file, the directory of the parts, or the directory of a run.
        naming: Megatron's names of the model's family.
        model: the model that was saved.
        say: called with lines that say what was cut off or chosen.

    Raises:
        CheckpointError: a part is missing, damaged or of another save; or the parts are not slices of this model.
    """
    paths = parts_of(Path(path))
    parts = [_taken_apart(_read(file, naming), len(paths), model) for file in paths]
    _require_one_save(parts, model)
    specs, shapes = model.parameters(), model.parameter_shapes()
    wanted = {rule.foreign: (specs[rule.ours], shapes[rule.ours]) for rule in naming.rules(model)}
    _require_all_parts(Path(path), parts, wanted)
    copies: dict[str, list[Readable]] = {}
    merged: Stored = {}
    for name, first in parts[0].tensors.items():
        slices = [part.tensors[name] for part in parts]
        spec, whole = wanted.get(name, (None, ()))  # an unknown name is reported by the strict check of names
        dim = _dim(spec, first, whole) if spec else None
        if dim is None:
            merged[name] = first
            copies |= {name: slices} if spec else {}
        else:
            merged[name] = first if len(parts) == 1 or len(first.shape) != len(whole) else Joined.of(slices, dim)
        if spec and spec.axes[0] == "vocab":
            merged[name] = _without_padding(merged[name], whole, parts[0], say)
    _require_alike(parts, copies, say)
    _require_different(parts, wanted)
    return merged, paths


def write_parts(directory: Path, tensors: Stored, naming: Format, model: ModelConfig, count: int) -> None:
    """Write DIRECTORY/mp_rank_NN/model.safetensors for each of `count` tensor-parallel parts. The word table is padded
    with zeros as Megatron pads it; the position tables are whole in each part, as in PanGu-alpha's port.

    Args:
        directory: must not exist, or be empty.
        tensors: the model's tensors by Megatron's names; each part of one is read when it is written.
        naming: Megatron's names of the model's family.
        model: the model.
        count: how many parts.

    Raises:
        ConfigError: the model cannot be cut into so many parts.
        OutputError: the directory has other content, or the disk is full.
    """
    if count < 1 or model.num_heads % count or model.ffn_hidden_size % count:
        raise ConfigError(
            f"--tensor-parallel {count}: must divide model.num_heads={model.num_heads} and"
            f" model.ffn_hidden_size={model.ffn_hidden_size}; name another number"
        )
    specs = model.parameters()
    axes = {rule.foreign: specs[rule.ours].axes for rule in naming.rules(model)}
    with files.new_directory(directory) as temporary:
        for rank in range(count):
            path = temporary / f"mp_rank_{rank:02d}" / "model.safetensors"
            path.parent.mkdir()
            foreign.write_safetensors(
                path, {name: _slice_of(tensor, axes[name], rank, count) for name, tensor in tensors.items()}
            )


def _slice_of(tensor: Readable, axes: tuple[str, ...], rank: int, count: int) -> Readable:
    """What one part holds of a tensor."""
    dim = next((dim for dim, axis in enumerate(axes) if axis in _CUT), None)
    if dim is None:
        return tensor
    if axes[dim] == "vocab":
        unit = _DEFAULT_MULTIPLE * count
        rows = -(-tensor.shape[0] // unit) * unit
        tensor = Padded(Spec(tensor.spec.code, (rows, *tensor.shape[1:])), tensor)
    size = tensor.shape[dim] // count
    shape = tuple(size if i == dim else n for i, n in enumerate(tensor.shape))
    begin = tuple(rank * size if i == dim else 0 for i in range(len(shape)))
    return Window(Spec(tensor.spec.code, shape), tensor, begin)


def parts_of(path: Path) -> list[Path]:
    """The file of each part, in order.

    Raises:
        CheckpointError: there are none, one is missing, or it is not clear which save is meant.
    """
    if path.suffix == ".zip":
        raise CheckpointError(
            f"{path}: is an archive; only what is in it can be read; unpack it and name the directory"
        )
    if path.is_file():
        return [path]
    directory = _save_of(path)
    found: dict[int, Path] = {}
    for entry in sorted(directory.iterdir()):
        match = _PART.fullmatch(entry.stem if entry.suffix in SUFFIXES else entry.name)
        if not match or not (entry.is_dir() or entry.suffix in SUFFIXES):
            continue
        if int(match[2] or 0):
            raise CheckpointError(
                f"{entry}: is of a second pipeline stage; only tensor-parallel parts are merged; merge the stages with"
                " Megatron's own tool first"
            )
        if int(match[1]) in found:
            raise CheckpointError(
                f"{entry}: is part {int(match[1])}, as is {found[int(match[1])].name}; one is meant; remove the other"
            )
        found[int(match[1])] = entry
    if not found:
        return [_only_file(directory)]
    missing = next(rank for rank in itertools.count() if rank not in found)
    if missing < max(found):
        raise CheckpointError(
            f"{directory}: holds parts {', '.join(map(str, sorted(found)))}, and not {missing}; all are needed; add"
            f" mp_rank_{missing:02d}"
        )
    return [_only_file(found[rank]) if found[rank].is_dir() else found[rank] for rank in sorted(found)]


def _save_of(path: Path) -> Path:
    """The directory of the parts, given this directory or that of a run with one or more saves."""
    tracker = path / TRACKER
    saves = sorted(entry for entry in path.iterdir() if entry.is_dir() and _ITERATION.fullmatch(entry.name))
    if tracker.is_file():
        try:
            text = small_json.read_bytes(tracker, limit=100).decode().strip()
        except ValueError as error:
            raise CheckpointError(
                f"{tracker}: {error}; must be a number or 'release'; name the iter_N directory"
            ) from None
        name = f"iter_{int(text):07d}" if text.isascii() and text.isdigit() else text
        if name != "release" and not text.isdigit():
            raise CheckpointError(f"{tracker}: {text!r:.40}: must be a number or 'release'; name the iter_N directory")
        if path / name in saves:
            return path / name
        if saves:
            raise CheckpointError(
                f"{tracker}: names {name}, which is not there ({', '.join(save.name for save in saves[:5])} are); name"
                " the directory that is meant"
            )
    if len(saves) > 1:
        raise CheckpointError(
            f"{path}: holds {len(saves)} saves ({', '.join(save.name for save in saves[:5])}) and no {TRACKER}; name"
            " one of them"
        )
    return saves[0] if saves else path


def _only_file(directory: Path) -> Path:
    """The one file of weights in a directory."""
    found = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES)
    named = [file for file in found if file.stem == "model_optim_rng"]  # beside it may lie the optimizer's
    if len(chosen := named or found) != 1:
        what = ", ".join(file.name for file in found[:5]) or f"no {', '.join(SUFFIXES)}"
        raise CheckpointError(
            f"{directory}: holds {what}; must be mp_rank_00, mp_rank_01, ... or one file of weights; name another"
        )
    return chosen[0]


def _read(path: Path, naming: Format) -> _Part:
    """One part, as it is."""
    if path.suffix not in torch_file.SUFFIXES:
        tensors, notes = foreign.open_file(path), {}
    else:
        torch_file.verify(path)
        saved = torch_file.load(path)
        if not isinstance(saved, dict):
            raise CheckpointError(f"{path}: holds a {type(saved).__name__}; must be a dictionary; save the state_dict")
        if "model0" in saved:
            raise CheckpointError(
                f"{path}: holds several virtual pipeline stages; only tensor-parallel parts are merged; merge the"
                " stages with Megatron's own tool first"
            )
        inner = [saved[key] for key in ("model", "module") if isinstance(saved.get(key), dict)]
        tensors = torch_file.named(path, inner[0] if inner else saved)
        notes = saved if inner else {}
    names = naming.canonical_names(str(path), tensors)
    return _Part(path, {name: tensors[found] for name, found in names.items()}, notes)


def _taken_apart(part: _Part, num_parts: int, model: ModelConfig) -> _Part:
    """A part with query, key and value as tensors of their own."""
    tensors: Stored = {}
    for name, tensor in part.tensors.items():
        if not (match := _FUSED.fullmatch(name)):
            tensors.setdefault(name, tensor)
            continue
        kinds = match[2].split("_")
        rows = tensor.shape[0] // len(kinds) if tensor.shape else 0
        head = model.hidden_size // model.num_heads
        version = part.note("checkpoint_version")
        turns: dict[int | float | str | None, int] = {0: rows, 1: 1, 2: head, 3: head}
        inner = turns.get(version)  # so many rows of one, then so many of the next
        if inner is None:
            raise CheckpointError(
                f"{part.path}: has {name}, and checkpoint_version {version!r:.20}, which"
                " says in what order its rows are; must be 0, 1, 2 or 3; add it to the dictionary and save it again"
                " (Megatron takes 0 if it is missing)"
            )
        if rows != model.hidden_size // num_parts or rows % head or tensor.shape[0] != rows * len(kinds):
            raise CheckpointError(
                f"{part.path}: {name} is {list(tensor.shape)} in each of {num_parts} parts; must be {len(kinds)} x"
                f" {model.num_heads} heads x {head} rows in all; use the configuration of these weights"
            )
        for index, kind in enumerate(kinds):
            one = f"{match[1]}.{kind}.{match[3]}"
            if one in part.tensors:
                raise CheckpointError(f"{part.path}: holds {one} and {name}; one is meant; remove the other")
            spec = Spec(tensor.spec.code, (rows, *tensor.shape[1:]))
            tensors[one] = Fused(spec, tensor, len(kinds), index, inner)
    return _Part(part.path, tensors, part.notes)


def _require_one_save(parts: Sequence[_Part], model: ModelConfig) -> None:
    """Refuse parts of different iterations, or with other names or dtypes than the first, and a model with another
    number of heads."""
    first = parts[0]
    for part in parts[1:]:
        for note in ("iteration", "checkpoint_version"):
            if part.note(note) != first.note(note):
                raise CheckpointError(
                    f"{part.path}: has {note} {part.note(note)!r:.20}, {first.path} has {first.note(note)!r:.20}; all"
                    " parts must be of one save; name the directory of one"
                )
        for one, other in ((first, part), (part, first)):
            if missing := [name for name in one.tensors if name not in other.tensors]:
                raise CheckpointError(
                    f"{other.path}: lacks {missing[0]}, which {one.path} has; all parts must be of one save; name the"
                    " directory of one"
                )
        for name, tensor in part.tensors.items():
            here, there = tensor.spec, first.tensors[name].spec
            if here.code != there.code or here.shape != there.shape:
                raise CheckpointError(
                    f"{part.path}: has {name} as {here.dtype_name} {list(here.shape)}, {first.path} as"
                    f" {there.dtype_name} {list(there.shape)}; parts must be of one size; name the directory of one"
                    " save"
                )
    heads, width = first.argument("num_attention_heads"), first.argument("hidden_size")
    # With another width it is another model, which the strict check of shapes says.
    if isinstance(heads, int) and heads != model.num_heads and width in (None, model.hidden_size):
        raise CheckpointError(
            f"{first.path}: was trained with num_attention_heads={heads}, the configuration has"
            f" model.num_heads={model.num_heads}; must be equal; use model.num_heads={heads}"
        )


def _dim(spec: ParameterSpec, part: Readable, whole: tuple[int, ...]) -> int | None:
    """The dimension along which the parts of a tensor are slices; None if each part holds it whole."""
    if spec.axes[0] == "position":
        return None if part.shape == whole else 0
    return next((dim for dim, axis in enumerate(spec.axes) if axis in _CUT), None)


def _require_all_parts(path: Path, parts: Sequence[_Part], wanted: Mapping[str, Any]) -> None:
    """Refuse a number of parts that is not the number that the model was cut into."""
    for name, (spec, whole) in wanted.items():
        if "ffn" not in spec.axes or len(spec.axes) < 2 or name not in parts[0].tensors:
            continue
        dim, shape = spec.axes.index("ffn"), parts[0].tensors[name].shape
        if len(shape) != len(whole) or not shape[dim] or whole[dim] % shape[dim]:
            continue
        if shape[:dim] + shape[dim + 1 :] == whole[:dim] + whole[dim + 1 :] and whole[dim] != shape[dim] * len(parts):
            number = whole[dim] // shape[dim]
            raise CheckpointError(
                f"{path}: {name} has {shape[dim]:,} of {whole[dim]:,} {'columns' if dim else 'rows'} in each part, so"
                f" that {number} make a model, and {len(parts)} are there; all parts of one save are needed, each once;"
                " name the directory that holds them"
            )


def _without_padding(words: Readable, whole: tuple[int, ...], part: _Part, say: Say) -> Readable:
    """The word table without the rows that Megatron pads it with, if that is what it has more of."""
    rows, size = words.shape[0], whole[0]
    unit = part.argument("make_vocab_size_divisible_by")
    multiples = [(unit if type(unit) is int and unit > 0 else _DEFAULT_MULTIPLE) << power for power in range(8)]
    fitting = [multiple for multiple in multiples if rows == -(-size // multiple) * multiple]
    if rows <= size or not fitting:
        return words
    say(f"word table: {rows:,} rows cut to {size:,}; the others pad it to a multiple of {fitting[0]}, as Megatron does")
    return Window(Spec(words.spec.code, (size, *words.shape[1:])), words, (0,) * len(words.shape))


def _require_alike(parts: Sequence[_Part], copies: Mapping[str, Sequence[Readable]], say: Say) -> None:
    """Refuse parts whose copies of a tensor are not those of one model."""
    drifted = set()
    for name, tensors in copies.items():
        first = tensors[0].values() if len(parts) > 1 else np.empty(0)
        for part, tensor in zip(parts[1:], tensors[1:]):
            other = tensor.values()
            if np.array_equal(first, other):
                continue
            difference = float(np.abs(first.astype(np.float64) - other).max())
            if not difference <= _DRIFT * float(np.abs(first).max()):
                raise CheckpointError(
                    f"{part.path}: its {name} differs from that of {parts[0].path} by {difference:.2g}; every part of"
                    " a save holds the same one; name the directory of one save"
                )
            drifted.add(name)
    if drifted:
        say(
            f"{len(drifted)} tensors that every part holds differ slightly, as training lets them; the first part's are"
            " used"
        )


def _require_different(parts: Sequence[_Part], wanted: Mapping[str, Any]) -> None:
    """Refuse a part that is a copy of another one."""
    names = [name for name, (spec, _) in wanted.items() if spec.axes[0] == "ffn" and len(spec.axes) > 1]
    if (name := names[-1]) not in parts[0].tensors:
        return
    rows: list[np.ndarray] = []
    for part in parts:
        tensor = part.tensors[name]
        row = tensor.read((slice(0, 1), *tensor.all[1:]))
        for other, same in zip(parts, rows):
            if row.any() and np.array_equal(row, same):
                raise CheckpointError(
                    f"{part.path}: holds the slice of {name} that {other.path} holds; each part has its own; copy the"
                    " right part there"
                )
        rows.append(row)


@dataclass(frozen=True)
class Joined(Readable):
    """Tensors of one shape, one behind the other along a dimension."""

    parts: tuple[Readable, ...]
    dim: int

    @classmethod
    def of(cls, parts: Sequence[Readable], dim: int) -> "Joined":
        """Join tensors of one shape and dtype."""
        shape = list(parts[0].shape)
        shape[dim] *= len(parts)
        return cls(Spec(parts[0].spec.code, tuple(shape)), tuple(parts), dim)

    @property
    def num_slices(self) -> int:
        """See Readable."""
        return len(self.parts)

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        along, size = wanted[self.dim], self.parts[0].shape[self.dim]
        pieces = []
        for index in range(along.start // size, -(-along.stop // size)):
            low, high = max(along.start - index * size, 0), min(along.stop - index * size, size)
            here = (*wanted[: self.dim], slice(low, high), *wanted[self.dim + 1 :])
            pieces.append(self.parts[index].read(here))
        return np.concatenate(pieces, self.dim)


@dataclass(frozen=True)
class Window(Readable):
    """A stretch of a tensor along each dimension."""

    base: Readable
    begin: tuple[int, ...]
    """Where it begins."""

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        return self.base.read(tuple(slice(s.start + n, s.stop + n) for s, n in zip(wanted, self.begin)))


@dataclass(frozen=True)
class Padded(Readable):
    """A matrix with rows of zeros behind its own."""

    base: Readable

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable."""
        rows, columns = wanted
        made = np.zeros((rows.stop - rows.start, columns.stop - columns.start), self.spec.dtype)
        if own := max(min(rows.stop, self.base.shape[0]) - rows.start, 0):
            made[:own] = self.base.read((slice(rows.start, rows.start + own), columns))
        return made


@dataclass(frozen=True)
class Fused(Readable):
    """One of several tensors whose rows take turns in another one, `inner` rows at a time."""

    base: Readable
    count: int
    """How many tensors take turns."""
    index: int
    """Which of them this is."""
    inner: int

    def read(self, wanted: Slices) -> np.ndarray:
        """See Readable. Reads the rows of the others in between, too."""
        turn, within = np.divmod(np.arange(wanted[0].start, wanted[0].stop), self.inner)
        rows = (turn * self.count + self.index) * self.inner + within
        return self.base.read((slice(int(rows[0]), int(rows[-1]) + 1), *wanted[1:]))[rows - rows[0]]
