"""One rank as a process of this host: starts it, reads its output and heartbeats, and ends it together with all
processes that it started."""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
import tty
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pangu_ms.core import heartbeat
from pangu_ms.core.isolated import python_command, python_environment
from pangu_run.supervisor import messages, rank
from pangu_run.supervisor.background import BackgroundWorker
from pangu_run.supervisor.logs import RotatingLog
from pangu_run.supervisor.messages import Message
from pangu_run.supervisor.terminal import Terminal

OnMessage = Callable[[Message], None]
READ_BYTES = 1 << 16
"""Bytes of one read: the capacity of a pipe."""
DRAIN_READS = 1000
"""Maximum number of reads from a pipe after its process has ended: processes that it started may hold the pipe open and
continue to write."""


class RankProcess:
    """A running rank. Its output goes to its log and the terminal, heartbeats and the exit code to `on_message`."""

    def __init__(
        self,
        number: int,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log_dir: Path,
        terminal: Terminal | None,
        disk: BackgroundWorker,
        on_message: OnMessage,
    ):
        """Start `python ARGV`; call it where an event loop runs.

        Args:
            number: number of the rank; -1 for MindSpore's scheduler.
            argv: arguments of `python`: ("-m", MODULE, ...) or ("-c", PROGRAM, ...).
            environment: all environment variables of the process.
            log_dir: created if it does not exist.
            terminal: shows the output, beside the log.
            disk: the worker that writes the log.
            on_message: called with {"is": "beat", "rank", "phase", "step", ...} and once with {"is": "exit", "rank",
                "code"}; a code below 0 is a signal.
        """
        self.number, self.on_message, self.terminal, self.disk = number, on_message, terminal, disk
        self.ended = asyncio.Event()
        log_dir.mkdir(parents=True, exist_ok=True)
        self.log, self.stacks = RotatingLog(log_dir / "output.log"), log_dir / "stacks.log"
        self._readers: dict[int, Callable[[bytes], None]] = {}
        self._unfinished_beat = b""
        self._process = self._start(argv, environment)
        # A thread waits for the exit, since kernels before 5.3 have no pidfd for the event loop to watch.
        threading.Thread(target=self._wait, args=(asyncio.get_running_loop(),), daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id of the rank, which is also the id of its process group and session."""
        return self._process.pid

    def signal(self, name: str) -> None:
        """Send a signal to the rank only, not to the processes that it started."""
        if not self.ended.is_set():
            self._process.send_signal(signal.Signals[name])

    def kill(self) -> None:
        """Kill the whole process group of the rank."""
        if not self.ended.is_set():  # after the end, the process id may belong to another process
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def dump_stacks(self) -> None:
        """Make the rank write the stacks of all its threads to `stacks`; does not wait for the result."""
        self.signal(rank.STACKS_SIGNAL.name)

    def _start(self, argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        out, err, beats = os.pipe(), self._terminal_or_pipe(), os.pipe()
        own = {rank.LAUNCHER: str(os.getpid()), rank.STACKS: str(self.stacks), heartbeat.DESCRIPTOR: str(beats[1])}
        try:
            return subprocess.Popen(
                python_command("pangu_run.supervisor.rank", *argv),
                env=python_environment(environment) | own,
                stdin=subprocess.DEVNULL,  # what is typed on the terminal is for the launcher
                stdout=out[1],
                stderr=err[1],
                pass_fds=(beats[1],),
                start_new_session=True,  # Ctrl-C on the terminal reaches ranks only through the launcher
            )
        finally:
            # A pipe ends only when all copies of its other end are closed, so the launcher's copy must not stay open.
            for _, theirs in (out, err, beats):
                os.close(theirs)
            self._add_reader(out[0], lambda content: self._output(content, stdout=True))
            self._add_reader(err[0], lambda content: self._output(content, stdout=False))
            self._add_reader(beats[0], self._read_beats)

    def _terminal_or_pipe(self) -> tuple[int, int]:
        """(our end, the rank's end) of the rank's stderr: a pseudo-terminal for the rank whose output a terminal shows,
        so that it draws a progress bar; else a pipe."""
        if not (self.terminal and self.terminal.is_tty and self.number == self.terminal.stream_rank):
            return os.pipe()
        ours, theirs = os.openpty()
        tty.setraw(theirs)  # raw: the real terminal converts \n to \r\n
        columns, lines = shutil.get_terminal_size()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        return ours, theirs

    def _add_reader(self, descriptor: int, on_content: Callable[[bytes], None]) -> None:
        os.set_blocking(descriptor, False)
        self._readers[descriptor] = on_content
        asyncio.get_running_loop().add_reader(descriptor, self._read, descriptor)

    def _read(self, descriptor: int) -> bool:
        """Read once; returns whether there was any data."""
        try:
            content = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # the other end of the pseudo-terminal is closed
            content = b""
        if content:
            self._readers[descriptor](content)
        else:
            self._close(descriptor)
        return bool(content)

    def _close(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        del self._readers[descriptor]
        os.close(descriptor)

    def _output(self, content: bytes, stdout: bool) -> None:
        # In the background: a disk that stalls must not stop the reading of pipes, on which ranks would block.
        self.disk.submit(lambda: self._write(content), len(content))
        if self.terminal:
            self.terminal.write_output(self.number, content, stdout)

    def _write(self, content: bytes) -> None:
        was_whole = self.log.error is None
        self.log.write(content)
        if was_whole and self.log.error and self.terminal:
            self.terminal.print_line(
                f"{self.log.path}: {self.log.error.strerror}; the rank goes on, and what it writes from here on may be"
                " missing; free some room"
            )

    def _read_beats(self, content: bytes) -> None:
        *lines, self._unfinished_beat = (self._unfinished_beat + content).split(b"\n")
        for line in lines:
            try:
                beat = messages.BEAT.read(json.loads(line))
            except (ValueError, RecursionError):
                continue  # not a heartbeat: a library in the rank wrote to the descriptor
            if beat:
                self.on_message({"is": "beat", "rank": self.number, "pid": self.pid} | beat)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the launcher has ended
            loop.call_soon_threadsafe(self._on_exit, code)

    def _on_exit(self, code: int) -> None:
        self.kill()  # processes that the rank left running in its process group
        for descriptor in list(self._readers):
            reads = 0
            while reads < DRAIN_READS and self._read(descriptor):
                reads += 1
            if descriptor in self._readers:
                self._close(descriptor)
        self.disk.submit(self.log.close)
        self.ended.set()
        self.on_message({"is": "exit", "rank": self.number, "code": code, "time": time.time()})
