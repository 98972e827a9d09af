"""Child of test_crash.py: saves step after step into argv[1] until it is killed; prints each step that is committed."""

import sys
from pathlib import Path

from tests.checkpoint.common import save

ROWS = 4000  # about 1.5 MB a step, so that kills hit writes too

if __name__ == "__main__":
    root, step = Path(sys.argv[1]), int(sys.argv[2])
    while True:
        for generation in (0, 1):  # the second save replaces the first
            save(root, step, generation, ROWS, keep=2)
            print(step, flush=True)
        step += 1
