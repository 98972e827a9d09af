"""`pangu tokenizer compress`. What it needs is imported when it runs, so that the other verbs start fast."""

import argparse
import json
import logging
import time
from typing import TYPE_CHECKING

from pangu_ms.core import runtime
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import NewDirectory, NewFile

if TYPE_CHECKING:
    import numpy as np

    from pangu_ms.data.compress import Compressed, Compressor
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.records import RecordSet
    from pangu_ms.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
SUMMARY = "drop a tokenizer's rare pieces; text of any kind can still be encoded (PanGu-pi Pro)"
_ABSENT = dict.fromkeys(("vocab_size", "sizes", "output", "corpus", "records", "counts", "save_counts", "num_workers"))
"""Options without a default; argparse would print "(default: None)" for them."""
_OUTPUT_HELP = "new directory for vocab.model, tokenizer.json and vocab_map.json"
_SHOWN = 5
"""Unreachable pieces that the pretty report spells out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--tokenizer",
        required=True,
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="full tokenizer: directory or released vocab.model",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="number of pieces to keep, specials and bytes included",
    )
    what.add_argument(
        "--sizes",
        metavar="N,N,...",
        default=argparse.SUPPRESS,
        help="write nothing; show coverage and compression of these sizes, to choose one",
    )
    parser.add_argument("--output", action=NewDirectory, metavar="DIR", default=argparse.SUPPRESS, help=_OUTPUT_HELP)
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="count pieces in these files: text, JSON lines or arrays, .gz or .zst too",
    )
    parser.add_argument(
        "--records",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="count pieces in records that the tokenizer made, beside or instead of --corpus",
    )
    counts = parser.add_mutually_exclusive_group()
    counts.add_argument(
        "--counts",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="use these counts; --corpus or --records then only give the sample for compression",
    )
    counts.add_argument(
        "--save-counts",
        action=NewFile,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="write the counts into this new file, for --counts of later runs",
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="encoding processes (default: one per core)",
    )
    parser.add_argument(
        "--no-closure",
        action="store_true",
        help="prune by count alone; pieces whose merges are gone can no longer be produced",
    )


def run(args: argparse.Namespace) -> None:
    """Check everything, count, compress, report."""
    from pangu_ms.data.compress import Compressor
    from pangu_ms.data.tokenizer import Tokenizer

    runtime.quiet()
    started, args = time.perf_counter(), argparse.Namespace(**(_ABSENT | vars(args)))
    compressor = Compressor(Tokenizer.load(args.tokenizer))
    sizes = _sizes(args, compressor)
    _check_files(args)
    counts, sample = _counts_and_sample(args, compressor.tokenizer)
    result = (
        _table(args, compressor, counts, sample, sizes) if args.sizes else _compress(args, compressor, counts, sample)
    )
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(result) if args.json else "\n".join(_table_text(result) if args.sizes else _text(result)))


def _sizes(args: argparse.Namespace, compressor: "Compressor") -> list[int]:
    try:
        sizes = [int(size) for size in args.sizes.split(",")] if args.sizes is not None else [args.vocab_size]
    except ValueError as error:
        raise DataError(
            f"--sizes {args.sizes}: must be whole numbers with commas between, e.g. 8000,16000,32000; correct it"
        ) from error
    for size in sizes:
        compressor.require_size(size)
    return sizes


def _check_files(args: argparse.Namespace) -> None:
    if args.vocab_size is not None and not args.output:
        raise DataError(
            "--output: missing; --vocab-size writes a tokenizer; name a new directory, or use --sizes to write nothing"
        )
    if args.sizes is not None and args.output:
        raise DataError(f"--output {args.output}: --sizes writes no tokenizer; leave one of them out")
    if not (args.corpus or args.records or args.counts):
        raise DataError(
            "compress: nothing to count pieces in; the frequent ones are kept; name --corpus, --records or --counts"
        )
    if args.num_workers is not None and args.num_workers < 1:
        raise DataError(f"num_workers={args.num_workers}: must be at least 1; leave it out for one per core")


def _counts_and_sample(args: argparse.Namespace, tokenizer: "Tokenizer") -> tuple["np.ndarray", list[str]]:
    """Counts [V] from everything that was named, and text to measure compression on, if there is any."""
    from pangu_ms.data import token_counts
    from pangu_ms.data.corpus import Corpus

    corpus = Corpus(args.corpus) if args.corpus else None
    records = token_counts.open_records(args.records, tokenizer) if args.records else []
    counts = (
        token_counts.load_counts(args.counts, tokenizer) if args.counts else _count(args, tokenizer, corpus, records)
    )
    if not counts.any():
        raise DataError("compress: the corpus or records hold no text; frequent pieces are kept; name some with text")
    if args.save_counts:
        token_counts.save_counts(args.save_counts, counts, tokenizer)
    sample = token_counts.corpus_sample(corpus) if corpus else token_counts.records_sample(records, tokenizer)
    return counts, sample


def _count(
    args: argparse.Namespace, tokenizer: "Tokenizer", corpus: "Corpus | None", records: "list[RecordSet]"
) -> "np.ndarray":
    from pangu_ms.data.prepare import usable_cores
    from pangu_ms.data.token_counts import count_corpus, count_records

    counts = count_records(records, tokenizer, progress=not args.json)
    if corpus:
        counts += count_corpus(corpus, args.tokenizer, args.num_workers or usable_cores(), progress=not args.json)
        if corpus.quarantine.count:
            _log.warning(
                "%d lines had no text and were not counted; `pangu data prepare` lists them", corpus.quarantine.count
            )
    return counts


def _compress(args: argparse.Namespace, compressor: "Compressor", counts: "np.ndarray", sample: list[str]) -> dict:
    """Write the tokenizer; returns the report."""
    compressed = compressor.compress(counts, args.vocab_size, closure=not args.no_closure)
    after = _measured(compressed.tokenizer, sample)
    compressed.save(args.output)
    tokenizer = compressor.tokenizer
    result = {
        "output": args.output,
        "source_vocab_size": tokenizer.vocab_size,
        "source_fingerprint": tokenizer.fingerprint,
    }
    result |= {
        "fingerprint": compressed.tokenizer.fingerprint,
        "kept": compressed.kept,
        "counted_tokens": int(counts.sum()),
    }
    return result | _quality(compressed, counts) | {"before": _measured(tokenizer, sample), "after": after}


def _table(
    args: argparse.Namespace, compressor: "Compressor", counts: "np.ndarray", sample: list[str], sizes: list[int]
) -> dict:
    """The report on several sizes; the first row is the full tokenizer."""
    tokenizer = compressor.tokenizer
    rows = [
        {"vocab_size": tokenizer.vocab_size, "coverage": 1.0, "unreachable": 0} | (_measured(tokenizer, sample) or {})
    ]
    for size in sizes:
        compressed = compressor.compress(counts, size, closure=not args.no_closure)
        rows.append(_quality(compressed, counts) | (_measured(compressed.tokenizer, sample) or {}))
    return {"source_fingerprint": tokenizer.fingerprint, "counted_tokens": int(counts.sum()), "sizes": rows}


def _quality(compressed: "Compressed", counts: "np.ndarray") -> dict:
    coverage = float(counts[compressed.vocab_map.old_ids].sum() / counts.sum())
    unreachable = {"unreachable": len(compressed.unreachable), "unreachable_pieces": compressed.unreachable[:_SHOWN]}
    return {"vocab_size": compressed.tokenizer.vocab_size, "coverage": coverage} | unreachable


def _measured(tokenizer: "Tokenizer", sample: list[str]) -> dict | None:
    from pangu_ms.data.token_counts import compression

    return compression(tokenizer, sample) if sample else None


def _text(result: dict) -> list[str]:
    """The report on one size for the eye."""
    kept = ", ".join(f"{number:,} {kind}" for kind, number in result["kept"].items())
    lines = [
        f"{result['output']}: {result['vocab_size']:,} of {result['source_vocab_size']:,} pieces ({kept}),"
        f" {result['seconds']} s"
    ]
    lines.append(
        f"  {'coverage':<21}{result['coverage']:.2%} of {result['counted_tokens']:,} counted tokens are kept pieces"
    )
    before, after = result["before"], result["after"]
    if after:
        for name in after:
            lines.append(f"  {name.replace('_', ' '):<21}{before[name]:.4f} before, {after[name]:.4f} after")
    lines.append(
        f"  {'unreachable pieces':<21}{result['unreachable']}"
        + (f", e.g. {' '.join(result['unreachable_pieces'])}" if result["unreachable"] else "")
    )
    return lines


def _table_text(result: dict) -> list[str]:
    """The report on several sizes for the eye."""
    lines = [f"{result['counted_tokens']:,} tokens counted, {result['seconds']} s"]
    lines.append(f"{'pieces':>10}{'coverage':>10}{'unreachable':>13}{'tokens/character':>18}{'bytes/token':>13}")
    for row in result["sizes"]:
        measured = (
            f"{row['tokens_per_character']:>18.4f}{row['bytes_per_token']:>13.4f}"
            if "bytes_per_token" in row
            else f"{'-':>18}{'-':>13}"
        )
        lines.append(f"{row['vocab_size']:>10,}{row['coverage']:>10.2%}{row['unreachable']:>13,}{measured}")
    return lines
