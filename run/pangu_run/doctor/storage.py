"""Checks of the disk of the output directory: free space, speed, limits, whether a rename is atomic, and whether hosts
share it."""

import os
import resource
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pangu_ms.core.size_text import size_text
from pangu_run import job_directory
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site

LEAST_ROOM, LITTLE_ROOM = 1 << 30, {"cpu": 10 << 30, "ascend": 200 << 30}
"""Bytes that must be free, and bytes that should be free. A checkpoint of weights and moments in float32 takes 12 bytes
per parameter (31 GB for 2.6 B parameters), and two exist while the second one is written."""
LEAST_INODES = 10_000
PROBE_BYTES, SLOW = 64 << 20, 100e6
"""Bytes that are written to measure the speed, and bytes per second below which that checkpoint takes more than five
minutes."""
SHORT_FILES = {"vfat": 4 << 30, "msdos": 4 << 30}
"""Maximum size of a file, in bytes, on file systems that limit it."""
FLEETING = ("tmpfs", "ramfs", "overlay")
COPY_ON_RENAME = ("s3fs", "obsfs", "goofys", "rclone", "ossfs")
"""File systems on top of object stores: there a rename copies and deletes, so a reader may see an incomplete file."""
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "vfat", *FLEETING)


def doctor_directory(site: Site) -> Path | None:
    """Directory to which the doctor on each host of a job writes a file."""
    return site.output / job_directory.NAME / "doctor" if site.output else None


def mount_of(site: Site, path: Path) -> tuple[str, str]:
    """Mount point and file-system type of a path."""
    rows = [line.split(" - ") for line in (site.read("/proc/self/mountinfo") or "").splitlines() if " - " in line]
    mounts = [(left.split()[4].replace("\\040", " "), right.split()[0]) for left, right in rows]
    # If two file systems have the same mount point, the later one counts.
    above = [mount for mount in reversed(mounts) if path.is_relative_to(mount[0])]
    return max(above, key=lambda mount: len(mount[0]), default=("/", "unknown"))


def directory(site: Site) -> Iterator[Line]:
    """Whether the output directory can be written fast and atomically, and has space for checkpoints."""
    where = doctor_directory(site)
    if where is None:
        yield ok("output", "not looked at; --output DIR checks the disk of checkpoints")
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
        room = os.statvfs(where)
    except OSError as error:
        yield fail(
            "output",
            f"{error.filename or where}: {error.strerror}",
            "name a directory that this user may write, or mend its rights",
        )
        return
    yield from _kind(site, where)
    yield from _room(site, room.f_bavail * room.f_frsize)
    yield from _limits(room.f_files, room.f_favail)
    if room.f_bavail * room.f_frsize > 4 * PROBE_BYTES:
        yield from _writes(where)


def _kind(site: Site, where: Path) -> Iterator[Line]:
    mount, kind = mount_of(site, where.resolve())
    if kind in FLEETING:
        yield warn(
            "file system",
            f"{kind} at {mount}: gone with the container or at the next start",
            "name an --output on a disk that stays",
        )
    elif any(name in kind for name in COPY_ON_RENAME):
        found = f"{kind} at {mount}: a rename copies, and a reader may see half a file"
        yield warn("file system", found, "write to a POSIX file system, copy to the store after")
    elif site.num_servers > 1 and kind in LOCAL:
        yield warn(
            "file system",
            f"{kind} at {mount}: local, unless this host exports it",
            "name an --output on a file system that all servers share",
        )
    else:
        yield ok("file system", f"{kind} at {mount}")
    if kind in SHORT_FILES:
        yield fail(
            "largest file",
            f"{size_text(SHORT_FILES[kind])} on {kind}",
            "name an --output on ext4, xfs or a cluster's file system",
        )


def _room(site: Site, free: int) -> Iterator[Line]:
    little = LITTLE_ROOM[site.device]
    if free < LEAST_ROOM:
        yield fail("disk room", f"{size_text(free)} free", "free some, or name another --output")
    elif free < little:
        fix = "a checkpoint takes 12 bytes a parameter, and two are there for a moment: see that it is enough"
        yield warn("disk room", f"{size_text(free)} free; less than {size_text(little)}", fix)
    else:
        yield ok("disk room", f"{size_text(free)} free")


def _limits(inodes: int, free: int) -> Iterator[Line]:
    if inodes and free < LEAST_INODES:  # a total of 0 means that the file system creates inodes as needed
        yield warn(
            "inodes",
            f"{free} free; less than {LEAST_INODES}",
            "remove old small files (`df -i`), or name another --output",
        )
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        yield (fail if limit < LEAST_ROOM else warn)(
            "largest file", f"ulimit -f allows {size_text(limit)}", "`ulimit -f unlimited` before the job starts"
        )


def _writes(where: Path) -> Iterator[Line]:
    name = f".probe_{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
    first, last = where / f"{name}.tmp", where / name
    block = os.urandom(1 << 20)  # random, so that the file system cannot compress it
    try:
        begin = time.perf_counter()
        with open(first, "wb") as file:
            for _ in range(PROBE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        # Only after fsync: before that the bytes may be in memory alone.
        yield speed(PROBE_BYTES / (time.perf_counter() - begin))
        last.touch()  # the rename must replace a file that exists
        os.replace(first, last)
        whole = last.stat().st_size == PROBE_BYTES and not first.exists()
        yield (
            ok("rename", "replaces a file whole")
            if whole
            else fail("rename", "does not replace a file whole", "name an --output on a POSIX file system")
        )
    except OSError as error:
        yield fail("write", f"{where}: {error.strerror}", "see quota (`quota -s`), rights and the mount (`dmesg`)")
    finally:
        first.unlink(missing_ok=True)
        last.unlink(missing_ok=True)


def speed(bytes_per_second: float) -> Line:
    """A line on the speed at which the disk writes a checkpoint."""
    rate, seconds = f"{bytes_per_second / 1e6:.0f} MB/s", f"{10e9 / bytes_per_second:.0f} s"
    found = f"{rate} ({size_text(PROBE_BYTES)}, flushed); 10 GB take {seconds}"
    if bytes_per_second < SLOW:
        return warn(
            "write speed",
            found,
            "look for other writers (`iostat`), or name an --output on a faster disk; save less often:"
            " train.save_every",
        )
    return ok("write speed", found)


CHECKS = (directory,)
