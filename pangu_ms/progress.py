"""Progress bars: a live line on a terminal, a line now and then in a log file."""

import sys
from typing import Any

from pangu_run.console import raw

LOG_INTERVAL_S = 20.0


def progress_bar(enabled: bool = True, **options: Any) -> Any:
    """A tqdm bar on stderr (its arguments in `options`)."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else LOG_INTERVAL_S
    return tqdm(file=raw(sys.stderr), disable=not enabled, mininterval=interval, maxinterval=interval, dynamic_ncols=True, **options)
