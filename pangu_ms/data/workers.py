"""Processes that call functions for this one. No mindspore import.

Not those of `multiprocessing`: they begin with `python -c`, which imports from the working directory first
(`isolated.py` says why that must not be), and they import the caller's main program again.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from pangu_ms.core.isolated import python_command, python_environment


class WorkerDied(Exception):
    """A worker ended before it had answered."""


class Workers:
    """A pool of processes; use it as a context: at its end, or with this process, they end."""

    def __init__(self, number: int, start: Callable[..., None] | None = None, *arguments: Any):
        """Nothing is started yet.

        Args:
            number: of processes at most.
            start: what each calls first, with `arguments`; picklable.
        """
        self._first, self._processes = (start, arguments), []
        self._closing, self._lock = False, threading.Lock()
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(number)  # one waits for each process

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closing = True  # a thread that is about to start a process must not: nobody would kill it
        for process in self._processes:
            process.kill()  # what it writes is whole or not there
        self._threads.shutdown()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """The result of a picklable function of an importable module, called in a worker; its exception is raised here.

        Raises (by the future):
            WorkerDied: the process ended in it.
        """
        return self._threads.submit(self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple) -> Any:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start()
        result = _ask(process, function, arguments)
        self._idle.put(process)
        return result

    def _start(self) -> subprocess.Popen:
        command = python_command(__name__)
        with self._lock:
            if self._closing:
                raise WorkerDied("the pool is closed")
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_environment())
            self._processes.append(process)
        function, arguments = self._first
        if function:
            _ask(process, function, arguments)
        return process


def _ask(process: subprocess.Popen, function: Callable[..., Any], arguments: tuple) -> Any:
    try:
        pickle.dump((function, arguments), process.stdin)
        process.stdin.flush()
        result, error = pickle.load(process.stdout)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
        raise WorkerDied(f"process {process.pid} ended before it had answered") from error
    if error:
        raise error
    return result


def main() -> None:
    """A worker: answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    asked, answers = queue.SimpleQueue(), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), asked), daemon=True).start()
    while True:
        function, arguments = asked.get()
        try:
            answer = function(*arguments), None
        except Exception as error:  # raised by the parent
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()


def _read(pipe: IO[bytes], asked: queue.SimpleQueue) -> None:
    """Pass on what is asked; at the end of the pipe the parent has no more use for this process, or is gone, by kill -9
    too."""
    while True:
        try:
            asked.put(pickle.load(pipe))
        except EOFError:
            os._exit(0)
        except Exception as error:  # a module that is not here
            asked.put((_raise, (error,)))


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    sys.exit(main())
