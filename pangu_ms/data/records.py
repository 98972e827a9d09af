"""Reads rows of token ids from MindRecord files, both those of `pangu data prepare` and official ones. mindspore is
imported when rows are read.

Legend: N rows, S sequence length.
"""

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.data.corpus import UNKNOWN_DOMAIN
from pangu_ms.data.pack import COLUMN, DIGEST_BYTES, SPLITS, header_digest, row_digests
from pangu_ms.data.prepare import FORMAT, MANIFEST
from pangu_ms.data.tokenizer import Tokenizer, require_vocabulary
from pangu_ms.models.common.config import ModelConfig

_T = TypeVar("_T")
RELEASED_PAD = 6
"""Id of padding and end of document in the released vocabulary (spec A5)."""

_DAMAGED = (
    "the files were damaged or changed (`pangu data inspect --verify` names which); restore them or prepare again"
)


class RecordSet:
    """One split of a data set. The rows stay on the disk; `read_rows` reads some of them.

    Attributes:
        source: the path or pattern that the user gave, for error messages.
        files: the MindRecord files, in order.
        manifest: the manifest of a directory that `prepare` wrote; None for official files.
        num_rows: N.
        row_length: ids in a row: S + 1, or S in official evaluation records.
        seq_length: row_length - 1, the number of input tokens of the model.
        vocab_size: every id must be below it; None for official files until `check` is called.
        domains: the rows of each domain. Official files, and records of an earlier version that mix domains in a row,
            are one domain of the name UNKNOWN_DOMAIN.
    """

    def __init__(
        self,
        source: str,
        paths: list[Path],
        manifest: dict | None = None,
        digests: np.ndarray | None = None,
        split: str = "train",
    ) -> None:
        self.source, self.files, self.manifest, self._digests = source, paths, manifest, digests
        self.vocab_size: int | None = manifest["vocab_size"] if manifest else None
        self.num_rows = self._read_or_raise(lambda: self._dataset(shuffle=False).get_dataset_size())
        if self.num_rows < 1:
            raise DataError(
                f"{source}: has no rows; training and evaluation need some; prepare it again from more text"
            )
        if digests is not None and len(digests) != self.num_rows:
            raise DataError(
                f"{source}: has {self.num_rows} rows and {len(digests)} digests of rows; must be as many; {_DAMAGED}"
            )
        ranges = _ranges(manifest["splits"][split]) if manifest else {}
        self.domains = ranges or {UNKNOWN_DOMAIN: range(self.num_rows)}
        self._domain_starts = np.array([rows.start for rows in self.domains.values()])
        self.row_length = len(self.read_rows([0])[0])
        self.seq_length = self.row_length - 1

    @classmethod
    def open(cls, source: str | Path | Sequence[str | Path], split: str = "train") -> "RecordSet":
        """Open a directory of `prepare`, or official MindRecord files.

        Args:
            source: a directory; for official files also a pattern or a list. The files of a directory or pattern are
                sorted by name; a list keeps its order.
            split: one of SPLITS. Official files have no splits: they are opened as "train".

        Raises:
            DataError: there is no such data set or split, or a file is damaged or of another kind.
        """
        directory, paths, manifest = _find_split(source, split)
        if manifest is None or directory is None:
            return cls(str(source), paths)
        # MindRecord trusts its index files without checking them. They are small, so they are hashed at every start.
        for index in (path.with_name(f"{path.name}.db") for path in paths):
            if index.is_file() and files.sha256_file(index) != manifest["files"].get(index.name):
                raise DataError(f"{index}: its SHA-256 differs from the manifest's; {_DAMAGED}")
        _require_headers(paths, manifest.get("headers", {}))
        return cls(str(directory), paths, manifest, _load_digests(directory, manifest["splits"][split]), split)

    @staticmethod
    def require_declared(source: str | Path, split: str, model: ModelConfig, evaluation: bool = False) -> list[str]:
        """Check the names and the manifest as `open` and `check` do, but without mindspore and without reading rows.

        A command calls this first, so that a mistake is found before `import mindspore`, which takes seconds.

        Returns:
            Names of the domains that the records have.

        Raises:
            DataError: for the same reasons as in `open` and `check`.
        """
        _, _, manifest = _find_split(source, split)
        if not manifest:
            return [UNKNOWN_DOMAIN]
        _require_fit(str(source), manifest["seq_length"] + 1, manifest, model, evaluation)
        return list(_ranges(manifest["splits"][split])) or [UNKNOWN_DOMAIN]

    @property
    def domain_names(self) -> list[str]:
        """Names of the domains, in the order of their rows."""
        return list(self.domains)

    def domain_of(self, rows: np.ndarray) -> np.ndarray:
        """The domains of rows, as indices of `domain_names`: int64, the shape of `rows`."""
        return np.searchsorted(self._domain_starts, rows, side="right") - 1

    @property
    def eod_id(self) -> int:
        """End-of-document id; for official files 6, as in the released vocabulary (spec A5)."""
        return self.manifest["eod_id"] if self.manifest else RELEASED_PAD

    @property
    def pad_id(self) -> int:
        """Padding id; for official files 6, as in the released vocabulary (spec A5)."""
        return self.manifest["pad_id"] if self.manifest else RELEASED_PAD

    @property
    def directory(self) -> Path | None:
        """The directory that `prepare` wrote; None for official files."""
        return self.files[0].parent if self.manifest else None

    def has_split(self, split: str) -> bool:
        """Whether the data set has rows of a split; False for official files."""
        return bool(self.manifest and self.manifest["splits"][split]["files"])

    def check(self, model: ModelConfig, tokenizer: Tokenizer | None = None, evaluation: bool = False) -> None:
        """Check that the records fit a model, and a tokenizer if one is given.

        Args:
            model: only its vocab_size and seq_length are used.
            tokenizer: the model's tokenizer.
            evaluation: also accept rows of seq_length ids, as official evaluation records have (spec A6).

        Raises:
            DataError: lengths or vocabularies differ.
        """
        _require_fit(self.source, self.row_length, self.manifest, model, evaluation)
        if tokenizer:
            require_vocabulary(tokenizer, model.vocab_size)
            self.require_tokenizer(tokenizer)
        self.vocab_size = model.vocab_size

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise DataError unless `tokenizer` made the rows. Official files do not name theirs and always pass."""
        if not self.manifest or tokenizer.made(self.manifest["tokenizer"], self.source):
            return
        was, here = self.manifest.get("segmenter_version", {}), tokenizer.segmenter_version
        if was and here and was != here:
            raise DataError(
                f"{self.source}: cut into words by {_shown(was)}, here is {_shown(here)}: must be the same; "
                f"pip install jieba=={was['jieba']}, or prepare again"
            )
        raise DataError(
            f"{self.source}: prepared with tokenizer {self.manifest['tokenizer'][:12]}, given"
            f" {tokenizer.fingerprint[:12]}: must be the same; use {self.source}/tokenizer or prepare again"
        )

    def read_rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read rows by number, about 25,000 rows of 1,025 ids a second.

        Args:
            indices: numbers of rows in any order; a number may occur several times.

        Returns:
            int32 [len(indices), row_length], in the order of `indices`.

        Raises:
            DataError: a file is damaged, rows have different lengths, or an id lies outside the vocabulary.
        """
        from mindspore.dataset import SubsetSampler

        # Each row is read once and in ascending order, so that the file is read sequentially.
        wanted, inverse = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        assert len(wanted) and wanted[0] >= 0 and wanted[-1] < self.num_rows, f"rows {wanted} of {self.num_rows}"
        rows = self._stacked(self._dataset(sampler=SubsetSampler(wanted.tolist())))
        self._require_as_written(wanted, rows)
        return rows[inverse]

    def _require_as_written(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        if len(rows) != len(numbers):
            raise DataError(f"{self.source}: {len(rows)} of {len(numbers)} rows can be read; {_DAMAGED}")
        if self._digests is None:
            return
        differs = np.frombuffer(row_digests(rows), self._digests.dtype) != self._digests[numbers]
        if differs.any():
            raise DataError(f"{self.source}: row {numbers[differs][0]} is not as it was written; {_DAMAGED}")

    def rows(self, size: int = 512) -> Iterator[np.ndarray]:
        """All rows in file order, in arrays int32 [<= size, row_length]."""
        for start in range(0, self.num_rows, size):
            yield self.read_rows(np.arange(start, min(start + size, self.num_rows)))

    def _dataset(self, **order: Any) -> Any:
        from mindspore.dataset import MindDataset

        # MindSpore promises the order of SubsetSampler for one worker only.
        return MindDataset([str(path) for path in self.files], columns_list=[COLUMN], num_parallel_workers=1, **order)

    def _stacked(self, dataset: Any) -> np.ndarray:
        """Read all rows of a MindSpore data set into one array, and check their lengths and ids."""
        rows = self._read_or_raise(
            lambda: [row[COLUMN] for row in dataset.create_dict_iterator(num_epochs=1, output_numpy=True)]
        )
        if not rows or any(row.ndim != 1 or row.dtype.kind != "i" for row in rows):
            raise DataError(f"{self.source}: rows cannot be read, or are no rows of whole numbers; {_DAMAGED}")
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            raise DataError(
                f"{self.source}: rows of {min(lengths)} to {max(lengths)} ids; all must have one length; prepare again"
            )
        ids = np.stack(rows).astype(np.int32, copy=False)
        if self.vocab_size and not (0 <= ids.min() and ids.max() < self.vocab_size):
            wrong = ids.max() if ids.max() >= self.vocab_size else ids.min()
            raise DataError(
                f"{self.source}: id {wrong}: must be in [0, {self.vocab_size}); prepare with the model's tokenizer"
            )
        return ids

    def _read_or_raise(self, read: Callable[[], _T]) -> _T:
        """Call `read`, and turn the long C++ error texts of MindRecord into a DataError of one line."""
        try:
            return read()
        except (RuntimeError, ValueError) as error:
            reason = next((line for line in str(error).splitlines() if "[ERROR]" in line), str(error).splitlines()[0])
            raise DataError(
                f"{self.source}: cannot be read as MindRecord with a column {COLUMN} ({reason.strip()}); "
                "every file needs its .db beside it and its own name; restore the files or prepare again"
            ) from error


def _find_split(
    source: str | Path | Sequence[str | Path], split: str
) -> tuple[Path | None, list[Path], dict[str, Any] | None]:
    """Find the files of a split. For a directory that `prepare` wrote, also find the directory and its manifest, else
    None.

    Returns:
        directory, files, manifest.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path and (path / MANIFEST).is_file():
        manifest = load_manifest(path)
        names = manifest["splits"][split]["files"]
        if not names:
            raise DataError(
                f"{path}: split {split} is empty (held_out={manifest['held_out']}); prepare again with a larger"
                " held_out"
            )
        return path, [path / name for name in names], manifest
    paths = _official_files(source)
    if not paths:
        raise DataError(
            f"{source}: no MindRecord file; name a directory written by `pangu data prepare`, or files with an {COLUMN}"
            " column"
        )
    if split != "train":
        raise DataError(
            f"{source}: MindRecord files without {MANIFEST} have no split {split!r}; name the files of that split"
            " themselves"
        )
    return None, paths, None


def _require_fit(
    source: str, row_length: int, manifest: dict[str, Any] | None, model: ModelConfig, evaluation: bool = False
) -> None:
    """Raise DataError unless row length and vocabulary size are those of the model; see `RecordSet.check`."""
    lengths = (model.seq_length + 1, model.seq_length) if evaluation else (model.seq_length + 1,)
    if row_length not in lengths:
        raise DataError(
            f"{source}: rows of {row_length} ids, model.seq_length={model.seq_length}: a row has seq_length + 1 ids; "
            f"set model.seq_length={row_length - 1} or prepare with --seq-length {model.seq_length}"
        )
    if manifest and manifest["vocab_size"] != model.vocab_size:
        raise DataError(
            f"{source}: prepared with {manifest['vocab_size']} pieces, model.vocab_size={model.vocab_size}: must be"
            f" equal; set model.vocab_size={manifest['vocab_size']} or prepare with the model's tokenizer"
        )


def _require_headers(paths: list[Path], digests: dict[str, str]) -> None:
    """Raise DataError if a file's header differs from what was written. An earlier version wrote no digests."""
    for path in paths:
        try:
            wrong = digests and header_digest(path) != digests.get(path.name)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}; {_DAMAGED}") from None
        if wrong:
            raise DataError(f"{path}: its header's SHA-256 differs from the manifest's; {_DAMAGED}")


