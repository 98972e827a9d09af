"""A pool of worker processes that call functions on behalf of this process. No mindspore import.

`multiprocessing` is not used: its processes start with `python -c`, which imports from the working directory first
(core/isolated.py explains why that must not happen), and they import the caller's main program again.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NoReturn

from pangu_ms.core.isolated import python_command, python_environment

Request = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments, as they are sent to a worker."""


class WorkerDied(Exception):
    """A worker process ended before it answered."""


class Workers:
    """A pool of processes, as a context manager. The processes end with the context, or when this process ends."""

    def __init__(self, number: int, start: Callable[..., None] | None = None, *arguments: Any):
        """Make an empty pool. A process is started when a call finds no idle one.

        Args:
            number: largest number of processes.
            start: picklable function that each process calls first, with `arguments`.
        """
        self._first = (start, arguments)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._closing, self._lock = False, threading.Lock()
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(number)  # one thread waits for each process

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closing = True  # a thread must not start a process after this: the loop below would miss it
        for process in self._processes:
            process.kill()  # safe, since workers write files atomically
        self._threads.shutdown()
        for process in self._processes:
            process.wait()
            for pipe in _pipes(process):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Call a function in a worker.

        Args:
            function: a picklable function of a module that the worker can import.
            arguments: picklable.

        Returns:
            A future with the function's result or its exception; the exception is WorkerDied if the process ended
            during the call.
        """
        return self._threads.submit(self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple) -> Any:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._start()
        result = _request(process, function, arguments)
        self._idle.put(process)
        return result

    def _start(self) -> subprocess.Popen[bytes]:
        command = python_command(__name__)
        with self._lock:
            if self._closing:
                raise WorkerDied("the pool is closed")
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_environment())
            self._processes.append(process)
        function, arguments = self._first
        if function:
            _request(process, function, arguments)
        return process


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    """The worker's standard input and output."""
    assert process.stdin and process.stdout, "_start makes pipes of both"
    return process.stdin, process.stdout


def _request(process: subprocess.Popen[bytes], function: Callable[..., Any], arguments: tuple) -> Any:
    """Run one call in a worker and return its result; an exception of the function is raised here.

    Raises:
        WorkerDied: the process ended before it had answered.
    """
    requests, answers = _pipes(process)
    try:
        pickle.dump((function, arguments), requests)
        requests.flush()
        result, raised = pickle.load(answers)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
        raise WorkerDied(f"process {process.pid} ended before it had answered") from error
    if raised:
        raise raised
    return result


def main() -> NoReturn:
    """Run as a worker: answer requests from stdin on stdout until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends the workers
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints to stdout goes to stderr, so that it does not corrupt the answers
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), requests), daemon=True).start()
    while True:
        function, arguments = requests.get()
        answer: tuple[Any, Exception | None]
        try:
            answer = function(*arguments), None
        except Exception as error:  # the parent raises it
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()


def _read(pipe: IO[bytes], requests: "queue.SimpleQueue[Request]") -> None:
    """Queue the requests of the parent; end this process when the pipe ends.

    The pipe ends when the parent needs no more answers, or when the parent has died, even by kill -9.
    """
    while True:
        try:
            requests.put(pickle.load(pipe))
        except EOFError:
            os._exit(0)
        except Exception as error:  # the request names a module that cannot be imported here
            requests.put((_raise, (error,)))


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    main()
