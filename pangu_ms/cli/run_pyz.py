"""Entry of a package's run.pyz, which runs the package in whose directory it lies. Only the standard library is
imported at the top, so that a missing Python package can be reported."""

import shlex
import sys
from pathlib import Path


def entry() -> int:
    """Run the package; returns the exit code. A Python package that is not installed is reported in one line."""
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