def _load_digests(directory: Path, split: dict) -> np.ndarray | None:
    """Map the file with the digest of each row of a split; None for records of an earlier version, which have none."""
    if not (name := split.get("digests")):
        return None
    path, size = directory / name, DIGEST_BYTES * split["rows"]
    if not path.is_file() or path.stat().st_size != size or not size:
        raise DataError(f"{path}: must be a file of {DIGEST_BYTES} bytes for each of {split['rows']} rows; {_DAMAGED}")
    return np.memmap(path, f"<u{DIGEST_BYTES}", "r")


_COUNTS = ("documents", "tokens", "bytes")


def _require_valid_manifest(manifest: dict) -> None:
    """Raise KeyError or ValueError unless the manifest has everything that is read later, and names only files of its
    own directory."""
    _require_numbers(manifest, "vocab_size", "pad_id", "eod_id", "seq_length", "empty", "quarantined")
    if not re.fullmatch("[0-9a-f]{64}", str(manifest["tokenizer"])):
        raise ValueError("tokenizer: not a fingerprint")
    version = manifest.get("segmenter_version", {})
    if version and not all(re.fullmatch("[0-9a-zA-Z.+]+", str(version[name])) for name in ("jieba", "dictionary")):
        raise ValueError("segmenter_version: not jieba's version and dictionary")
    _require_numbers(manifest.get("taken", {}))
    for split in (manifest["splits"][name] for name in SPLITS):
        _require_numbers(split, *_COUNTS, "rows", "pad_tokens")
        for counts in split["domains"].values():
            _require_numbers(counts, *_COUNTS)
        _require_ranges(split)
        names = split["files"] + ([split["digests"]] if "digests" in split else [])
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError(f"files {names}: must be names in the directory")
    digests = [*manifest["files"].values(), *manifest.get("headers", {}).values()]
    if not all(isinstance(digest, str) for digest in digests):
        raise ValueError("files: not SHA-256 by name")


