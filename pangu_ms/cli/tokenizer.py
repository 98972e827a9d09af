"""`pangu tokenizer ACTION`: train or compress a vocabulary, and convert text to ids and back."""

import logging
import sys
import time
from argparse import Namespace
from pathlib import Path

from pangu_ms.cli import options
from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core import small_json
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_json, print_result
from pangu_ms.data.corpus import Corpus
from pangu_ms.data.tokenizer import SEGMENTERS, Tokenizer, train_tokenizer

ACTIONS = {
    "train": ("pangu_ms.cli.tokenizer:train_parser", "train a vocabulary on text"),
    "compress": (
        "pangu_ms.cli.tokenizer_compress",
        "remove a tokenizer's rare pieces; any text can still be encoded (PanGu-pi Pro)",
    ),
    "encode": ("pangu_ms.cli.tokenizer:encode_parser", "print the ids of texts, one line each"),
    "decode": ("pangu_ms.cli.tokenizer:decode_parser", "print the text of ids"),
}

_log = logging.getLogger(__name__)


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu tokenizer", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    return run_action("tokenizer", __doc__, ACTIONS, argv)


def train_parser() -> Parser:
    """The options of `pangu tokenizer train`."""
    parser = Parser(prog="pangu tokenizer train", description=ACTIONS["train"][1])
    options.add_corpus(parser, required=True)
    options.add_corpus_format(parser)
    text = "new directory for vocab.model and tokenizer.json"
    options.add_new_directory(parser, "--output", text, required=True)
    text = "number of pieces, including special and 256 byte pieces"
    parser.add_argument("--vocab-size", type=int, default=40000, help=text)
    text = "jieba for Chinese, none for code and other languages"
    parser.add_argument("--segmenter", choices=SEGMENTERS, default="jieba", help=text)
    text = "train on at most this much text; of a larger corpus an evenly spaced sample is used"
    parser.add_argument("--sample-bytes", type=int, default=20_000_000, help=text)
    options.add_json(parser)
    parser.set_defaults(run=_train)
    return parser


def encode_parser() -> Parser:
    """The options of `pangu tokenizer encode`."""
    parser = _parser("encode", "text", "texts (default: standard input)")
    parser.add_argument("--pieces", action="store_true", help="print pieces instead of ids")
    parser.set_defaults(run=_encode)
    return parser


def decode_parser() -> Parser:
    """The options of `pangu tokenizer decode`."""
    parser = _parser("decode", "ids", "ids, separated by spaces or commas (default: standard input)")
    parser.set_defaults(run=_decode)
    return parser


def _parser(action: str, given: str, text: str) -> Parser:
    """A parser with the options that `encode` and `decode` share."""
    parser = Parser(prog=f"pangu tokenizer {action}", description=ACTIONS[action][1])
    options.add_tokenizer(parser)
    parser.add_argument("--file", type=Path, metavar="FILE", help="read from this file")
    parser.add_argument(given, nargs="*", help=text)
    options.add_json(parser)
    return parser


def _train(args: Namespace) -> int:
    corpus, started = Corpus(args.corpus, **options.corpus_format(args)), time.perf_counter()
    texts = (document.text for document in corpus)
    tokenizer = train_tokenizer(texts, args.vocab_size, args.segmenter, args.sample_bytes, progress=not args.json)
    tokenizer.save(args.output)
    bad, seconds = corpus.quarantine.count, round(time.perf_counter() - started, 1)
    if bad:
        _log.warning("%d lines had no text and were not used; `pangu data prepare` lists them", bad)
    result = {"output": str(args.output), "vocab_size": tokenizer.vocab_size, "segmenter": args.segmenter}
    result |= {"fingerprint": tokenizer.fingerprint, "seconds": seconds, "bad_lines": bad, "taken": corpus.taken()}
    text = f"{args.output}: {tokenizer.vocab_size} pieces, segmenter {args.segmenter}, {seconds} s"
    print_result(result, text, args.json)
    return 0


def _inputs(args: Namespace, given: list[str]) -> list[str]:
    """The texts to work on: arguments, a file, or standard input."""
    if args.file and given:
        raise DataError(
            f"--file {args.file}: text was given as arguments too; only one source can be used; leave one out"
        )
    try:
        if args.file:
            return [small_json.read_bytes(args.file, pipes=True).decode("utf-8")]
        return given or [sys.stdin.buffer.read().decode("utf-8")]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{args.file or 'standard input'}: byte {error.start} is not UTF-8; text must be UTF-8; convert it"
        ) from error
    except ValueError as error:
        raise DataError(f"{args.file}: {error}; --file names a readable text file; correct it") from error


# Both functions below print text directly, not through `print_result`, so that a pipe gets every byte unchanged.


def _encode(args: Namespace) -> int:
    tokenizer = Tokenizer.load(args.tokenizer)
    for text in _inputs(args, args.text):
        ids = tokenizer.encode(text)
        pieces = [tokenizer.piece_of(i) for i in ids]
        if args.json:
            print_json({"text": text, "ids": ids, "pieces": pieces})
        else:
            print(*(pieces if args.pieces else ids))
    return 0


def _decode(args: Namespace) -> int:
    tokenizer = Tokenizer.load(args.tokenizer)
    words = " ".join(_inputs(args, args.ids)).replace(",", " ").split()
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise DataError(f"ids: {wrong!r} is not an id; ids are whole numbers separated by spaces or commas; correct it")
    ids = [int(word) for word in words]
    text = tokenizer.decode(ids)
    if args.json:
        print_json({"ids": ids, "text": text})
    else:
        print(text)
    return 0
