"""Death of a process before its n-th operation on the disk."""

import os
import sys
from collections.abc import Callable

DISK_EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")


def _die_before(event_number: int) -> None:
    """End this process, with no clean-up, before its n-th operation on the disk."""
    count = 0

    def count_down(event: str, *_) -> None:
        nonlocal count
        if event in DISK_EVENTS:
            count += 1
            if count == event_number:
                os._exit(9)

    sys.addaudithook(count_down)
    fsync = os.fsync
    os.fsync = lambda descriptor: (count_down("open"), fsync(descriptor))


def lives(event_number: int, work: Callable[[], object]) -> bool:
    """Work in a child that dies before its n-th disk operation; True if it lived to the end."""
    child = os.fork()
    if child == 0:
        try:
            _die_before(event_number)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0
