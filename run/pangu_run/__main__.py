import sys

from pangu_ms.core import console, stop_signals
from pangu_run.cli.main import main

if __name__ == "__main__":
    console.guard_streams()
    with stop_signals.command(stops=sys.argv[1:2] == ["launch"]):
        code = main()
    sys.exit(code)
