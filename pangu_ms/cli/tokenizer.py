"""`pangu tokenizer train|compress|encode|decode`."""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from pangu_ms.cli import tokenizer_compress as compress_cli
from pangu_ms.core import small_json
from pangu_ms.core.console import show
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import NewDirectory, Parser
from pangu_ms.data.corpus import Corpus, add_corpus_options, corpus_options
from pangu_ms.data.tokenizer import SEGMENTERS, Tokenizer, train_tokenizer

_log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = _parser().parse_args(argv)
    args.run(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="pangu tokenizer")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, summary: str, run) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        verb.set_defaults(run=run)
        verb.add_argument("--json", action="store_true", help="machine-readable output")
        return verb

    train = add("train", "train a vocabulary on text", _train)
    train.add_argument(
        "--corpus",
        nargs="+",
        required=True,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="text, JSON lines or arrays; .gz or .zst too",
    )
    add_corpus_options(train)
    where = "new directory for vocab.model and tokenizer.json"
    train.add_argument(
        "--output", action=NewDirectory, required=True, default=argparse.SUPPRESS, metavar="DIR", help=where
    )
    train.add_argument(
        "--vocab-size", type=int, default=40000, help="number of pieces, specials and 256 bytes included"
    )
    train.add_argument(
        "--segmenter", choices=SEGMENTERS, default="jieba", help="jieba for Chinese, none for code and other languages"
    )
    train.add_argument(
        "--sample-bytes",
        type=int,
        default=20_000_000,
        help="a larger corpus is thinned evenly to at most this much text",
    )

    compress_cli.add_arguments(add("compress", compress_cli.SUMMARY, compress_cli.run))

    encode = add("encode", "print the ids of texts, one line each", _encode)
    _add_common(encode, "text", "text; standard input if none")
    encode.add_argument("--pieces", action="store_true", help="print pieces instead of ids")
    decode = add("decode", "print the text of ids", _decode)
    _add_common(decode, "ids", "ids, separated by spaces or commas; standard input if none")
    return parser


def _add_common(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    parser.add_argument(
        "--tokenizer",
        required=True,
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="tokenizer directory or released vocab.model",
    )
    parser.add_argument("--file", metavar="FILE", help="read from this file")
    parser.add_argument(name, nargs="*", help=meaning)


def _train(args: argparse.Namespace) -> None:
    corpus, started = Corpus(args.corpus, **corpus_options(args)), time.perf_counter()
    tokenizer = train_tokenizer(
        (d.text for d in corpus), args.vocab_size, args.segmenter, args.sample_bytes, progress=not args.json
    )
    tokenizer.save(args.output)
    bad, seconds = corpus.quarantine.count, round(time.perf_counter() - started, 1)
    if bad:
        _log.warning("%d lines had no text and were not used; `pangu data prepare` lists them", bad)
    result = {
        "output": args.output,
        "vocab_size": tokenizer.vocab_size,
        "segmenter": args.segmenter,
        "fingerprint": tokenizer.fingerprint,
    }
    result |= {"seconds": seconds, "bad_lines": bad, "taken": corpus.taken()}
    show(
        json.dumps(result)
        if args.json
        else f"{args.output}: {tokenizer.vocab_size} pieces, segmenter {args.segmenter}, {seconds} s"
    )


def _inputs(args: argparse.Namespace, given: list[str]) -> list[str]:
    """The texts to work on: arguments, a file, or standard input."""
    if args.file and given:
        raise DataError(
            f"--file {args.file}: text was given as arguments too; only one source can be used; leave one out"
        )
    try:
        if args.file:
            return [small_json.read_bytes(Path(args.file), pipes=True).decode("utf-8")]
        return given or [sys.stdin.buffer.read().decode("utf-8")]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{args.file or 'standard input'}: byte {error.start} is not UTF-8; text must be UTF-8; convert it"
        ) from error
    except ValueError as error:
        raise DataError(f"{args.file}: {error}; --file names a readable text file; correct it") from error


def _encode(args: argparse.Namespace) -> None:
    tokenizer = Tokenizer.load(args.tokenizer)
    for text in _inputs(args, args.text):
        ids = tokenizer.encode(text)
        shown = [tokenizer.piece_of(i) for i in ids] if args.pieces else ids
        print(
            json.dumps({"text": text, "ids": ids, "pieces": [tokenizer.piece_of(i) for i in ids]})
            if args.json
            else " ".join(map(str, shown))
        )


def _decode(args: argparse.Namespace) -> None:
    tokenizer = Tokenizer.load(args.tokenizer)
    words = " ".join(_inputs(args, args.ids)).replace(",", " ").split()
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise DataError(f"ids: {wrong!r} is not an id; ids are whole numbers separated by spaces or commas; correct it")
    ids = [int(word) for word in words]
    text = tokenizer.decode(ids)
    print(json.dumps({"ids": ids, "text": text}) if args.json else text)
