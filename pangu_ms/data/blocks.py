"""Encodes a corpus block by block, in several processes.

Each block is committed on its own: a run that was interrupted encodes only the blocks that are missing.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

import numpy as np

from pangu_ms.core import files, small_json
from pangu_ms.core.errors import DataError, OutputError, UserError
from pangu_ms.data.corpus import Corpus, Document
from pangu_ms.data.npz_file import read_npz
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.data.workers import WorkerDied, Workers

_log = logging.getLogger(__name__)
_SMALLEST, _LARGEST, _BLOCKS = 1 << 16, 1 << 23, 256
"""Smallest and largest block in bytes, and the number of blocks aimed at: a block is about 1/256 of the corpus, but at
least 64 KiB and at most 8 MiB of text. So there are enough blocks to keep all processes busy to the end, and few enough
files for one directory."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Encoded documents of one block, T tokens in D documents.

    Attributes:
        ids: int32 [T], every document followed by eod.
        tokens: int64 [D], number of tokens of each document, its eod included.
        sizes: int64 [D], length of each text in UTF-8 bytes.
        keys: uint64 [D], the first 8 bytes of the text's SHA-256; equal texts have equal keys.
        domains: str [D], domain of each document.
    """

    ids: np.ndarray
    tokens: np.ndarray
    sizes: np.ndarray
    keys: np.ndarray
    domains: np.ndarray

    def to_bytes(self) -> bytes:
        """Encode the block as the content of an .npz file."""
        content = io.BytesIO()
        np.savez(content, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        return content.getvalue()


def encode_documents(tokenizer: Tokenizer, documents: list[Document]) -> Block:
    """Encode documents. Each document begins with the tokenizer's `first_ids`, if there are any, and ends with eod."""
    texts = [document.text for document in documents]
    encoded = [[*tokenizer.first_ids, *ids] for ids in tokenizer.encode_batch(texts)]
    raw = [text.encode() for text in texts]
    tokens = np.array([len(ids) + 1 for ids in encoded], np.int64)
    flat = np.full(tokens.sum(), tokenizer.eod_id, np.int32)
    start = 0
    for ids in encoded:
        flat[start : start + len(ids)] = ids
        start += len(ids) + 1
    keys = np.array([int.from_bytes(hashlib.sha256(text).digest()[:8], "big") for text in raw], np.uint64)
    return Block(
        flat,
        tokens,
        np.array([len(text) for text in raw], np.int64),
        keys,
        np.array([document.domain for document in documents]),
    )


def load_block(path: Path) -> Block:
    """Read a committed block.

    Raises:
        DataError: the block is damaged.
    """
    advice = "run the same command again"
    fields, _ = read_npz(path, [field.name for field in dataclasses.fields(Block)], advice)
    found = Block(**fields)
    if not _has_form(found):
        raise DataError(f"{path}: its columns are not those of documents; {advice}")
    return found


def _has_form(block: Block) -> bool:
    """Whether the arrays have the dtypes and lengths that `Block` describes."""
    columns = [block.tokens, block.sizes, block.keys, block.domains]
    arrays = [block.ids, *columns]
    if not all(isinstance(array, np.ndarray) and array.ndim == 1 for array in arrays):
        return False
    if [array.dtype.kind for array in arrays] != ["i", "i", "i", "u", "U"]:
        return False
    lengths_agree = all(len(column) == len(block.tokens) for column in columns)
    return lengths_agree and bool((block.tokens > 0).all()) and block.tokens.sum() == len(block.ids)


@contextlib.contextmanager
def work_directory(output: Path, key: str) -> Iterator[Path]:
    """`OUTPUT.partial`, the directory for the blocks of a run, locked by this process.

    The directory is removed when the run succeeds, and when the corpus turns out to be unusable. After any other
    failure it stays, so that the same command can resume from its blocks.

    Args:
        output: the directory that the run will write.
        key: hash of everything that the blocks depend on.

    Raises:
        OutputError: the directory belongs to a run with another key, or another process is working in it.
    """
    work = output.with_name(f"{output.name}.partial")
    with files.writing(work):
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = (
                    f"{work}: another `pangu data prepare` is writing it; one at a time; wait for it or name another"
                    " --output"
                )
                raise OutputError(message) from error
            _require_key(work, key)
            # A run that was killed while it packed rows leaves such a directory. It is safe to remove: this process
            # holds the lock, so no other process is packing.
            for left in output.parent.glob(f".{output.name}.????????.tmp"):
                shutil.rmtree(left)
            try:
                yield work
            except DataError:
                shutil.rmtree(work)  # a corrected corpus has another key, so these blocks could never be used
                raise
            shutil.rmtree(work)


