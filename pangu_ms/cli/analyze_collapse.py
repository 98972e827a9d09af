"""`pangu analyze collapse`: measure how diverse the features of each layer are, to detect feature collapse."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from pangu_ms.checkpoint.model import checkpoint_config
from pangu_ms.checkpoint.store import open_checkpoint
from pangu_ms.cli import options
from pangu_ms.cli.analyze_options import add_analysis
from pangu_ms.core import files, runtime
from pangu_ms.core.console import tell
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.figure import require_plot
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result, table_lines
from pangu_ms.data.records import RecordSet
from pangu_ms.research.analysis.collapse import LayerDiversity
from pangu_ms.research.analysis.plot import plot_collapse

OVERRIDE = re.compile(r"\w+\.[\w.]+=")
TOKENS_PER_DIMENSION = 10
"""With fewer tokens per dimension a warning is printed. On sampled isotropic features (E = 256), d(0.8) comes out 3 %
too low with 100 tokens per dimension, 14 % with 10, and 52 % with 1."""


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu analyze collapse", description=__doc__)
    text = "run directories, their checkpoints directories, or directories of steps; also section.field=value, "
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help=text + options.OVERRIDES_HELP)
    text = "names for the table and the figure, one for each checkpoint (default: the paths)"
    parser.add_argument("--labels", metavar="A,B", help=text)
    text = "share of the variance that the effective dimension must carry"
    parser.add_argument("--share", type=float, default=0.8, help=text)
    plot = "the measures of all checkpoints, layer by layer"
    add_analysis(parser, "to use", plot, "number of batches to measure; 0 takes all")
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    overrides = [word for word in args.checkpoints if OVERRIDE.match(word) and not Path(word).exists()]
    paths = [word for word in args.checkpoints if word not in overrides]
    labels = _labels(args.labels, paths)
    if args.plot:
        require_plot(args.plot)
    runtime.quiet(args.verbose)
    _require_sound(args, paths, overrides)

    from pangu_ms.research.analysis.run import Subject, collapse  # imports MindSpore, which takes seconds

    # All are opened before the first one runs, so that a mistake is found before any work.
    subjects = [Subject.open(path, args.data, args.split, overrides) for path in paths]
    results = []
    for label, subject in zip(labels, subjects):
        measured = collapse(subject, args.batch_size, args.max_batches, args.share, progress=not args.json)
        results.append({"label": label, "checkpoint": str(subject.checkpoint.path)} | measured)
    report = {"data": str(args.data), "split": args.split, "checkpoints": results}
    if args.output:
        files.write_new(args.output, files.json_text(report))
    if args.plot:
        plot_collapse(results, args.plot)
    print_result(report, "\n\n".join(table(result) for result in results), args.json)
    for result in results:
        if result["tokens"] < TOKENS_PER_DIMENSION * result["hidden_size"]:
            tell(f"pangu analyze: {result['label']}: {_few_tokens(result)}")
    return 0


def _require_sound(args: Namespace, paths: list[str], overrides: list[str]) -> None:
    """Raise a UserError for numbers, checkpoints and records that `Subject.open` and `collapse` would refuse later."""
    if args.batch_size < 1 or args.max_batches < 0:
        raise ConfigError(
            f"--batch-size {args.batch_size} --max-batches {args.max_batches}: must be at least 1 and 0; 0 batches"
            " takes all"
        )
    LayerDiversity(1, args.share)  # checks the share
    for path in paths:
        config = checkpoint_config(open_checkpoint(Path(path), digests=False), overrides)
        RecordSet.require_declared(args.data, args.split, config.model, evaluation=True)


def table(result: dict[str, Any]) -> str:
    """The measures of one checkpoint as a table."""
    tokens = f"{result['tokens']:,} tokens in {result['sequences']:,} sequences"
    lines = [
        f"{result['label']}: {result['family']}, hidden_size {result['hidden_size']}, step {result['step']}, {tokens}"
    ]
    head = ("", f"d({result['share']:g})", "token cosine", "distance to rank one", "relative")
    rows = [
        (
            layer["name"],
            f"{layer['effective_dimension']:,}",
            f"{layer['token_cosine']:.4f}",
            f"{layer['rank_one_distance']:,.4g}",
            f"{layer['relative_rank_one_distance']:.4f}",
        )
        for layer in result["layers"]
    ]
    lines += table_lines(head, rows, "<>>>>", indent="  ")
    return "\n".join(lines)


def _labels(given: str | None, paths: list[str]) -> list[str]:
    if not paths:
        raise ConfigError("CHECKPOINT: none given, only overrides: must be at least one; name a run directory")
    labels = given.split(",") if given is not None else paths
    if len(labels) != len(paths) or not all(labels):
        raise ConfigError(
            f"--labels {given}: {len(labels)} for {len(paths)} checkpoints: must be one for each, not empty; separate"
            " them by commas"
        )
    return labels


def _few_tokens(result: dict[str, Any]) -> str:
    advice = f"at least {TOKENS_PER_DIMENSION} per dimension keep d from coming out low; raise --max-batches"
    return f"{result['tokens']:,} tokens for hidden_size {result['hidden_size']}: {advice}"
