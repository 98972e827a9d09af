"""Prepares a rank's process before its program runs: arranges that the process dies with its launcher, binds it to its
cores, installs the handler that dumps its stacks, and sends the first heartbeat.

    python -m pangu_run.supervisor.rank -m MODULE ARGUMENTS    as `python -P -m MODULE ARGUMENTS`
    python -m pangu_run.supervisor.rank -c PROGRAM             as `python -P -c PROGRAM`

-P: nothing is imported from the working directory (see isolated.py).
"""

import ctypes
import faulthandler
import os
import runpy
import signal
import sys

from pangu_ms.core import stop_signals
from pangu_ms.core.heartbeat import START, beat
from pangu_run.job.binding import CORES

LAUNCHER, STACKS = "PANGU_LAUNCHER", "PANGU_STACKS"
"""Environment variables: the process id of the launcher, and the file that stacks are written to."""
STACKS_SIGNAL = signal.SIGUSR2
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Prepare this process, then run the program in it."""
    # First of all: nothing that may take long, or fail, must come before it.
    _die_with(int(os.environ[LAUNCHER]))
    if cores := os.environ.get(CORES):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    stacks = open(os.environ[STACKS], "w")  # stays open: faulthandler writes to the descriptor in a signal handler
    faulthandler.enable()  # a crash in native code writes a stack to the log
    faulthandler.register(STACKS_SIGNAL, stacks, all_threads=True, chain=False)
    beat(START)
    with stop_signals.command(stops=False):
        _run_program(sys.argv[1:])


def _die_with(launcher: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # the launcher died before prctl was called
        os._exit(1)


def _run_program(argv: list[str]) -> None:
    kind, program, *arguments = argv
    if kind == "-m":
        sys.argv = [program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments]
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})


if __name__ == "__main__":
    main()
