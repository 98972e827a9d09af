"""`pangu tasks run`: give tasks to a checkpoint, or to the model of a server; compare its scores with published ones.

Scores of a task are written to OUTPUT/results.json, and a line for each item to OUTPUT/records. The same command goes
on where it was interrupted, and other tasks can be added to the same directory.
"""

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_ms.cli import options, tasks_options
from pangu_ms.cli.evaluated_model import add_model, open_model
from pangu_ms.core import runtime
from pangu_ms.core.console import tell
from pangu_ms.core.parser import Parser, RawHelp
from pangu_ms.core.table import print_result, table_lines

if TYPE_CHECKING:
    from pangu_ms.eval.tasks.results import Results


def build_parser() -> Parser:
    """The action's options."""
    parser = Parser(prog="pangu tasks run", description=__doc__, formatter_class=RawHelp)
    add_model(parser)
    text = "names from `pangu tasks list`, such as c3,tnews or cmnli@figure10; all: every one"
    parser.add_argument("--tasks", required=True, metavar="NAME,...", help=text)
    tasks_options.add_prompts(parser)
    text = "leave out tasks and demonstrations whose data file is missing, instead of stopping before the first one"
    parser.add_argument("--skip-missing", action="store_true", help=text)
    text = "directory for scores and records; the same command goes on in it"
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=text)
    options.add_json(parser, "print results.json")
    options.add_verbose(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(args: Namespace) -> int:
    sections, notes = tasks_options.sections(args, args.tasks, args.skip_missing)
    runtime.quiet(args.verbose)

    from pangu_ms.eval.tasks.model import LocalModel
    from pangu_ms.eval.tasks.run import Run

    model = open_model(args)
    step = model.checkpoint.step if isinstance(model, LocalModel) else None
    for note in notes:
        tell(f"pangu tasks: {note}")
    begin = time.monotonic()
    with Run(args.output, model, sections, step) as run:
        run.ask(progress=not args.json)
        results = run.results()
    if run.asked:
        seconds = time.monotonic() - begin
        tell(f"pangu tasks: {run.asked:,} items in {seconds:,.1f} s, {run.asked / seconds:.1f} a second")
    print_result(results, text_of(results, args.output), args.json)
    return 0


def text_of(results: "Results", output: Path) -> str:
    """Scores for people."""
    from pangu_ms.eval.tasks.results import HEAD, rows_of

    lines = table_lines(HEAD, list(rows_of(results)), "<>><>>><<")
    for score in results["scores"]:
        name = f"{score['task']} {score['shots']}-shot"
        if score["items"] < score["available"]:
            published = any(metric["published"] for metric in score["metrics"].values())
            line = f"{name}: the first {score['items']:,} of {score['available']:,} items"
            lines.append(line + ("; published scores are of all" if published else ""))
        if score["cut_items"]:
            lines.append(
                f"{name}: the window has no room for {score['cut_items']:,} texts; {score['cut_tokens']:,} tokens were"
                " cut off"
            )
        if score["dropped_shots"]:
            lines.append(
                f"{name}: {score['mean_shots']:.1f} demonstrations on average; the window has no room for more"
            )
        if score["unlabelled"]:
            lines.append(
                f"{name}: {score['unlabelled']:,} items have no right answer; predictions are in {output}/submissions"
            )
    return "\n".join([*lines, f"{output}/results.json"])