def _require_key(work: Path, key: str) -> None:
    """Raise OutputError if `work` belongs to a run with another key; claim it if it belongs to none."""
    path = work / "key.json"
    try:
        found = small_json.read_object(path, form={"key": str})["key"]
    except ValueError as error:
        if not isinstance(error, small_json.Missing):
            _log.warning(
                "%s: is damaged (%s), as a crash may leave it; nothing tells what its blocks were made of, so all are"
                " made anew",
                path,
                error,
            )
        for block in work.glob("block-*.npz"):
            block.unlink()
        files.write_json(path, {"key": key})
        return
    if found != key:
        raise OutputError(
            f"{work}: holds an interrupted run with another corpus, tokenizer or split_paragraphs; it can only be"
            " finished with the same; repeat that command, remove the directory or name another --output"
        )


def encode_corpus(
    corpus: Corpus,
    tokenizer_path: Path,
    work: Path,
    num_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Encode the blocks that `work` does not hold yet.

    Args:
        corpus: the documents.
        tokenizer_path: tokenizer that each worker process loads.
        work: directory of the blocks.
        num_workers: processes.
        progress: called after each block with the number of corpus bytes (on disk) that it covers, and its number of
            tokens.

    Returns:
        The files of all blocks, in corpus order.

    Raises:
        DataError: the corpus cannot be read.
        UserError: a worker process died.
        OutputError: the disk is full.
    """
    blocks: list[Path] = []
    pending: dict[Future, int] = {}
    report = progress or (lambda size, tokens: None)
    try:
        with Workers(num_workers, _start_worker, str(tokenizer_path)) as workers:
            for number, (documents, size) in enumerate(_document_groups(corpus)):
                path = work / f"block-{number:06d}.npz"
                blocks.append(path)
                if (block := _finished(path)) is not None:
                    report(size, int(block.tokens.sum()))
                    continue
                while len(pending) > 2 * num_workers:  # this bounds the text in memory
                    _finish_some(pending, report)
                pending[workers.submit(_encode_block, documents, path)] = size
            while pending:
                _finish_some(pending, report)
    except WorkerDied as error:
        raise UserError(
            f"{work}: a worker process died, perhaps for lack of memory; finished blocks are kept; repeat with a"
            " smaller --num-workers"
        ) from error
    return blocks


def _finished(path: Path) -> Block | None:
    """The block that an earlier run committed; None if there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        return load_block(path)
    except DataError as error:
        _log.warning("%s; it is made anew", str(error).partition("; ")[0])
        return None


def _finish_some(pending: dict[Future, int], report: Callable[[int, int], None]) -> None:
    """Wait until at least one block is encoded, and report all blocks that are.

    Waiting for the oldest block instead could hide for a long time that the worker of another block has died.
    """
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in [future for future in pending if future in done]:
        report(pending.pop(future), future.result())


def _document_groups(corpus: Corpus) -> Iterator[tuple[list[Document], int]]:
    """Yield the documents of each block, and the number of bytes on disk that they were read from.

    The boundaries of the blocks depend on the corpus alone, so that a repeated run finds its blocks again.
    """
    limit = min(max(corpus.size // _BLOCKS, _SMALLEST), _LARGEST)
    documents: list[Document] = []
    size = before = 0
    for document in corpus:
        documents.append(document)
        size += len(document.text.encode())
        if size >= limit:
            yield documents, corpus.position - before
            documents, size, before = [], 0, corpus.position
    if documents:
        yield documents, corpus.position - before


_tokenizer: Tokenizer | None = None
"""The tokenizer of a worker process. It is kept from block to block, since loading it takes half a second."""


def _start_worker(tokenizer_path: str) -> None:
    global _tokenizer
    _tokenizer = Tokenizer.load(tokenizer_path)


def _encode_block(documents: list[Document], path: Path) -> int:
    assert _tokenizer, "the pool calls _start_worker first"
    block = encode_documents(_tokenizer, documents)
    files.write_bytes(path, block.to_bytes())
    return len(block.ids)
