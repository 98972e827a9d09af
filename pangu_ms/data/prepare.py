"""Prepares a corpus as MindRecord files with a manifest.

The work can be interrupted at any time; the same call resumes it.
"""

import os
import platform
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms import __version__
from pangu_ms.core import files
from pangu_ms.core.errors import DataError
from pangu_ms.core.progress import progress_bar
from pangu_ms.data.blocks import encode_corpus, work_directory
from pangu_ms.data.corpus import Corpus, Quarantine
from pangu_ms.data.pack import SPLITS, DocumentTable, RowsByDomain, header_digest, write_split
from pangu_ms.data.tokenizer import Tokenizer

MANIFEST = "manifest.json"
FORMAT = 1


def prepare(
    corpus_files: list[str],
    tokenizer_path: str | Path,
    output: str | Path,
    seq_length: int = 1024,
    held_out: float = 0.02,
    num_workers: int | None = None,
    split_paragraphs: bool = False,
    progress: bool = True,
    text_field: str | None = None,
    plain_text: bool = False,
    domains: Sequence[tuple[str, str]] = (),
) -> dict:
    """Encode a corpus, split it into train and held_out, pack it into rows of seq_length + 1 ids, and write the rows
    with a `manifest.json`.

    Documents of different domains are packed into different rows. The rows of a domain follow each other, and the
    domains are in the order of their names. Within a domain, documents are in the order of the corpus.

    Args:
        corpus_files: files or patterns, see `Corpus`.
        tokenizer_path: tokenizer directory or released vocab.model; copied to OUTPUT/tokenizer.
        output: new directory. During the work, OUTPUT.partial holds the finished part.
        held_out: share of documents, in [0, 1), to hold out for evaluation; a hash of the text decides which.
        num_workers: encoding processes; by default the number of usable cores.
        split_paragraphs: make every paragraph a document.
        progress: show a bar if stderr is a terminal.
        text_field, plain_text, domains: as in `Corpus`.

    Returns:
        The manifest.

    Raises:
        DataError: the corpus or the tokenizer cannot be used, or there is too little text for one row.
        OutputError: `output` has other content, or the disk is full.

    Source: spec A6.
    """
    output = Path(output).absolute()
    _require_settings(seq_length, held_out, num_workers)
    files.require_free(output)
    tokenizer = Tokenizer.load(tokenizer_path)
    corpus = Corpus(corpus_files, split_paragraphs, text_field=text_field, plain_text=plain_text, domains=domains)
    inputs = [_input_entry(path, domain) for path, domain in zip(corpus.files, corpus.domains)]
    options = {"split_paragraphs": split_paragraphs, "text_field": text_field, "plain_text": plain_text}
    with work_directory(output, _run_key(corpus, inputs, tokenizer, options)) as work:
        corpus.quarantine = Quarantine(work / "quarantine.jsonl")
        blocks = _encode(corpus, Path(tokenizer_path), work, num_workers or usable_cores(), progress)
        table, is_held_out = _split(blocks, corpus, held_out, seq_length)
        source: dict[str, Any] = {"inputs": inputs, "taken": corpus.taken()} | options
        source |= {"empty": corpus.quarantine.empty, "quarantined": corpus.quarantine.count}
        with files.new_directory(output) as directory:
            tokenizer.save(directory / "tokenizer")
            if corpus.quarantine.count:
                shutil.copy(work / "quarantine.jsonl", directory)
            splits = _write_splits(directory, blocks, table, is_held_out, seq_length, tokenizer.pad_id)
            manifest = _settings(tokenizer, seq_length, held_out) | {"splits": splits} | source
            manifest["files"] = _hashes(directory)
            manifest["headers"] = {path.name: header_digest(path) for path in sorted(directory.glob("*.mindrecord"))}
            files.write_json(directory / MANIFEST, manifest)
    return manifest


def _input_entry(path: Path, domain: str | None) -> dict[str, Any]:
    """The manifest's entry for a corpus file; `domain` is that of all its documents, if one was given."""
    entry = {"path": str(path), "size": path.stat().st_size, "sha256": files.sha256_file(path)}
    return entry | ({"domain": domain} if domain else {})


