"""One rank as a process of this host: started, listened to, ended with everything that it started."""

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
from typing import Any

from pangu_ms.core import heartbeat
from pangu_ms.core.isolated import python_command, python_environment
from pangu_run.supervisor import messages, rank
from pangu_run.supervisor.background import Aside
from pangu_run.supervisor.logs import RotatingLog
from pangu_run.supervisor.terminal import Terminal

Tell = Callable[[dict[str, Any]], None]
READ_BYTES = 1 << 16
DRAIN_READS = 1000
"""Reads after a process has ended, since what it started may hold the pipe open and go on writing."""


class RankProcess:
    """A running rank. Output goes to its log and the terminal, heartbeats and the exit code to `tell`."""

    def __init__(
        self,
        number: int,
        words: Sequence[str],
        environment: Mapping[str, str],
        log_dir: Path,
        terminal: Terminal | None,
        disk: Aside,
        tell: Tell,
    ):
        """Start `python WORDS`; call it where an event loop runs.

        Args:
            number: of the rank; -1 for MindSpore's scheduler.
            terminal: shows what it says, beside the log.
            disk: writes the log.
            tell: called with {"is": "beat", "rank", "phase", "step", ...} and once with {"is": "exit", "rank", "code"};
                a code below 0 is a signal.
        """
        self.number, self.tell, self.terminal, self.disk, self.ended = number, tell, terminal, disk, asyncio.Event()
        log_dir.mkdir(parents=True, exist_ok=True)
        self.log, self.stacks = RotatingLog(log_dir / "output.log"), log_dir / "stacks.log"
        self._uses: dict[int, Callable[[bytes], None]] = {}
        self._beats = b""
        self._process = self._start(words, environment)
        threading.Thread(
            target=self._wait, args=(asyncio.get_running_loop(),), daemon=True
        ).start()  # kernels before 5.3 have no pidfd

    @property
    def pid(self) -> int:
        """Its process id, also of its group and session."""
        return self._process.pid

    def signal(self, name: str) -> None:
        """Send a signal to the rank alone: what it started belongs to it."""
        if not self.ended.is_set():
            self._process.send_signal(signal.Signals[name])

    def kill(self) -> None:
        """End its whole process group at once."""
        if not self.ended.is_set():  # later the number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def dump_stacks(self) -> None:
        """Have all its threads' stacks written to `stacks`; asynchronous."""
        self.signal(rank.STACKS_SIGNAL.name)

    def _start(self, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
        out, err, heart = os.pipe(), self._terminal_or_pipe(), os.pipe()
        own = {rank.LAUNCHER: str(os.getpid()), rank.STACKS: str(self.stacks), heartbeat.DESCRIPTOR: str(heart[1])}
        command = python_command("pangu_run.supervisor.rank", *words)
        streams = {"stdin": subprocess.DEVNULL, "stdout": out[1], "stderr": err[1]}
        try:  # a session of its own: Ctrl-C on a terminal reaches ranks from the launcher alone
            return subprocess.Popen(
                command,
                env=python_environment(environment) | own,
                pass_fds=(heart[1],),
                start_new_session=True,
                **streams,
            )
        finally:
            for _, theirs in (out, err, heart):
                os.close(theirs)
            self._listen(out[0], lambda content: self._output(content, stdout=True))
            self._listen(err[0], lambda content: self._output(content, stdout=False))
            self._listen(heart[0], self._heard)

    def _terminal_or_pipe(self) -> tuple[int, int]:
        """A terminal for the rank that is streamed to one: its progress bar sees it."""
        if not (self.terminal and self.terminal.is_tty and self.number == self.terminal.stream_rank):
            return os.pipe()
        ours, theirs = os.openpty()
        tty.setraw(theirs)  # the terminal behind it does what is to be done with a line's end
        columns, lines = shutil.get_terminal_size()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        return ours, theirs

    def _listen(self, descriptor: int, use: Callable[[bytes], None]) -> None:
        os.set_blocking(descriptor, False)
        self._uses[descriptor] = use
        asyncio.get_running_loop().add_reader(descriptor, self._read, descriptor)

    def _read(self, descriptor: int) -> bool:
        """Read once; whether there was something."""
        try:
            content = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # a terminal whose other end is closed
            content = b""
        if content:
            self._uses[descriptor](content)
        else:
            self._close(descriptor)
        return bool(content)

    def _close(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        del self._uses[descriptor]
        os.close(descriptor)

    def _output(self, content: bytes, stdout: bool) -> None:
        self.disk.do(lambda: self._write(content), len(content))
        if self.terminal:
            self.terminal.show(self.number, content, stdout)

    def _write(self, content: bytes) -> None:
        whole = self.log.lost is None
        self.log.write(content)
        if whole and self.log.lost and self.terminal:
            self.terminal.tell(
                f"{self.log.path}: {self.log.lost.strerror}; the rank goes on, and what it writes from here on may be"
                " missing; free some room"
            )

    def _heard(self, content: bytes) -> None:
        *lines, self._beats = (self._beats + content).split(b"\n")
        for line in lines:
            try:
                beat = messages.BEAT.read(json.loads(line))
            except (ValueError, RecursionError):
                continue  # a library of the rank wrote into the descriptor: no beat
            if beat:
                self.tell({"is": "beat", "rank": self.number, "pid": self.pid} | beat)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the launcher has ended
            loop.call_soon_threadsafe(self._on_exit, code)

    def _on_exit(self, code: int) -> None:
        self.kill()  # what it left in its group
        for descriptor in list(self._uses):
            reads = 0
            while reads < DRAIN_READS and self._read(descriptor):
                reads += 1
            if descriptor in self._uses:
                self._close(descriptor)
        self.disk.do(self.log.close)
        self.ended.set()
        self.tell({"is": "exit", "rank": self.number, "code": code, "time": time.time()})
