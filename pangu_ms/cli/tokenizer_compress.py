"""`pangu tokenizer compress`: prune a vocabulary to its frequent pieces."""

import logging
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options
from pangu_ms.cli.tokenizer import ACTIONS
from pangu_ms.core import runtime
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines

if TYPE_CHECKING:
    import numpy as np

    from pangu_ms.data.compress import Compressed, Compressor
    from pangu_ms.data.corpus import Corpus
    from pangu_ms.data.records import RecordSet
    from pangu_ms.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_SHOWN = 5
"""Largest number of unreachable pieces that the report lists."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu tokenizer compress", description=ACTIONS["compress"][1])
    options.add_tokenizer(parser, "full tokenizer: directory or released vocab.model")
    what = parser.add_mutually_exclusive_group(required=True)
    text = "number of pieces to keep, including special and byte pieces"
    what.add_argument("--vocab-size", type=int, metavar="N", help=text)
    text = "write nothing; show coverage and compression of these sizes, to choose one"
    what.add_argument("--sizes", metavar="N,N,...", help=text)
    text = "new directory for vocab.model, tokenizer.json and vocab_map.json"
    options.add_new_directory(parser, "--output", text)
    options.add_corpus(parser, "count pieces in these files: text, JSON lines or JSON arrays; may be compressed")
    text = "count pieces in records that the tokenizer made, in addition to --corpus or instead of it"
    parser.add_argument("--records", metavar="DIR", help=text)
    counts = parser.add_mutually_exclusive_group()
    text = "use the counts in this file; --corpus or --records then only provide the text to measure compression on"
    counts.add_argument("--counts", metavar="FILE", help=text)
    text = "also write the counts into this new file, for --counts in later runs"
    options.add_new_file(counts, "--save-counts", text)
    options.add_num_workers(parser)
    text = "prune by count alone; encoding then cannot produce pieces whose merges were removed"
    parser.add_argument("--no-closure", action="store_true", help=text)
    options.add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    """Check everything, count, compress, report."""
    from pangu_ms.data.compress import Compressor
    from pangu_ms.data.tokenizer import Tokenizer

    runtime.quiet()
    started = time.perf_counter()
    compressor = Compressor(Tokenizer.load(args.tokenizer))
    sizes = _sizes(args, compressor)
    _check_files(args)
    counts, sample = _counts_and_sample(args, compressor.tokenizer)
    result = (
        _table(args, compressor, counts, sample, sizes) if args.sizes else _compress(args, compressor, counts, sample)
    )
    result["seconds"] = round(time.perf_counter() - started, 1)
    print_result(result, "\n".join(_table_text(result) if args.sizes else _text(result)), args.json)
    return 0


def _sizes(args: Namespace, compressor: "Compressor") -> list[int]:
    try:
        sizes = [int(size) for size in args.sizes.split(",")] if args.sizes is not None else [args.vocab_size]
    except ValueError as error:
        raise DataError(
            f"--sizes {args.sizes}: must be whole numbers with commas between, e.g. 8000,16000,32000; correct it"
        ) from error
    for size in sizes:
        compressor.require_size(size)
    return sizes


def _check_files(args: Namespace) -> None:
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


def _counts_and_sample(args: Namespace, tokenizer: "Tokenizer") -> tuple["np.ndarray", list[str]]:
    """The counts [V] from all given sources, and text to measure compression on, if there is any."""
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
    args: Namespace, tokenizer: "Tokenizer", corpus: "Corpus | None", records: "list[RecordSet]"
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


def _compress(args: Namespace, compressor: "Compressor", counts: "np.ndarray", sample: list[str]) -> dict[str, Any]:
    """Write the tokenizer; returns the report."""
    compressed = compressor.compress(counts, args.vocab_size, closure=not args.no_closure)
    after = _measured(compressed.tokenizer, sample)
    compressed.save(args.output)
    tokenizer = compressor.tokenizer
    result = {
        "output": str(args.output),
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
    args: Namespace, compressor: "Compressor", counts: "np.ndarray", sample: list[str], sizes: list[int]
) -> dict[str, Any]:
    """The report on several sizes; the first row is the full tokenizer."""
    tokenizer = compressor.tokenizer
    rows = [
        {"vocab_size": tokenizer.vocab_size, "coverage": 1.0, "unreachable": 0} | (_measured(tokenizer, sample) or {})
    ]
    for size in sizes:
        compressed = compressor.compress(counts, size, closure=not args.no_closure)
        rows.append(_quality(compressed, counts) | (_measured(compressed.tokenizer, sample) or {}))
    return {"source_fingerprint": tokenizer.fingerprint, "counted_tokens": int(counts.sum()), "sizes": rows}


def _quality(compressed: "Compressed", counts: "np.ndarray") -> dict[str, Any]:
    coverage = float(counts[compressed.vocab_map.old_ids].sum() / counts.sum())
    unreachable = {"unreachable": len(compressed.unreachable), "unreachable_pieces": compressed.unreachable[:_SHOWN]}
    return {"vocab_size": compressed.tokenizer.vocab_size, "coverage": coverage} | unreachable


def _measured(tokenizer: "Tokenizer", sample: list[str]) -> dict[str, Any] | None:
    from pangu_ms.data.token_counts import compression

    return compression(tokenizer, sample) if sample else None


def _text(result: dict[str, Any]) -> list[str]:
    """The report on one size as text."""
    kept = ", ".join(f"{number:,} {kind}" for kind, number in result["kept"].items())
    coverage = f"{result['coverage']:.2%} of {result['counted_tokens']:,} counted tokens are kept pieces"
    rows = [("coverage", coverage)]
    before, after = result["before"], result["after"]
    for name in after or ():
        rows.append((name.replace("_", " "), f"{before[name]:.4f} before, {after[name]:.4f} after"))
    examples = f", e.g. {' '.join(result['unreachable_pieces'])}" if result["unreachable"] else ""
    rows.append(("unreachable pieces", f"{result['unreachable']}{examples}"))
    heading = (
        f"{result['output']}: {result['vocab_size']:,} of {result['source_vocab_size']:,} pieces ({kept}),"
        f" {result['seconds']} s"
    )
    return [heading, *table_lines(None, rows, "<<", indent="  ")]


def _table_text(result: dict[str, Any]) -> list[str]:
    """The report on several sizes as a table."""
    rows = []
    for row in result["sizes"]:
        measured = [f"{row[name]:.4f}" if name in row else "-" for name in ("tokens_per_character", "bytes_per_token")]
        rows.append((f"{row['vocab_size']:,}", f"{row['coverage']:.2%}", f"{row['unreachable']:,}", *measured))
    head = ("pieces", "coverage", "unreachable", "tokens/character", "bytes/token")
    return [f"{result['counted_tokens']:,} tokens counted, {result['seconds']} s", *table_lines(head, rows, ">>>>>")]
