"""`pangu data prepare|inspect|losses|resample`."""

import argparse
import json
from pathlib import Path

from pangu_ms.cli.config import add_override_arguments
from pangu_ms.core import files, runtime
from pangu_ms.core.console import show, tell
from pangu_ms.core.errors import DataError
from pangu_ms.core.parser import NewDirectory, NewFile, Parser
from pangu_ms.data.corpus import add_corpus_options, corpus_options
from pangu_ms.data.pack import SPLITS
from pangu_ms.data.prepare import prepare
from pangu_ms.data.records import RecordSet, load_manifest
from pangu_ms.data.resample import resample
from pangu_ms.data.tokenizer import Tokenizer

INTERRUPTED = 130  # 128 + SIGINT


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides behind an option, which argparse does not see in a subcommand
        args.overrides = [*args.overrides, *rest]
    runtime.quiet()
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="pangu data")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    shape = argparse.ArgumentDefaultsHelpFormatter
    summary = "encode a corpus and write it as MindRecord rows; can be interrupted and repeated"
    make = verbs.add_parser("prepare", help=summary, description=summary, formatter_class=shape)
    needed = {"required": True, "default": argparse.SUPPRESS}  # no "(default: None)" in the help
    make.add_argument(
        "--corpus",
        nargs="+",
        **needed,
        metavar="FILE",
        help="text (one document each), JSON lines or arrays; .gz or .zst too",
    )
    add_corpus_options(make)
    make.add_argument("--tokenizer", **needed, metavar="PATH", help="tokenizer directory or released vocab.model")
    make.add_argument("--output", action=NewDirectory, **needed, metavar="DIR", help="new directory")
    make.add_argument("--seq-length", type=int, default=1024, help="the model's seq_length; rows have one id more")
    make.add_argument(
        "--held-out", type=float, default=0.02, metavar="SHARE", help="share of documents put aside for evaluation"
    )
    make.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="encoding processes (default: one per core)",
        default=argparse.SUPPRESS,
    )
    make.add_argument(
        "--split-paragraphs", action="store_true", help="a blank line ends a document, as in the official builder"
    )
    make.set_defaults(run=_prepare)
    show = verbs.add_parser("inspect", help="show what a directory holds", formatter_class=shape)
    show.add_argument("directory", metavar="DIR", help="written by `pangu data prepare`")
    show.add_argument("--rows", type=int, default=2, metavar="N", help="rows of each split to decode")
    show.add_argument("--verify", action="store_true", help="compare every file with its SHA-256")
    show.set_defaults(run=_inspect)
    score = "the loss of every batch of a finished round under its checkpoint; can be interrupted and repeated"
    losses = verbs.add_parser("losses", help=score, description=score, formatter_class=shape)
    losses.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run directory, its checkpoints directory, or one step of it"
    )
    add_override_arguments(losses)
    losses.add_argument(
        "--data",
        **needed,
        metavar="RECORDS",
        help="what the run was trained on; its first epoch is cut into batches again",
    )
    partial = "new file; while the work lasts, FILE.npz.partial holds what is finished"
    losses.add_argument("--output", action=NewFile, **needed, metavar="FILE.npz", help=partial)
    losses.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="rows in a batch (default: the run's train.batch_size)",
        default=argparse.SUPPRESS,
    )
    losses.set_defaults(run=_losses)
    draw = "draw batches with a high loss for the next round, and write an order file for data.order"
    again = verbs.add_parser("resample", help=draw, description=draw, formatter_class=shape)
    again.add_argument("--losses", **needed, metavar="FILE.npz", help="written by `pangu data losses`")
    again.add_argument("--output", action=NewFile, **needed, metavar="ORDER.npz", help="new file")
    again.add_argument(
        "--keep", type=float, default=0.5, metavar="SHARE", help="share of the batches to keep, in (0, 1]"
    )
    again.add_argument("--seed", type=int, default=1, help="of the draw")
    again.add_argument(
        "--temperature", type=float, default=1.0, help="batches are drawn in proportion to exp(loss / temperature)"
    )
    again.set_defaults(run=_resample)
    for verb in (make, show, losses, again):
        verb.add_argument("--json", action="store_true", help="machine-readable output")
    return parser


def _prepare(args: argparse.Namespace) -> int:
    workers = getattr(args, "num_workers", None)
    try:
        manifest = prepare(
            args.corpus,
            args.tokenizer,
            args.output,
            args.seq_length,
            args.held_out,
            workers,
            args.split_paragraphs,
            progress=not args.json,
            **corpus_options(args),
        )
    except KeyboardInterrupt:
        tell(f"pangu data: interrupted; finished blocks are in {args.output}.partial; repeat the same command to go on")
        return INTERRUPTED
    show(json.dumps(manifest) if args.json else "\n".join([f"{args.output}:", *_table(manifest)]))
    return 0


