"""The options that all studies with training share, and the function that runs a study."""

import functools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pangu_ms.cli import options
from pangu_ms.core import runtime
from pangu_ms.core.console import tell
from pangu_ms.core.errors import ConfigError
from pangu_ms.core.exit_codes import EXIT_STOPPED
from pangu_ms.core.figure import require_plot
from pangu_ms.core.parser import Parser
from pangu_ms.core.table import print_result
from pangu_ms.research.study.runs import StudyStopped

Results = dict[str, Any]


def add_study(
    parser: Parser,
    study: Callable[[Namespace], Callable[[], Results]],
    table: Callable[[Results], str],
    plot: Callable[[Results, Path], None],
) -> None:
    """Add the options that every study has, and set the function that runs the study.

    Args:
        parser: a parser that already has the study's own options.
        study: checks the parsed options, and returns a function that trains, compares and returns the results.
        table: formats the results as text.
        plot: draws the results into a file.
    """
    text = "directory of the study, for runs, logs and results.json"
    parser.add_argument("--output", required=True, metavar="DIR", help=text)
    text = "repeat the study's training with each of these values of train.seed and data.seed"
    parser.add_argument("--seeds", default="1,2,3", metavar="N,...", help=text)
    text = "also draw the results into this new file, as .png, .pdf or .svg (needs matplotlib)"
    options.add_new_file(parser, "--plot", text)
    options.add_json(parser, "print the results as JSON")
    parser.set_defaults(run=functools.partial(_run, study, table, plot))


def _run(
    study: Callable[[Namespace], Callable[[], Results]],
    table: Callable[[Results], str],
    plot: Callable[[Results, Path], None],
    args: Namespace,
) -> int:
    """Run a study, and print and plot its results as the options say. After a signal, the same command resumes the
    study."""
    if args.plot:  # a plot that cannot be drawn is reported now, not after hours of training
        require_plot(args.plot)
    runtime.quiet()
    run = study(args)
    try:
        results = run()
    except StudyStopped as stopped:
        tell(f"stopped by {stopped}; the same command goes on")
        return EXIT_STOPPED
    if args.plot:
        plot(results, args.plot)
    print_result(results, table(results), args.json)
    return 0


def parse_seeds(text: str) -> list[int]:
    """Parse a list such as "1,2,3".

    Raises:
        ConfigError: the text has another form.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text}: must be whole numbers separated by commas, such as 1,2,3") from None
