"""Packs encoded blocks into rows of one length and writes them as MindRecord files, split in train and held_out.

mindspore is imported when the first row is written.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pangu_ms.core import files
from pangu_ms.core.errors import OutputError
from pangu_ms.data import npz_file
from pangu_ms.data.blocks import load_block

SPLITS = ("train", "held_out")
COLUMN = "input_ids"
_FILE_BYTES = 1 << 28
"""Bytes of ids in one file; a larger split gets several files."""
_BATCH_ROWS = 1024  # rows per call of MindRecord's writer
HEADER_BYTES = 1 << 20
"""Bytes of MindRecord's header, which precedes the rows. The manifest holds its hash, because MindSpore aborts the
process when it reads a damaged header."""
DIGEST_BYTES = 8
"""Bytes of a row's digest. It detects accidents, of which it misses one in 2^64, but not forgeries. It adds 0.2 % to
rows of 1,025 ids."""


@dataclasses.dataclass(frozen=True)
class DocumentTable:
    """The arrays of `Block` without the ids, for all D documents of a corpus in order.

    Attributes:
        block_ends: int64 [blocks], number of documents in each block and those before it.
    """

    tokens: np.ndarray
    sizes: np.ndarray
    keys: np.ndarray
    domains: np.ndarray
    block_ends: np.ndarray

    @classmethod
    def of(cls, blocks: list[Path]) -> "DocumentTable":
        """Gather the table from committed blocks."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("tokens", "sizes", "keys", "domains")}
        for path in blocks:
            content = npz_file.read(path, columns)  # the ids stay on the disk
            for name, parts in columns.items():
                parts.append(content[name])
        sizes = [len(part) for part in columns["tokens"]]
        return cls(**{name: np.concatenate(parts) for name, parts in columns.items()}, block_ends=np.cumsum(sizes))

    def split(self, held_out: float) -> np.ndarray:
        """Which documents are held out for evaluation: bool [D].

        The key of a document decides. So copies of a text are in the same split, and a document stays in its split when
        the corpus grows. If `held_out` is above 0 and no key of a domain falls below it, the documents with the
        domain's smallest key are held out, as long as another text of the domain remains to train on.

        Args:
            held_out: share of the documents, in [0, 1).
        """
        chosen = self.keys.astype(np.float64) < held_out * 2.0**64
        smallest = []
        for domain in np.unique(self.domains):
            members = self.domains == domain
            keys = self.keys[members]
            if held_out > 0 and not chosen[members].any() and len(np.unique(keys)) > 1:
                smallest.append(keys.min())
        return chosen | np.isin(self.keys, np.array(smallest, self.keys.dtype))

    def summary(self, chosen: np.ndarray) -> dict:
        """Count the chosen documents, their tokens and bytes, in total and by domain."""
        domains = {}
        for domain in sorted(set(self.domains[chosen].tolist())):
            members = chosen & (self.domains == domain)
            domains[domain] = {
                "documents": int(members.sum()),
                "tokens": int(self.tokens[members].sum()),
                "bytes": int(self.sizes[members].sum()),
            }
        return {
            "documents": int(chosen.sum()),
            "tokens": int(self.tokens[chosen].sum()),
            "bytes": int(self.sizes[chosen].sum()),
            "domains": domains,
        }


def pack_rows(
    blocks: list[Path], block_ends: np.ndarray, chosen: np.ndarray, row_length: int, pad_id: int
) -> Iterator[np.ndarray]:
    """Join documents and cut them into rows that do not overlap; the last row is filled up with pad (spec A6).

    Args:
        blocks: files of all blocks, in corpus order.
        block_ends: as in `DocumentTable`.
        chosen: bool [D], which documents of all blocks to take.
        row_length: ids in a row.
        pad_id: the padding id.

    Yields:
        int32 [n, row_length], n >= 1.
    """
    rest = np.empty(0, np.int32)
    for path, own in zip(blocks, np.split(chosen, block_ends[:-1])):
        if not own.any():
            continue  # without reading it: there is a pass over the blocks for each domain
        block = load_block(path)
        mask = np.repeat(own, block.tokens)
        stream = np.concatenate([rest, block.ids[mask]])
        whole = len(stream) // row_length * row_length
        if whole:
            yield stream[:whole].reshape(-1, row_length)
        rest = stream[whole:]
    if len(rest):
        yield np.pad(rest, (0, row_length - len(rest)), constant_values=pad_id)[None]


