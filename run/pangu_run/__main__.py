import sys

from pangu_run.cli import main

if __name__ == "__main__":
    sys.exit(main())
