"""`python -m ascend_ops.build`, `pangu ops build`: compile the CPU library ahead of time."""

import argparse
import logging
import sys

from ascend_ops import library
from ascend_ops.errors import OperatorError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    parser.add_argument(
        "--level",
        choices=library.LEVELS,
        default=library.cpu_level(),
        help="instructions to compile for; this processor's best",
    )


def run(options: argparse.Namespace) -> int:
    """Build and print the library's path."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(library.build(options.level))
    return 0


def main(argv: list[str] | None = None) -> int:
    """`python -m ascend_ops.build`: compile the CPU library and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m ascend_ops.build",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=main.__doc__,
    )
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except OperatorError as error:
        print(f"ascend_ops.build: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
