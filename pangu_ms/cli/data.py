"""`pangu data ACTION`: prepare a corpus as records, inspect them, and choose the records of the next training round."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.cli.actions import run_action, whole_parser
from pangu_ms.core import files, runtime
from pangu_ms.core.console import INTERRUPTED, tell
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.data.pack import SPLITS
from pangu_ms.data.prepare import prepare
from pangu_ms.data.records import RecordSet, load_manifest
from pangu_ms.data.resample import resample
from pangu_ms.data.tokenizer import Tokenizer

ACTIONS = {
    "prepare": (
        "pangu_ms.cli.data:prepare_parser",
        "encode a corpus and write it as MindRecord rows; can be interrupted and repeated",
    ),
    "inspect": ("pangu_ms.cli.data:inspect_parser", "show what a directory holds"),
    "losses": (
        "pangu_ms.cli.data:losses_parser",
        "compute the loss of every batch of a finished training round; can be interrupted and repeated",
    ),
    "resample": (
        "pangu_ms.cli.data:resample_parser",
        "draw batches with a high loss for the next round, and write an order file for data.order",
    ),
}
DOMAIN_HELP = (
    "domain of the documents in some files of the corpus, whatever domain they name themselves; FILES is a file, a"
    " pattern in quotes or a directory; may be given several times"
)


def build_parser() -> Parser:
    """The options of all actions."""
    return whole_parser("pangu data", __doc__, ACTIONS)


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    runtime.quiet()
    return run_action("data", __doc__, ACTIONS, argv)


def prepare_parser() -> Parser:
    """The options of `pangu data prepare`."""
    parser = Parser(prog="pangu data prepare", description=ACTIONS["prepare"][1])
    text = "text files (one document each), JSON lines or JSON arrays; may be compressed (.gz, .zst)"
    options.add_corpus(parser, text, required=True)
    options.add_corpus_format(parser)
    parser.add_argument("--domain", action="append", default=[], metavar="NAME=FILES", help=DOMAIN_HELP)
    options.add_tokenizer(parser)
    options.add_new_directory(parser, "--output", "new directory", required=True)
    text = "the model's seq_length; each row has one more id, since labels are the inputs shifted by one"
    parser.add_argument("--seq-length", type=int, default=1024, help=text)
    text = "share of documents to hold out for evaluation"
    parser.add_argument("--held-out", type=float, default=0.02, metavar="SHARE", help=text)
    options.add_num_workers(parser)
    text = "end a document at each blank line, as the official builder does"
    parser.add_argument("--split-paragraphs", action="store_true", help=text)
    options.add_json(parser)
    parser.set_defaults(run=_prepare)
    return parser


def _named_files(word: str) -> tuple[str, str]:
    """Parse NAME=FILES."""
    name, _, named = word.partition("=")
    if not named:
        raise DataError(f"--domain {word}: must be NAME=FILES, for example --domain code='src/*.py'")
    return name, named


def inspect_parser() -> Parser:
    """The options of `pangu data inspect`."""
    parser = Parser(prog="pangu data inspect", description=ACTIONS["inspect"][1])
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory written by `pangu data prepare`")
    parser.add_argument("--rows", type=int, default=2, metavar="N", help="number of rows of each split to decode")
    parser.add_argument("--verify", action="store_true", help="compare every file with its SHA-256")
    options.add_json(parser)
    parser.set_defaults(run=_inspect)
    return parser


def losses_parser() -> Parser:
    """The options of `pangu data losses`."""
    parser = Parser(prog="pangu data losses", description=ACTIONS["losses"][1])
    options.add_checkpoint(parser)
    options.add_overrides(parser)
    text = "the records that the run was trained on; the batches of its first epoch are scored"
    options.add_data(parser, text, required=True)
    text = "new file; during the work, FILE.npz.partial holds the losses computed so far"
    options.add_new_file(parser, "--output", text, required=True, metavar="FILE.npz")
    options.add_batch_size(parser, "rows per batch (default: the run's train.batch_size)", default=None)
    options.add_json(parser)
    parser.set_defaults(run=_losses)
    return parser


def resample_parser() -> Parser:
    """The options of `pangu data resample`."""
    parser = Parser(prog="pangu data resample", description=ACTIONS["resample"][1])
    parser.add_argument("--losses", required=True, metavar="FILE.npz", help="file written by `pangu data losses`")
    options.add_new_file(parser, "--output", "new file", required=True, metavar="ORDER.npz")
    text = "share of the batches to keep, in (0, 1]"
    parser.add_argument("--keep", type=float, default=0.5, metavar="SHARE", help=text)
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw")
    text = "batches are drawn with probability proportional to exp(loss / temperature)"
    parser.add_argument("--temperature", type=float, default=1.0, help=text)
    options.add_json(parser)
    parser.set_defaults(run=_resample)
    return parser


def _prepare(args: Namespace) -> int:
    try:
        manifest = prepare(
            args.corpus,
            args.tokenizer,
            args.output,
            args.seq_length,
            args.held_out,
            args.num_workers,
            args.split_paragraphs,
            progress=not args.json,
            domains=[_named_files(word) for word in args.domain],
            **options.corpus_format(args),
        )
    except KeyboardInterrupt:
        tell(f"pangu data: interrupted; finished blocks are in {args.output}.partial; repeat the same command to go on")
        return INTERRUPTED
    print_result(manifest, "\n".join([f"{args.output}:", *_table(manifest)]), args.json)
    return 0


def _table(manifest: dict[str, Any]) -> list[str]:
    """The manifest as a table."""
    head = ("", "documents", "tokens", "bytes", "rows", "pad")
    rows = []
    for name in SPLITS:
        split = manifest["splits"][name]
        rows.append((name, *_counts(split, "documents", "tokens", "bytes", "rows", "pad_tokens")))
        for domain, counts in split["domains"].items():
            ranged = ("rows",) if "rows" in counts else ()  # an earlier version counted no rows of a domain
            rows.append((f"  {domain}", *_counts(counts, "documents", "tokens", "bytes", *ranged)))
    tokenizer = manifest["tokenizer"][:12]
    lines = [f"  seq_length {manifest['seq_length']}, {manifest['vocab_size']} pieces, tokenizer {tokenizer}"]
    lines += table_lines(head, rows, "<>>>>>", indent="  ")
    if manifest.get("taken"):
        lines.append("  files taken as " + ", ".join(f"{form}: {count}" for form, count in manifest["taken"].items()))
    if manifest["empty"] or manifest["quarantined"]:
        lines.append(
            f"  not taken: {manifest['empty']} empty texts, {manifest['quarantined']} bad lines (quarantine.jsonl)"
        )
    return lines


def _counts(counts: dict[str, int], *names: str) -> list[str]:
    return [f"{counts[name]:,}" for name in names]


def _inspect(args: Namespace) -> int:
    directory, manifest = args.directory, load_manifest(args.directory)
    if args.verify:
        _verify(directory, manifest)
    tokenizer = Tokenizer.load(directory / "tokenizer")
    rows = {}
    for split in SPLITS:
        if manifest["splits"][split]["rows"]:
            rows[split] = _decoded(directory, split, args.rows, tokenizer)
    lines = [f"{directory}:", *_table(manifest)]
    for name, texts in rows.items():
        lines += [f"--- {name} row {number}\n{text}" for number, text in enumerate(texts)]
    if args.verify:
        lines.append(f"{len(manifest['files'])} files verified")
    print_result({"manifest": manifest, "rows": rows, "verified": args.verify}, "\n".join(lines), args.json)
    return 0


def _decoded(directory: Path, split: str, count: int, tokenizer: Tokenizer) -> list[str]:
    if count < 1:
        return []
    records = RecordSet.open(directory, split)
    return [tokenizer.decode(row.tolist()) for row in records.read_rows(range(min(count, records.num_rows)))]


def _losses(args: Namespace) -> int:
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint

    if args.batch_size is not None and args.batch_size < 1:
        raise DataError(f"--batch-size {args.batch_size}: must be at least 1; leave it out for the run's own")
    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    RecordSet.require_declared(args.data, "train", config.model)

    from pangu_ms.eval.batch_losses import batch_losses  # imports MindSpore, which takes seconds

    try:
        found = batch_losses(checkpoint, args.data, args.output, args.batch_size, config, progress=not args.json)
    except KeyboardInterrupt:
        tell(f"pangu data: interrupted; finished losses are in {args.output}.partial; repeat the same command to go on")
        return INTERRUPTED
    count, size = found.rows.shape
    result = {"batches": count, "batch_size": size, "dropped_rows": json.loads(found.made_by)["dropped_rows"]}
    result["mean_loss"] = float(found.loss.mean())
    result |= {"min_loss": float(found.loss.min()), "max_loss": float(found.loss.max())}
    _print_counts(result, args.output, args.json)
    return 0


def _resample(args: Namespace) -> int:
    _print_counts(resample(args.losses, args.keep, args.seed, args.output, args.temperature), args.output, args.json)
    return 0


def _print_counts(result: dict[str, Any], output: Path, as_json: bool) -> None:
    rows = [(name.replace("_", " "), _shown(value)) for name, value in result.items()]
    print_result(result, "\n".join([f"{output}:", *table_lines(None, rows, "<>", indent="  ")]), as_json)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"


def _verify(directory: Path, manifest: dict[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path}: is missing; the manifest lists it; restore it or prepare again")
        if files.sha256_file(path) != expected:
            raise DataError(
                f"{path}: its SHA-256 differs from the manifest's; the file was damaged or changed; restore it or"
                " prepare again"
            )
