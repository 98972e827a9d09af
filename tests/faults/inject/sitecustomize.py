"""Faults for the ranks of a launched job, from outside of the product: Python imports this file in every process that
has its directory on PYTHONPATH.

FAULT is JSON, [{"rank": 2, "at": "step", "step": 5, "do": "sigkill"}, ...]: the deed is done when that rank beats that
phase (of pangu_ms.core.heartbeat) of that step, or with "at": "import" before anything else. Further keys: "times" (how
often in all of the job; default 1, 0: always), "seconds". FAULT_LOG is a file that gets a line of JSON for each deed:
{"time", "rank", "fault" (its number), "phase", "step"}.
"""

import json
import os
import signal
import subprocess
import sys
import time


class Broken(Exception):
    """What `raise` raises; site would swallow an Exception at import, so it is used at beats only."""


def _raise(fault):
    raise Broken("broken on purpose")


def _exit(fault):
    print("about to leave", file=sys.stderr, flush=True)
    raise SystemExit(9)


def _mistake(fault):
    print("light: seq_length=3: must be even; use 4", file=sys.stderr, flush=True)
    raise SystemExit(2)


def _crash(fault):
    import ctypes

    ctypes.string_at(0)


def _memory(fault):
    import resource

    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (96 << 20),) * 2)
    hoard = []
    while True:
        hoard.append(bytearray(8 << 20))


def _hang(fault):
    while True:
        time.sleep(3600)


def _stubborn(fault):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _hang(fault)


def _launcher(number):
    return lambda fault: os.kill(int(os.environ["PANGU_LAUNCHER"]), number)


def _still(fault):
    """The launcher stands still for a while, as on a machine that is too busy."""
    launcher = os.environ["PANGU_LAUNCHER"]
    subprocess.Popen(
        ["/bin/sh", "-c", f"kill -STOP {launcher}; sleep {fault['seconds']}; kill -CONT {launcher}"],
        env={},
        start_new_session=True,
    )


DEEDS = {
    "raise": _raise,
    "exit": _exit,
    "mistake": _mistake,
    "segv": _crash,
    "memory": _memory,
    "hang": _hang,
    "stubborn": _stubborn,
    "sigkill": lambda fault: os.kill(os.getpid(), signal.SIGKILL),
    "sigstop": lambda fault: os.kill(os.getpid(), signal.SIGSTOP),
    "note": lambda fault: None,
    "sleep": lambda fault: time.sleep(fault["seconds"]),
    "talk": lambda fault: print("x" * 20000, flush=True),
    "babble": lambda fault: os.write(1, b"\xff\x00\n\r\x1b[31m no \xc2\x85 end "),
    "daemon": lambda fault: subprocess.Popen(["sleep", "300"], start_new_session=True),
    "launcher_still": _still,
    "launcher_sigkill": _launcher(signal.SIGKILL),
    "launcher_sigterm": _launcher(signal.SIGTERM),
    "launcher_sigint": _launcher(signal.SIGINT),
    "launcher_sigusr1": _launcher(signal.SIGUSR1),
}


def _done(number):
    """How often a fault has been, in this process and those before it."""
    with open(os.environ["FAULT_LOG"], "a+") as log:
        log.seek(0)
        return sum(json.loads(line)["fault"] == number for line in log)


def _commit(phase, step):
    for number, fault in enumerate(FAULTS):
        times = fault.get("times", 1)
        if (
            fault["rank"] != RANK
            or fault["at"] != phase
            or fault.get("step", step) != step
            or times
            and _done(number) >= times
        ):
            continue
        with open(os.environ["FAULT_LOG"], "a") as log:
            log.write(
                json.dumps({"time": time.time(), "rank": RANK, "fault": number, "phase": phase, "step": step}) + "\n"
            )
        DEEDS[fault["do"]](fault)


FAULTS = json.loads(os.environ.get("FAULT", "[]"))
if (
    FAULTS and "RANK_ID" in os.environ and os.environ.get("PANGU_LAUNCHER") == str(os.getppid())
):  # a rank, and not what it starts
    from pangu_ms.core import heartbeat

    RANK, _beat = int(os.environ["RANK_ID"]), heartbeat.beat

    def _beat_and_fail(phase, step=None, **facts):
        _beat(phase, step, **facts)
        _commit(phase, step)

    heartbeat.beat = _beat_and_fail
    _commit("import", None)
