"""`python -m pangu_ms.mindformers`; see pangu_ms.cli.mindformers."""

import sys

from pangu_ms.cli.mindformers import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
