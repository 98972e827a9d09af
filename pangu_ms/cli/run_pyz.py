"""Entry of a package's run.pyz: the package is the directory that it lies in. Nothing is imported here that may be
missing."""

import shlex
import sys
from pathlib import Path


def entry() -> int:
    """Run the package; a Python package that is not installed is one line."""
    package = Path(sys.argv[0]).resolve().parent
    try:
        from pangu_ms.cli.run_mindir import main
        from pangu_ms.core.console import guard_streams, guarded

        guard_streams()
        return guarded("run.pyz", lambda: main(sys.argv[1:], str(package)))
    except ModuleNotFoundError as error:
        needed = shlex.quote(str(package / "requirements.txt"))
        print(
            f"run.pyz: the Python package {error.name} is not installed; install what this package needs: pip install"
            f" -r {needed}",
            file=sys.stderr,
        )
        return 2