def _table(manifest: dict) -> list[str]:
    """The manifest for the eye."""
    lines = [
        f"  seq_length {manifest['seq_length']}, {manifest['vocab_size']} pieces, tokenizer"
        f" {manifest['tokenizer'][:12]}"
    ]
    lines.append(f"  {'':<20}{'documents':>12}{'tokens':>16}{'bytes':>16}{'rows':>10}{'pad':>8}")
    for name in SPLITS:
        split = manifest["splits"][name]
        lines.append(
            f"  {name:<20}{split['documents']:>12,}{split['tokens']:>16,}{split['bytes']:>16,}{split['rows']:>10,}{split['pad_tokens']:>8,}"
        )
        for domain, counts in split["domains"].items():
            lines.append(f"    {domain:<18}{counts['documents']:>12,}{counts['tokens']:>16,}{counts['bytes']:>16,}")
    if manifest.get("taken"):
        lines.append("  files taken as " + ", ".join(f"{form}: {count}" for form, count in manifest["taken"].items()))
    if manifest["empty"] or manifest["quarantined"]:
        lines.append(
            f"  not taken: {manifest['empty']} empty texts, {manifest['quarantined']} bad lines (quarantine.jsonl)"
        )
    return lines


def _inspect(args: argparse.Namespace) -> int:
    directory = Path(args.directory)
    manifest = load_manifest(directory)
    if args.verify:
        _verify(directory, manifest)
    tokenizer = Tokenizer.load(directory / "tokenizer")
    rows = {
        name: _decoded(directory, name, args.rows, tokenizer) for name in SPLITS if manifest["splits"][name]["rows"]
    }
    if args.json:
        print(json.dumps({"manifest": manifest, "rows": rows, "verified": args.verify}))
        return 0
    show("\n".join([f"{directory}:", *_table(manifest)]))
    for name, texts in rows.items():
        for number, text in enumerate(texts):
            show(f"--- {name} row {number}\n{text}")
    if args.verify:
        print(f"{len(manifest['files'])} files verified")
    return 0


def _decoded(directory: Path, split: str, count: int, tokenizer: Tokenizer) -> list[str]:
    if count < 1:
        return []
    records = RecordSet.open(directory, split)
    return [tokenizer.decode(row.tolist()) for row in records.read_rows(range(min(count, records.num_rows)))]


def _losses(args: argparse.Namespace) -> int:
    from pangu_ms.checkpoint.model import checkpoint_config
    from pangu_ms.checkpoint.store import open_checkpoint

    if (batch_size := getattr(args, "batch_size", 1)) < 1:
        raise DataError(f"--batch-size {batch_size}: must be at least 1; leave it out for the run's own")
    checkpoint = open_checkpoint(args.checkpoint)
    config = checkpoint_config(checkpoint, args.overrides)
    RecordSet.require_declared(args.data, "train", config.model)

    from pangu_ms.eval.batch_losses import batch_losses  # with MindSpore, which takes seconds

    try:
        found = batch_losses(
            checkpoint, args.data, args.output, getattr(args, "batch_size", None), config, progress=not args.json
        )
    except KeyboardInterrupt:
        tell(f"pangu data: interrupted; finished losses are in {args.output}.partial; repeat the same command to go on")
        return INTERRUPTED
    count, size = found.rows.shape
    result = {"batches": count, "batch_size": size, "dropped_rows": json.loads(found.made_by)["dropped_rows"]}
    result |= {
        "mean_loss": float(found.loss.mean()),
        "min_loss": float(found.loss.min()),
        "max_loss": float(found.loss.max()),
    }
    _print_result(result, args)
    return 0


def _resample(args: argparse.Namespace) -> int:
    _print_result(resample(args.losses, args.keep, args.seed, args.output, args.temperature), args)
    return 0


def _print_result(result: dict, args: argparse.Namespace) -> None:
    """One line of JSON, or a table."""
    if args.json:
        print(json.dumps(result))
        return
    shown = {
        name: f"{value:,.6g}" if isinstance(value, float) else "-" if value is None else f"{value:,}"
        for name, value in result.items()
    }
    show("\n".join([f"{args.output}:", *(f"  {name.replace('_', ' '):<20}{text:>14}" for name, text in shown.items())]))


def _verify(directory: Path, manifest: dict) -> None:
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path}: is missing; the manifest lists it; restore it or prepare again")
        if files.sha256_file(path) != expected:
            raise DataError(
                f"{path}: its SHA-256 differs from the manifest's; the file was damaged or changed; restore it or"
                " prepare again"
            )
