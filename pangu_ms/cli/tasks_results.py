"""`pangu tasks table` and `pangu tasks compare`: the scores of models, and their differences."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_ms.cli import options
from pangu_ms.core.console import show
from pangu_ms.core.figure import new_figure, require_plot, write_figure
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_json, table_lines

if TYPE_CHECKING:
    from pangu_ms.eval.tasks.results import Results

FORMATS = ("text", "markdown", "csv")
DIRECTORY_HELP = "directory that `pangu tasks run --output` wrote"


def table_parser() -> Parser:
    """The options of `table`."""
    description = """Show the scores of models. With one model published scores stand beside its own; with several, such
    as the checkpoints of a training run, each has a column."""
    parser = Parser(prog="pangu tasks table", description=description)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help=DIRECTORY_HELP)
    _add_format(parser)
    text = (
        "also draw the scores over the models or their training steps into this new file, as .png, .pdf or .svg (needs"
    )
    options.add_new_file(parser, "--plot", f"{text} matplotlib)")
    options.add_json(parser, "results of each directory, as in its results.json")
    parser.set_defaults(run=_table)
    return parser


def compare_parser() -> Parser:
    """The options of `compare`."""
    description = """Compare two models item by item: how much higher the second one's scores are than the first one's.
    Since both answered the same items, the standard error of the difference is smaller than those of the scores."""
    parser = Parser(prog="pangu tasks compare", description=description)
    parser.add_argument("first", type=Path, metavar="A", help=DIRECTORY_HELP)
    parser.add_argument("second", type=Path, metavar="B", help="another one, of the same tasks")
    _add_format(parser)
    options.add_json(parser)
    parser.set_defaults(run=_compare)
    return parser


def _add_format(parser: Parser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="text", help="form of the table")


def _table(args: Namespace) -> int:
    from pangu_ms.eval.tasks.results import HEAD, rows_of, summarize

    if args.plot:
        require_plot(args.plot)
    results = [summarize(directory) for directory in args.directories]
    if args.plot:
        _plot(results, args.directories, args.plot)
    if args.json:
        print_json(results, ensure_ascii=False)
    elif len(results) == 1:
        _print(HEAD, list(rows_of(results[0])), "<>><>>><<", args.format)
    else:
        _print_columns(results, args)
    return 0


def _print_columns(results: "list[Results]", args: Namespace) -> None:
    """A column for each model."""
    from pangu_ms.eval.tasks.results import shown

    found = [_metrics(one) for one in results]
    rows = []
    for key in dict.fromkeys(key for one in found for key in one):
        cells = []
        for one in found:
            metric = one.get(key, {"value": None, "standard_error": None})
            error = metric["standard_error"]
            cells.append(shown(metric["value"]) + (f" +- {shown(error)}" if error is not None else ""))
        rows.append((*key, *cells))
    _print(("task", "shots", "metric", *map(str, args.directories)), rows, "<><" + ">" * len(results), args.format)


def _metrics(results: "Results") -> dict[tuple[str, str, str], dict[str, Any]]:
    """The measures of a model by (task, shots, metric)."""
    found = {}
    for score in results["scores"]:
        for name, metric in score["metrics"].items():
            found[score["task"], str(score["shots"]), name] = metric
    return found


def _print(head: tuple[str, ...], rows: list[tuple[str, ...]], align: str, form: str) -> None:
    from pangu_ms.eval.tasks.results import csv_text, markdown

    if form == "text":
        show("\n".join(table_lines(head, rows, align)))
    else:
        show(markdown(head, rows) if form == "markdown" else csv_text(head, rows))


def _plot(results: "list[Results]", directories: list[Path], path: Path) -> None:
    """A line for each task and metric, with a point and its standard error for each model."""
    steps = [one["model"].get("step") for one in results]
    by_step = None not in steps and len(set(steps)) == len(steps) > 1
    order = sorted(range(len(results)), key=lambda i: steps[i]) if by_step else range(len(results))
    found = [_metrics(results[i]) for i in order]
    places = [steps[i] for i in order] if by_step else list(range(len(results)))
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for key in dict.fromkeys(key for one in found for key in one):
        points = []
        for place, one in zip(places, found):
            if key in one and one[key]["value"] is not None:
                points.append((place, one[key]["value"], one[key]["standard_error"] or 0.0))
        if points:
            task, shots, metric = key
            axes.errorbar(*zip(*points), marker="o", capsize=3, label=f"{task} {shots}-shot {metric}")
    axes.set_ylabel("score")
    if by_step:
        axes.set_xlabel("training step")
    else:
        axes.set_xticks(places, [str(directory) for directory in directories], rotation=20, ha="right")
    axes.legend(fontsize="small")
    write_figure(figure, path)


def _compare(args: Namespace) -> int:
    from pangu_ms.eval.tasks.results import compare, shown

    found = compare(args.first, args.second)
    if args.json:
        print_json(found, ensure_ascii=False)
        return 0
    rows: list[tuple[str, ...]] = []
    for one in found:
        if "reason" in one:
            rows.append((one["section"], one["metric"], one["reason"]))
            continue
        difference, error = one["difference"], one["standard_error"]
        far = f"{difference / error:+.1f}" if error else "-"
        values = [shown(value) for value in one["values"]]
        cells = (f"{one['items']:,}", *values, f"{difference:+.2f} {one['unit']}", shown(error), far)
        rows.append((one["section"], one["metric"], *cells))
    head = ("section", "metric", "items", "A", "B", "B - A", "+-", "errors")
    _print(head, rows, "<<>>>>>>", args.format)
    return 0