def _ranges(split: dict[str, Any]) -> dict[str, range]:
    """The rows of each domain of a split, in the order of the rows.

    An earlier version wrote no ranges, since it packed all documents as one stream. Then all rows are of one domain, if
    the documents are; otherwise the result is empty.
    """
    domains = split["domains"]
    if len(domains) == 1:
        return {name: range(split["rows"]) for name in domains}
    ranges = {
        name: range(own["first_row"], own["first_row"] + own["rows"])
        for name, own in domains.items()
        if "first_row" in own
    }
    return dict(sorted(ranges.items(), key=lambda item: item[1].start))


def _require_ranges(split: dict[str, Any]) -> None:
    """Raise KeyError or ValueError unless the ranges of the domains, if there are any, cover the split's rows."""
    if not any("first_row" in own for own in split["domains"].values()):
        return
    for own in split["domains"].values():
        _require_numbers(own, "first_row", "rows")
    end = 0
    for name, rows in _ranges(split).items():
        if rows.start != end or not rows:
            raise ValueError(f"domain {name!r:.40}: its rows do not follow those of the domain before it")
        end = rows.stop
    if end != split["rows"]:
        raise ValueError(f"domains have {end} rows of {split['rows']}")


def _require_numbers(tree: dict, *names: str) -> None:
    """Raise KeyError or ValueError unless the named values (by default all values) are non-negative integers."""
    wrong = [name for name in names or tree if type(tree[name]) is not int or not 0 <= tree[name] < 1 << 63]
    if wrong:
        raise ValueError(f"{wrong[0]}={tree[wrong[0]]!r:.40}: must be a whole number")


