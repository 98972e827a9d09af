"""From encoded blocks to rows of one length in MindRecord files, split in train and held_out. mindspore is imported
when the first row is written."""

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pangu_ms.core import files
from pangu_ms.core.errors import OutputError
from pangu_ms.data import npz_file
from pangu_ms.data.blocks import load_block

SPLITS = ("train", "held_out")
COLUMN = "input_ids"
_FILE_BYTES = 1 << 28
"""Ids in one file; larger splits get several."""
_BATCH_ROWS = 1024
HEADER_BYTES = 1 << 20
"""MindRecord's part of a file before the rows: where it is damaged, reading ends the process."""
DIGEST_BYTES = 8
"""Of one row: against accidents, which it overlooks once in 2^64; it adds 0.2 % to rows of 1,025 ids."""


@dataclasses.dataclass(frozen=True)
class DocumentTable:
    """What is known of every document, in corpus order: the arrays of `Block` without the ids."""

    tokens: np.ndarray
    sizes: np.ndarray
    keys: np.ndarray
    domains: np.ndarray

    @classmethod
    def of(cls, blocks: list[Path]) -> "DocumentTable":
        """Gather it from committed blocks."""
        columns: dict[str, list[np.ndarray]] = {field.name: [] for field in dataclasses.fields(cls)}
        for path in blocks:
            content = npz_file.read(path, columns)  # only what is asked for, not the ids
            for name, parts in columns.items():
                parts.append(content[name])
        return cls(**{name: np.concatenate(parts) for name, parts in columns.items()})

    def split(self, held_out: float) -> np.ndarray:
        """bool [D]: which documents are held out.

        A document's key decides, so that copies of a text fall on one side and a longer corpus does not move the
        documents it had before. If a share was asked for and no key falls below it, the smallest key is held out, as
        long as another text remains to train on.
        """
        chosen = self.keys.astype(np.float64) < held_out * 2.0**64
        if held_out > 0 and not chosen.any() and len(np.unique(self.keys)) > 1:
            chosen = self.keys == self.keys.min()
        return chosen

    def summary(self, chosen: np.ndarray) -> dict:
        """Counts of some documents, in total and by domain."""
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


def pack_rows(blocks: list[Path], chosen: np.ndarray, row_length: int, pad_id: int) -> Iterator[np.ndarray]:
    """Chosen documents one after the other, cut in rows that do not overlap; the last row is filled with pad (spec A6).

    Args:
        chosen: bool [D], over the documents of all blocks.

    Yields:
        int32 [n, row_length], n >= 1.
    """
    rest, first = np.empty(0, np.int32), 0
    for path in blocks:
        block = load_block(path)
        mask = np.repeat(chosen[first : first + len(block.tokens)], block.tokens)
        first += len(block.tokens)
        stream = np.concatenate([rest, block.ids[mask]])
        whole = len(stream) // row_length * row_length
        if whole:
            yield stream[:whole].reshape(-1, row_length)
        rest = stream[whole:]
    if len(rest):
        yield np.pad(rest, (0, row_length - len(rest)), constant_values=pad_id)[None]


def write_split(directory: Path, split: str, rows: Iterator[np.ndarray], row_length: int) -> dict:
    """Write a split's rows as MindRecord files `SPLIT-00000.mindrecord`, ...

    Returns:
        {"files": names, "rows": number, "digests": name of the file with `row_digests` of all rows, if any}.

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
    """BLAKE2b of each row's little-endian int32 ids, `DIGEST_BYTES` each, one after the other: a row is checked when it
    is read, without a pass of its own."""
    return b"".join(
        hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in np.ascontiguousarray(rows, "<i4")
    )


def _groups(rows: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows in arrays of `size` rows; the last one may be shorter."""
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
    # The defaults make even one row a sparse file of 48 MB. A page holds at least one row; the header lists the pages.
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
        written.chmod(0o644)  # MindRecord makes them 0600: nobody else on the cluster could train on them