class RowsByDomain:
    """The rows of a split, domain by domain in the order of their names, so that each domain's rows are contiguous.

    Attributes:
        ranges: by domain, {"first_row": number of its first row, "rows": how many it has}; complete when all rows have
            been read.
    """

    def __init__(self, blocks: list[Path], table: DocumentTable, chosen: np.ndarray, row_length: int, pad_id: int):
        """Nothing is read yet.

        Args:
            blocks: files of all blocks, in corpus order.
            table: their documents.
            chosen, row_length, pad_id: as in `pack_rows`.
        """
        self.ranges: dict[str, dict[str, int]] = {}
        self._blocks, self._table, self._chosen = blocks, table, chosen
        self._form = row_length, pad_id

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield int32 [n, row_length], n >= 1."""
        table, total = self._table, 0
        for domain in np.unique(table.domains[self._chosen]).tolist():
            self.ranges[domain] = {"first_row": total, "rows": 0}
            members = self._chosen & (table.domains == domain)
            for rows in pack_rows(self._blocks, table.block_ends, members, *self._form):
                self.ranges[domain]["rows"] += len(rows)
                total += len(rows)
                yield rows


def write_split(directory: Path, split: str, rows: Iterable[np.ndarray], row_length: int) -> dict:
    """Write the rows of a split as MindRecord files SPLIT-00000.mindrecord, SPLIT-00001.mindrecord and so on.

    Returns:
        {"files": their names, "rows": number of rows, "digests": name of the file with the `row_digests` of all rows}.
        "digests" is left out where there are no rows.

    Raises:
        OutputError: the disk is full.
    """
    names: list[str] = []
    digests: list[bytes] = []
    total = 0
    for group in _groups(rows, max(1, _FILE_BYTES // (4 * row_length))):
        names.append(f"{split}-{len(names):05d}.mindrecord")
        total += len(group)
        digests.append(row_digests(group))
        _write_file(directory / names[-1], group)
    if not total:
        return {"files": names, "rows": total}
    (directory / f"{split}.digests").write_bytes(b"".join(digests))
    return {"files": names, "rows": total, "digests": f"{split}.digests"}


def header_digest(path: Path) -> str:
    """Hex SHA-256 of a MindRecord file's header."""
    with files.open_ordinary(path) as file:
        return hashlib.sha256(file.read(HEADER_BYTES)).hexdigest()


def row_digests(rows: np.ndarray) -> bytes:
    """BLAKE2b of each row's little-endian int32 ids, `DIGEST_BYTES` each, one after the other.

    With a digest for each row, rows are checked as they are read, and no separate pass over the files is needed.
    """
    ids = np.ascontiguousarray(rows, "<i4")
    return b"".join([hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in ids])


def _groups(rows: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Regroup rows into arrays of `size` rows; the last array may be shorter."""
    held, count = [], 0
    for batch in rows:
        held.append(batch)
        count += len(batch)
        while count >= size:
            joined = np.concatenate(held)
            yield joined[:size]
            held, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(held)


def _write_file(path: Path, rows: np.ndarray) -> None:
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path), shard_num=1)
    # With MindRecord's default sizes even one row makes a sparse file of 48 MB. A page must hold at least one row, and
    # the header must have room for the list of pages.
    writer.set_page_size(max(1 << 20, 1 << (8 * rows.shape[1]).bit_length()))
    writer.set_header_size(HEADER_BYTES)
    writer.add_schema({COLUMN: {"type": "int32", "shape": [-1]}}, "token ids")
    try:
        for start in range(0, len(rows), _BATCH_ROWS):
            writer.write_raw_data([{COLUMN: row} for row in rows[start : start + _BATCH_ROWS]])
        writer.commit()
    except RuntimeError as error:
        if shutil.disk_usage(path.parent).free < rows.nbytes + (1 << 26) or "disk" in str(error):
            raise OutputError(
                f"{path}: no space left on the disk; the encoded blocks are kept; free some room and repeat the command"
            ) from error
        raise
    for written in (path, path.with_name(path.name + ".db")):
        written.chmod(0o644)  # MindRecord creates them with 0600, so that other users of a cluster could not read them
