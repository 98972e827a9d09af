"""What a rank tells its launcher: which phase of which step it is in. One line of JSON through a pipe for each change;
nothing on disk, no waiting.

A rank that no launcher started beats into nothing.
"""

import functools
import json
import os
import time

DESCRIPTOR = "PANGU_HEART"
"""Variable with the number of the pipe that the launcher left open for this rank."""

START, INIT, DATA, STEP, SAVE, EVALUATE, WAIT = "start", "init", "data", "step", "save", "evaluate", "wait"
"""Phases: before the program's first words, building and loading, reading a batch, computing it (compiling the first),
saving, evaluating, waiting for other ranks. Who waits is not who hangs."""
PHASES = (START, INIT, DATA, STEP, SAVE, EVALUATE, WAIT)


def beat(phase: str, step: int | None = None, **facts: float | int | str) -> None:
    """Say that this process enters a phase.

    Args:
        phase: one of PHASES.
        step: optimizer steps done since the run began; None where no run has begun.
        facts: what else the launcher should know, such as tokens_per_second of all ranks, or saved=STEP after a commit.
    """
    assert phase in PHASES, phase
    if (pipe := _pipe()) is None:
        return
    line = json.dumps({"phase": phase, "step": step, "time": time.time(), **facts}) + "\n"
    try:
        os.write(pipe, line.encode())  # below PIPE_BUF: whole or not at all
    except BlockingIOError:
        pass  # the launcher is busy and knows enough from the beats before: no rank waits for it
    except BrokenPipeError:
        pass  # the launcher is gone; this process is about to be ended


@functools.cache
def _pipe() -> int | None:
    number = os.environ.get(DESCRIPTOR)
    if number is None:
        return None
    os.set_blocking(int(number), False)
    os.set_inheritable(int(number), False)  # children of this process are not the rank
    return int(number)
