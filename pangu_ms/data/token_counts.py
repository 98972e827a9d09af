"""Counts how often the pieces of a tokenizer occur in a corpus or in records, and measures the tokenizer's compression
of text. mindspore is imported when records are read.

Padding and ends of documents are not counted, so a corpus and the records prepared from it have the same counts.

Legend: V pieces.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pangu_ms.core import files, format_version, small_json
from pangu_ms.core.errors import DataError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.blocks import encode_corpus, load_block
from pangu_ms.data.corpus import Corpus
from pangu_ms.data.pack import SPLITS
from pangu_ms.data.records import RecordSet
from pangu_ms.data.tokenizer import Tokenizer, sample_chunks
from pangu_ms.models.common.config import ModelConfig

FORMAT = 1
SAMPLE_BYTES = 1_000_000
"""Text that is encoded to measure compression; 1 MB of Chinese takes about 2 s, nearly all of it segmentation."""
_SAMPLE_ROWS, _WINDOW_ROWS = 20_000, 1024
"""Rows of a domain whose tokens are counted for routing: 20 M tokens at S = 1024, read in windows."""
_SAMPLE_TOKENS = 300_000
"""Tokens of records that are decoded to measure compression."""


def count_corpus(corpus: Corpus, tokenizer_path: str | Path, num_workers: int, progress: bool = True) -> np.ndarray:
    """Count the occurrences of each piece in a corpus: int64 [V].

    Raises:
        DataError: the corpus or the tokenizer cannot be read.
        UserError: a worker process died.
    """
    tokenizer = Tokenizer.load(tokenizer_path)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    with (
        tempfile.TemporaryDirectory() as work,
        progress_bar(progress, total=corpus.size, unit="B", unit_scale=True, desc="count") as bar,
    ):

        def take(size: int, tokens: int) -> None:
            # Finished blocks are counted and removed at once, so that only a few are on the disk at a time.
            for path in Path(work).glob("block-*.npz"):
                np.add(counts, _bincount(load_block(path).ids, tokenizer), out=counts)
                path.unlink()
            bar.update(size)

        encode_corpus(corpus, Path(tokenizer_path), Path(work), num_workers, take)
    return counts


def domain_token_counts(records: RecordSet, model: ModelConfig) -> np.ndarray:
    """How often each token occurs as an input in at most `_SAMPLE_ROWS` rows of each domain of a model, evenly
    spaced: int64 [domains, V]. Padding and ends of documents count, since they are routed, too."""
    counts = np.zeros((len(model.domains), model.vocab_size), np.int64)
    for index, name in enumerate(model.domains):
        rows = np.array(records.domains.get(name, ()), np.int64)
        sample = rows[:: -(-len(rows) // _SAMPLE_ROWS)] if len(rows) else rows
        for start in range(0, len(sample), _WINDOW_ROWS):
            ids = records.read_rows(sample[start : start + _WINDOW_ROWS])[:, :-1]
            counts[index] += np.bincount(ids.reshape(-1), minlength=model.vocab_size)
    return counts


def open_records(source: str | Path, tokenizer: Tokenizer) -> list[RecordSet]:
    """Open every split of a data set.

    Raises:
        DataError: another tokenizer made the records. Official files do not name their tokenizer; instead their ids are
            checked as they are read.
    """
    train = RecordSet.open(source)
    train.require_tokenizer(tokenizer)
    train.vocab_size = tokenizer.vocab_size  # ids of official files are checked against it
    return [train, *(RecordSet.open(source, split) for split in SPLITS[1:] if train.has_split(split))]


def count_records(record_sets: list[RecordSet], tokenizer: Tokenizer, progress: bool = True) -> np.ndarray:
    """Count the occurrences of each piece in the rows of data sets: int64 [V].

    Raises:
        DataError: a file is damaged, or an id lies outside the vocabulary.
    """
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    with progress_bar(
        progress and bool(record_sets), total=sum(records.num_rows for records in record_sets), unit="row", desc="count"
    ) as bar:
        for records in record_sets:
            for rows in records.rows():
                counts += _bincount(rows.ravel(), tokenizer)
                bar.update(len(rows))
    return counts


def _bincount(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    counts = np.bincount(ids, minlength=tokenizer.vocab_size)
    counts[[tokenizer.pad_id, tokenizer.eod_id]] = 0
    return counts


def save_counts(path: str | Path, counts: np.ndarray, tokenizer: Tokenizer) -> None:
    """Write counts as a JSON file atomically.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    content = {"format": FORMAT, "tokenizer": tokenizer.fingerprint, "counts": counts.tolist()}
    files.write_new(Path(path), json.dumps(content) + "\n")


def load_counts(path: str | Path, tokenizer: Tokenizer) -> np.ndarray:
    """Read counts that `save_counts` wrote: int64 [V].

    Raises:
        DataError: the file is missing, damaged or of another kind, or its counts belong to another tokenizer.
    """
    try:
        content = small_json.read_object(Path(path))
        format_version.require_known(content["format"], FORMAT, path, DataError)
        made, counts = str(content["tokenizer"]), np.array(content["counts"])
    except small_json.Missing as error:
        raise DataError(f"{path}: {error}; counts are written by --save-counts; correct the name") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not what --save-counts writes ({error!r}); count again") from error
    if not tokenizer.made(made, str(path)):
        raise DataError(
            f"{path}: counted with tokenizer {made[:12]}, given {tokenizer.fingerprint[:12]}: must be the same; count"
            " again"
        )
    if counts.shape != (tokenizer.vocab_size,) or counts.dtype != np.int64 or counts.min() < 0 or not counts.any():
        raise DataError(
            f"{path}: must hold {tokenizer.vocab_size} counts, whole numbers from 0 up, not all 0; restore the file or"
            " count again"
        )
    return counts


def corpus_sample(corpus: Corpus) -> list[str]:
    """Take about SAMPLE_BYTES of text, evenly spaced over a corpus."""
    return sample_chunks((document.text for document in corpus), SAMPLE_BYTES)


def records_sample(record_sets: list[RecordSet], tokenizer: Tokenizer) -> list[str]:
    """Decode evenly spaced rows of data sets, about _SAMPLE_TOKENS tokens in all.

    The texts of a row's documents are joined without a separator.
    """
    texts: list[str] = []
    for records in record_sets:
        texts += _row_texts(records, tokenizer, _SAMPLE_TOKENS // len(record_sets))
    return texts


def _row_texts(records: RecordSet, tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    number = min(records.num_rows, 1 + tokens // records.row_length)
    for row in records.read_rows(np.linspace(0, records.num_rows - 1, number).astype(np.int64)):
        yield tokenizer.decode(row[~np.isin(row, (tokenizer.pad_id, tokenizer.eod_id))].tolist())


def compression(tokenizer: Tokenizer, texts: list[str]) -> dict[str, float]:
    """Measure the tokenizer's compression of texts: a dict with tokens_per_character and bytes_per_token (bytes of
    UTF-8).

    Source: PanGu-pi Table 7 (spec D6), whose compression rate is tokens per character.
    """
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return {
        "tokens_per_character": tokens / sum(map(len, texts)),
        "bytes_per_token": sum(len(text.encode()) for text in texts) / tokens,
    }
