"""Start ranks as processes of this machine under MindSpore's scheduler, watch them, leave none behind. No mindspore import.

    LOG_DIR/scheduler.log   what the scheduler wrote
    LOG_DIR/rank_N.log      what rank N wrote, from 1 on; rank 0 has the terminal
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pangu_ms.errors import PlanError
from pangu_ms.train.stop import StopSignal
from run.exit_codes import EXIT_STOPPED

log = logging.getLogger(__name__)

EXIT_PEER_LOST = 70
"""A rank ends with this code where it misses another one: it is not the cause."""
HOST = "127.0.0.1"
SCHEDULER = "import mindspore as ms; ms.set_device('CPU'); ms.communication.init()"  # returns when all ranks have left
START_S, GRACE_S, POLL_S = 60.0, 5.0, 0.05
SHOWN_LINES = 12
_PR_SET_PDEATHSIG = 1
_LISTEN = "0A"  # state in /proc/net/tcp

Process = subprocess.Popen  # of bytes


def run_ranks(command_for_rank: Callable[[int], Sequence[str]], num_ranks: int, log_dir: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run `num_ranks` processes to their end; call it from the main thread.

    SIGTERM and SIGINT are passed on to each rank, which is waited for; a second SIGINT kills them. When a rank fails its last words are logged as an
    error, and the others have GRACE_S seconds to end. Rank 0 has the terminal: of it only a signal is told, and nothing when all end with one code.

    Args:
        command_for_rank: the words of a rank's command.
        environment: variables beside the present ones and those of MindSpore's cluster (MS_ROLE, RANK_ID, ...).

    Returns:
        0, or the exit code of the rank that failed first; 128 + N where signal N killed it; EXIT_STOPPED where a signal came before they started.

    Raises:
        PlanError: MindSpore's scheduler did not start.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    shared = {**_defaults(num_ranks), **os.environ, **(environment or {}), "MS_WORKER_NUM": str(num_ranks), "RANK_SIZE": str(num_ranks), "MS_SCHED_HOST": HOST}
    processes: list[Process] = []
    with StopSignal() as stop:
        try:
            shared["MS_SCHED_PORT"] = _start_scheduler(processes, shared, log_dir / "scheduler.log", stop)
            for rank in range(num_ranks if not stop.received else 0):
                own = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "RANK_ID": str(rank), "DEVICE_ID": str(rank)}
                processes.append(_start(command_for_rank(rank), shared | own, log_dir / f"rank_{rank}.log" if rank else None))
            return _watch(processes[1:], log_dir, stop) if processes[1:] else EXIT_STOPPED
        finally:
            for process in processes:
                process.kill()  # nothing to those that have ended
                process.wait()


def _defaults(num_ranks: int) -> dict[str, str]:
    """What the user's own variables override: the processors shared out, and 1 s instead of 3 to 5 between a rank's tries to join the others."""
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    return {"ASCEND_OPS_NUM_THREADS": str(threads), "MS_RETRY_INTERVAL_LOWER": "1", "MS_RETRY_INTERVAL_UPPER": "1"}


def _start(command: Sequence[str], environment: Mapping[str, str], output: Path | None) -> Process:
    """In a session of its own, so that Ctrl-C on a terminal reaches it once, from here; it dies with this process."""
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with open(output, "ab") if output else contextlib.nullcontext() as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file and subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent, **streams)


def _start_scheduler(processes: list[Process], shared: Mapping[str, str], output: Path, stop: StopSignal) -> str:
    """Start it and wait until it listens: a rank that comes first may wait half a minute before it tries again. Returns the port."""
    for _ in range(3):  # another process may take the port first
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        environment = shared | {"MS_ROLE": "MS_SCHED", "MS_SCHED_PORT": str(port)}
        scheduler = _start([sys.executable, "-c", SCHEDULER], environment, output)
        processes[:] = [scheduler]
        deadline = time.monotonic() + START_S
        while scheduler.poll() is None and time.monotonic() < deadline:
            if stop.received or _listens(scheduler.pid, port):
                return str(port)
            time.sleep(POLL_S)
        scheduler.kill()
    raise PlanError(f"{output}: MindSpore's scheduler did not start: {_last_lines(output)[-1]}; mend what its log says and run the same command again")


def _listens(pid: int, port: int) -> bool:
    """Whether that very process listens on the port."""
    with contextlib.suppress(OSError):  # it ended meanwhile
        own = {os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        return any(row[1].endswith(f":{port:04X}") and row[3] == _LISTEN and f"socket:[{row[9]}]" in own for row in rows[1:])
    return False


def _watch(ranks: list[Process], log_dir: Path, stop: StopSignal) -> int:
    """Wait for the ranks, and end all when one failed; returns what `run_ranks` does."""
    passed_on = False
    while _running(ranks) and not any(rank.returncode for rank in ranks):
        time.sleep(POLL_S)
        if stop.received and not passed_on:
            passed_on = True
            _send(ranks, signal.Signals[stop.received])
    killed = any(rank.returncode and rank.returncode < 0 for rank in ranks)
    _wait(ranks, 0 if killed else GRACE_S)  # a mistake that all make ends each of them by itself
    codes = [rank.returncode for rank in ranks]
    for number in (signal.SIGTERM, signal.SIGKILL):
        _send(ranks, number)
        _wait(ranks, GRACE_S)
    cause = _cause(codes)
    if cause is None:
        return 0
    code = ranks[cause].returncode
    if not stop.received and (cause or code < 0) and len(set(codes)) > 1:  # else rank 0 has said why on the terminal
        log.error("%s", _words(cause, codes[cause], log_dir))
    return code if code > 0 else 128 - code


def _running(ranks: list[Process]) -> list[Process]:
    return [rank for rank in ranks if rank.poll() is None]


def _send(ranks: list[Process], number: int) -> None:
    for rank in _running(ranks):
        rank.send_signal(number)


def _wait(ranks: list[Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _running(ranks) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _cause(codes: Sequence[int | None]) -> int | None:
    """The rank that failed first, as far as can be told: one that was killed, one with an error of its own, one that hangs (None)."""
    kinds = (lambda code: code is not None and code < 0, lambda code: code not in (0, None, EXIT_PEER_LOST), lambda code: code is None, lambda code: code)
    return next((rank for fits in kinds for rank, code in enumerate(codes) if fits(code)), None)


def _words(rank: int, code: int | None, log_dir: Path) -> str:
    how = "did not end with the others" if code is None else f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    path = log_dir / f"rank_{rank}.log"
    return "\n  ".join([f"rank {rank} {how}; the other ranks were ended" + (f"; {path} ends with:" if rank else ""), *(_last_lines(path) if rank else ())])


def _last_lines(path: Path) -> list[str]:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-SHOWN_LINES:] or ["(nothing)"]
