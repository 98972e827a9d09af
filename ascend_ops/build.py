"""`python -m ascend_ops.build`: compile the CPU library ahead of time, as `pangu ops build` does."""

import argparse
import logging
import sys

from ascend_ops import library
from ascend_ops.errors import OperatorError


def main(argv: list[str] | None = None) -> int:
    """Compile the CPU library and print its path."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m ascend_ops.build", formatter_class=formatter, description=__doc__)
    text = "instructions to compile for; this processor's best"
    parser.add_argument("--level", choices=library.LEVELS, default=library.cpu_level(), help=text)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        print(library.build(parser.parse_args(argv).level))
    except OperatorError as error:
        print(f"ascend_ops.build: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