def _run_key(corpus: Corpus, inputs: list[dict[str, Any]], tokenizer: Tokenizer, options: dict[str, Any]) -> str:
    """Hash of everything that the encoded blocks depend on: only a run with the same key may reuse them."""
    key: dict[str, Any] = {
        "inputs": [entry["sha256"] for entry in inputs],
        "names": [path.name for path in corpus.files],
        "tokenizer": tokenizer.fingerprint,
    }
    if any(corpus.domains):  # without any, the key is that of an earlier version, whose run can be finished
        key["domains"] = corpus.domains
    return files.sha256_json(key | options | {"format": FORMAT})


def _write_splits(
    directory: Path, blocks: list[Path], table: DocumentTable, is_held_out: np.ndarray, seq_length: int, pad_id: int
) -> dict[str, Any]:
    """Write the rows of both splits; returns the manifest's section "splits"."""
    splits = {}
    for name, members in zip(SPLITS, (~is_held_out, is_held_out)):
        rows = RowsByDomain(blocks, table, members, seq_length + 1, pad_id)
        counts = table.summary(members) | write_split(directory, name, rows, seq_length + 1)
        for domain, own in rows.ranges.items():
            counts["domains"][domain] |= own
        splits[name] = counts | {"pad_tokens": counts["rows"] * (seq_length + 1) - counts["tokens"]}
    return splits


def _require_settings(seq_length: int, held_out: float, num_workers: int | None) -> None:
    if seq_length < 1:
        raise DataError(f"seq_length={seq_length}: must be positive; use the model's seq_length")
    if not 0 <= held_out < 1:
        raise DataError(f"held_out={held_out}: must be in [0, 1); use e.g. 0.02")
    if num_workers is not None and num_workers < 1:
        raise DataError(f"num_workers={num_workers}: must be at least 1; leave it out for one per core")


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encode(corpus: Corpus, tokenizer_path: Path, work: Path, num_workers: int, progress: bool) -> list[Path]:
    # The MindRecord writer needs mindspore, whose import takes seconds: a thread imports it while the workers encode.
    # The thread is joined because a process that ends in the middle of this import crashes.
    importing = threading.Thread(target=_import_mindrecord)
    importing.start()
    try:
        return _encode_with_bar(corpus, tokenizer_path, work, num_workers, progress)
    finally:
        corpus.quarantine.close()
        importing.join()


def _encode_with_bar(corpus: Corpus, tokenizer_path: Path, work: Path, num_workers: int, progress: bool) -> list[Path]:
    tokens = 0
    with progress_bar(progress, total=corpus.size, unit="B", unit_scale=True, desc="encode") as bar:

        def advance(size: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            bar.set_postfix_str(f"{tokens / max(bar.format_dict['elapsed'], 1e-3):,.0f} tokens/s", refresh=False)
            bar.update(size)

        return encode_corpus(corpus, tokenizer_path, work, num_workers, advance)


def _import_mindrecord() -> None:
    import mindspore.mindrecord  # noqa: F401


def _split(blocks: list[Path], corpus: Corpus, held_out: float, seq_length: int) -> tuple[DocumentTable, np.ndarray]:
    """The table of all documents, and which of them are held out (bool [D]).

    Raises:
        DataError: too little is left to train on.
    """
    names = ", ".join(map(str, corpus.files[:3])) + (", ..." if len(corpus.files) > 3 else "")
    if not blocks:
        bad = corpus.quarantine
        skipped = f"{bad.empty} empty, {bad.count} bad" + (f", first {bad.first}" if bad.count else "")
        raise DataError(f"{names}: no document with text ({skipped}); a corpus needs some; name files with text")
    table = DocumentTable.of(blocks)
    is_held_out = table.split(held_out)
    found = int(table.tokens[~is_held_out].sum())
    if found <= seq_length:
        raise DataError(
            f"{names}: {found} tokens in {int((~is_held_out).sum())} training documents; one sequence needs"
            f" seq_length + 1 = {seq_length + 1}; use a smaller seq_length or more text"
            + (", or a smaller held_out" if is_held_out.any() else "")
        )
    return table, is_held_out


def _settings(tokenizer: Tokenizer, seq_length: int, held_out: float) -> dict:
    import mindspore
    import sentencepiece

    return {
        "format": FORMAT,
        "seq_length": seq_length,
        "held_out": held_out,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "eod_id": tokenizer.eod_id,
        "tokenizer": tokenizer.fingerprint,
        "segmenter_version": tokenizer.segmenter_version,
        "versions": {
            "pangu_ms": __version__,
            "mindspore": mindspore.__version__,
            "sentencepiece": sentencepiece.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below a directory."""
    found = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): files.sha256_file(path) for path in found}
