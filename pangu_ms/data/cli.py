"""`pangu data prepare|inspect`."""

import argparse
import json
import sys
from pathlib import Path

from pangu_ms import files, runtime
from pangu_ms.data.pack import SPLITS
from pangu_ms.data.prepare import prepare
from pangu_ms.data.records import RecordSet, load_manifest
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.errors import DataError

INTERRUPTED = 130  # 128 + SIGINT


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = _parser().parse_args(argv)
    runtime.quiet()
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pangu data")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    shape = argparse.ArgumentDefaultsHelpFormatter
    summary = "encode a corpus and write it as MindRecord rows; can be interrupted and repeated"
    make = verbs.add_parser("prepare", help=summary, description=summary, formatter_class=shape)
    needed = {"required": True, "default": argparse.SUPPRESS}  # no "(default: None)" in the help
    make.add_argument("--corpus", nargs="+", **needed, metavar="FILE", help="text (one document each) or .jsonl files, .gz or .zst too")
    make.add_argument("--tokenizer", **needed, metavar="PATH", help="tokenizer directory or released vocab.model")
    make.add_argument("--output", **needed, metavar="DIR", help="new directory")
    make.add_argument("--seq-length", type=int, default=1024, help="the model's seq_length; rows have one id more")
    make.add_argument("--held-out", type=float, default=0.02, metavar="SHARE", help="share of documents put aside for evaluation")
    make.add_argument("--num-workers", type=int, metavar="N", help="encoding processes (default: one per core)", default=argparse.SUPPRESS)
    make.add_argument("--split-paragraphs", action="store_true", help="a blank line ends a document, as in the official builder")
    make.set_defaults(run=_prepare)
    show = verbs.add_parser("inspect", help="show what a directory holds", formatter_class=shape)
    show.add_argument("directory", metavar="DIR", help="written by `pangu data prepare`")
    show.add_argument("--rows", type=int, default=2, metavar="N", help="rows of each split to decode")
    show.add_argument("--verify", action="store_true", help="compare every file with its SHA-256")
    show.set_defaults(run=_inspect)
    for verb in (make, show):
        verb.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


def _prepare(args: argparse.Namespace) -> int:
    workers = getattr(args, "num_workers", None)
    try:
        manifest = prepare(
            args.corpus, args.tokenizer, args.output, args.seq_length, args.held_out, workers, args.split_paragraphs, progress=not args.json
        )
    except KeyboardInterrupt:
        print(f"pangu data: interrupted; finished blocks are in {args.output}.partial; repeat the same command to go on", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(manifest) if args.json else "\n".join([f"{args.output}:", *_table(manifest)]))
    return 0


def _table(manifest: dict) -> list[str]:
    """The manifest for the eye."""
    lines = [f"  seq_length {manifest['seq_length']}, {manifest['vocab_size']} pieces, tokenizer {manifest['tokenizer'][:12]}"]
    lines.append(f"  {'':<20}{'documents':>12}{'tokens':>16}{'bytes':>16}{'rows':>10}{'pad':>8}")
    for name in SPLITS:
        split = manifest["splits"][name]
        lines.append(f"  {name:<20}{split['documents']:>12,}{split['tokens']:>16,}{split['bytes']:>16,}{split['rows']:>10,}{split['pad_tokens']:>8,}")
        for domain, counts in split["domains"].items():
            lines.append(f"    {domain:<18}{counts['documents']:>12,}{counts['tokens']:>16,}{counts['bytes']:>16,}")
    if manifest["empty"] or manifest["quarantined"]:
        lines.append(f"  not taken: {manifest['empty']} empty texts, {manifest['quarantined']} bad lines (quarantine.jsonl)")
    return lines


def _inspect(args: argparse.Namespace) -> int:
    directory = Path(args.directory)
    manifest = load_manifest(directory)
    if args.verify:
        _verify(directory, manifest)
    tokenizer = Tokenizer.load(directory / "tokenizer")
    rows = {name: _decoded(directory, name, args.rows, tokenizer) for name in SPLITS if manifest["splits"][name]["rows"]}
    if args.json:
        print(json.dumps({"manifest": manifest, "rows": rows, "verified": args.verify}))
        return 0
    print("\n".join([f"{directory}:", *_table(manifest)]))
    for name, texts in rows.items():
        for number, text in enumerate(texts):
            print(f"--- {name} row {number}\n{text}")
    if args.verify:
        print(f"{len(manifest['files'])} files verified")
    return 0


def _decoded(directory: Path, split: str, count: int, tokenizer: Tokenizer) -> list[str]:
    if count < 1:
        return []
    records = RecordSet.open(directory, split)
    return [tokenizer.decode(row.tolist()) for row in records.read_rows(range(min(count, records.num_rows)))]


def _verify(directory: Path, manifest: dict) -> None:
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path}: is missing; the manifest lists it; restore it or prepare again")
        if files.sha256_file(path) != expected:
            raise DataError(f"{path}: its SHA-256 differs from the manifest's; the file was damaged or changed; restore it or prepare again")