def _shown(version: dict[str, str]) -> str:
    return f"jieba {version['jieba']} with dictionary {version['dictionary'][:12]}"


def load_manifest(directory: Path) -> dict:
    """The manifest of a directory written by `prepare`.

    Raises:
        DataError: there is none, or this version cannot read it.
    """
    path = Path(directory) / MANIFEST
    if not path.exists():
        raise DataError(
            f"{path}: No such file or directory; `pangu data prepare` writes it last; name its output directory"
        )
    try:
        manifest = small_json.read_object(path)
        format_version.require_known(manifest["format"], FORMAT, path, DataError)
        _require_valid_manifest(manifest)
        return manifest
    except DataError:
        raise
    except small_json.Missing as error:
        raise DataError(f"{path}: {error}; `pangu data prepare` writes it last; name its output directory") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, ValueError) else repr(error)
        raise DataError(f"{path}: not a manifest ({reason}); restore it or prepare again") from error


def _official_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The MindRecord files of a directory or pattern, sorted by name, without their .db sidecars (spec A6). A list is
    returned as it is."""
    if not isinstance(source, (str, Path)):
        return [Path(path) for path in source]
    pattern = str(Path(source) / "*") if Path(source).is_dir() else str(source)
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    return [path for path in paths if path.suffix != ".db" and path.with_name(path.name + ".db").exists()]
