"""Heartbeats: at each change of phase a rank tells its launcher the phase and the step, by a line of JSON through a
pipe. The rank never waits for the launcher, and writes nothing to disk.

In a process that no launcher started, `beat` does nothing.
"""

import functools
import json
import os
import time

DESCRIPTOR = "PANGU_HEART"
"""Variable with the file descriptor of the pipe to the launcher, which this rank inherits."""

START, INIT, DATA, STEP, SAVE, EVALUATE, WAIT = "start", "init", "data", "step", "save", "evaluate", "wait"
"""Phases: before the program begins, building and loading the model, reading a batch, computing it (the first one also
compiles), saving, evaluating, waiting for other ranks. A rank that waits is not the one that hangs."""
PHASES = (START, INIT, DATA, STEP, SAVE, EVALUATE, WAIT)


def beat(phase: str, step: int | None = None, **facts: float | int | str) -> None:
    """Tell the launcher that this process enters a phase.

    Args:
        phase: one of PHASES.
        step: optimizer steps done since the run began; None where no run has begun.
        facts: further fields for the launcher, such as tokens_per_second of all ranks, or saved=STEP after a commit.
    """
    assert phase in PHASES, phase
    if (pipe := _pipe()) is None:
        return
    line = json.dumps({"phase": phase, "step": step, "time": time.time(), **facts}) + "\n"
    try:
        os.write(pipe, line.encode())  # shorter than PIPE_BUF, so it is written whole or not at all
    except BlockingIOError:
        pass  # the pipe is full: the launcher is busy, and knows enough from the heartbeats before
    except BrokenPipeError:
        pass  # the launcher is gone, and the kernel is about to kill this process


@functools.cache
def _pipe() -> int | None:
    number = os.environ.get(DESCRIPTOR)
    if number is None:
        return None
    os.set_blocking(int(number), False)
    os.set_inheritable(int(number), False)  # a child of this process must not send heartbeats in its name
    return int(number)
