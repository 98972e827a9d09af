"""This host's clock, compared with the file system's and the network's."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pangu_run.doctor import npu
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site
from pangu_run.doctor.storage import doctor_directory

LARGE_S, WRONG_S = 2.0, 60.0
"""If clocks differ by more than LARGE_S seconds, the logs of hosts cannot be put in order. If they differ by more than
WRONG_S, files seem to come from the future, and signed requests are refused."""


def skew(directory: Path) -> tuple[float, float]:
    """Number of seconds by which this host's clock is ahead of the file system's clock (the time of a file just
    written), and the uncertainty of that number."""
    probe = directory / f".clock_{uuid.uuid4().hex[:8]}"
    try:
        before = time.time()
        probe.write_bytes(b"tick")
        stamp, after = probe.stat().st_mtime, time.time()
    finally:
        probe.unlink(missing_ok=True)
    # The file was written at some time between the two.
    return (before + after) / 2 - stamp, (after - before) / 2


def skew_line(what: str, seconds: float, against: str) -> Line:
    """A line on the difference between this host's clock and another one."""
    found = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} {against}"
    if abs(seconds) > LARGE_S:
        return (fail if abs(seconds) > WRONG_S else warn)(
            what, found, "let chrony or ntpd set all clocks from one server: `chronyc makestep`"
        )
    return ok(what, f"within {max(abs(seconds), 0.1):.1f} s of {against}")


def file_clock(site: Site) -> Iterator[Line]:
    """This host's clock against that of the output directory's file system."""
    where = doctor_directory(site)
    if where is None or not where.is_dir():
        return
    seconds, uncertainty = skew(where)
    yield skew_line(
        "clock", max(abs(seconds) - uncertainty, 0.0) * (1 if seconds > 0 else -1), "the file system's clock"
    )


def network_time(site: Site) -> Iterator[Line]:
    """Whether a time service sets the clock: chrony, or any that timedatectl knows."""
    chrony = site.tool("chronyc", "-n", "tracking")
    if not chrony.problem:
        leap, apart = npu.value(chrony.text, "Leap status"), npu.value(chrony.text, "System time")
        if leap == "Not synchronised":
            yield warn(
                "network time",
                "chrony is not synchronised",
                "`chronyc sources` shows why; name a server in /etc/chrony.conf",
            )
        else:
            yield ok("network time", f"chrony: {apart or leap}")
        return
    control = site.tool("timedatectl", "show", "-p", "NTPSynchronized")
    synchronized = npu.value(control.text, "NTPSynchronized")
    if not control.problem and synchronized == "yes":
        yield ok("network time", "synchronised")
    elif not control.problem and synchronized == "no":
        yield warn("network time", "not synchronised", "`timedatectl set-ntp true`, or install chrony")
    elif site.num_servers > 1:
        problem = chrony.problem if control.missing else control.problem
        yield warn(
            "network time", f"not known: {problem}", "see on the host (not its container) that chrony or ntpd runs"
        )
    else:
        yield ok("network time", "not known; of no weight on one host")


CHECKS = (file_clock, network_time)
