"""Checks of memory, shared memory, swap, cores, NUMA and limits of this host, or of the container of this process."""

import os
import resource
from collections.abc import Iterator

import psutil

from pangu_ms.core.size_text import size_text
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site, numbers, spans

LEAST_MEMORY, MEMORY_OF_RANK = 1 << 30, 2 << 30
"""Bytes that must be free, and bytes that a rank needs to start: it uses about 0.6 GB after `import mindspore`, and the
compilation of a graph needs as much again."""
MORE_MEMORY = "end other programs, or raise the limit (docker --memory, Slurm --mem)"
LEAST_SHM = 1 << 30
"""Minimum bytes of /dev/shm, through which MindSpore's data workers and the ranks of one host (HCCL) exchange data.
Docker's default is 64 MiB."""
MUCH_SWAP = 1 << 30
LEAST_OPEN_FILES = {"cpu": 1024, "ascend": 65536}
"""Minimum number of open files: 2048 ranks need as many sockets to the scheduler and launcher of the first server."""
LEAST_PROCESSES = 4096
"""A rank has some 100 to 300 threads, and each counts as a process."""


def cgroup_value(site: Site, new: str, old: str) -> str | None:
    """A limit of this process's cgroup, of version 2 (`memory.max`) or 1 (`memory/memory.limit_in_bytes`)."""
    lines = [line.split(":", 2) for line in (site.read("/proc/self/cgroup") or "").splitlines() if line.count(":") >= 2]
    controller, _, file = old.partition("/")
    # Version 2 has the number 0. A container may see its own cgroup as the root, hence the empty path at last.
    for path in [own for number, _, own in lines if number == "0"] + [""]:
        if text := site.read(f"/sys/fs/cgroup/{path.strip('/')}/{new}"):
            return text.strip()
    for path in [own for _, names, own in lines if controller in names.split(",")] + [""]:
        if text := site.read(f"/sys/fs/cgroup/{controller}/{path.strip('/')}/{file}"):
            return text.strip()
    return None


def memory(site: Site) -> Iterator[Line]:
    """Free memory of the host, or of the cgroup of this process."""
    machine = psutil.virtual_memory()
    free, total = machine.available, size_text(machine.total)
    text = cgroup_value(site, "memory.max", "memory/memory.limit_in_bytes") or ""
    if text.isdecimal() and (limit := int(text)) < machine.total:  # "max" where there is no limit
        used = int(cgroup_value(site, "memory.current", "memory/memory.usage_in_bytes") or 0)
        free, total = min(free, limit - used), f"{size_text(limit)} that the cgroup allows"
    found = f"{size_text(free)} free of {total}"
    needed = MEMORY_OF_RANK * site.num_processes
    if free < LEAST_MEMORY:
        yield fail("memory", found, MORE_MEMORY)
    elif free < needed:
        yield warn("memory", f"{found}; {site.num_processes} rank(s) take {size_text(needed)} to start", MORE_MEMORY)
    else:
        yield ok("memory", found)


def shared_memory(site: Site) -> Iterator[Line]:
    """/dev/shm."""
    try:
        room = os.statvfs(site.path("/dev/shm"))
    except OSError as error:
        yield warn("/dev/shm", error.strerror or str(error), "mount it: `mount -t tmpfs shm /dev/shm`")
        return
    total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    if free < LEAST_SHM:
        found = f"{size_text(free)} free of {size_text(total)}; less than {size_text(LEAST_SHM)}"
        yield warn("/dev/shm", found, "docker run --shm-size=16g (or --ipc=host); remove what is left in it")
    else:
        yield ok("/dev/shm", f"{size_text(free)} free of {size_text(total)}")


def swap(site: Site) -> Iterator[Line]:
    """Swap in use: if one rank is swapped out, all ranks wait for it."""
    state = psutil.swap_memory()
    if state.used > MUCH_SWAP:
        yield warn(
            "swap",
            f"{size_text(state.used)} of {size_text(state.total)} in use",
            "free memory, then `swapoff -a && swapon -a`",
        )
    else:
        yield ok("swap", f"{size_text(state.used)} of {size_text(state.total)} in use")


def cores(site: Site) -> Iterator[Line]:
    """Cores that this process may use, and the share of them that the quota of its cgroup allows."""
    allowed = len(os.sched_getaffinity(0))
    new = (cgroup_value(site, "cpu.max", "cpu/cpu.cfs_quota_us") or "").split()
    period = new[1] if len(new) == 2 else site.read("/sys/fs/cgroup/cpu/cpu.cfs_period_us") or "100000"
    quota = int(new[0]) / int(period) if new and new[0].isdecimal() else None
    found = f"{allowed} of {os.cpu_count()}"
    if quota is not None and quota < allowed:
        fix = f"export OMP_NUM_THREADS={max(1, int(quota))}, or raise it (docker --cpus, limits.cpu)"
        yield warn("cores", f"{found} allowed, {quota:.1f} by quota: threads are held up", fix)
    elif allowed < site.num_processes:
        yield warn(
            "cores",
            f"{found} for {site.num_processes} ranks",
            "give the job more (docker --cpuset-cpus, Slurm --cpus-per-task)",
        )
    else:
        yield ok("cores", found)


def numa(site: Site) -> Iterator[Line]:
    """NUMA nodes, by which the launcher binds ranks."""
    nodes = {
        path.name[4:]: (path / "cpulist").read_text().strip()
        for path in sorted(site.path("/sys/devices/system/node").glob("node[0-9]*"))
    }
    if not nodes:
        yield warn("NUMA", "nodes not known", "mount /sys in the container; until then launch with --bind none")
        return
    allowed = os.sched_getaffinity(0)
    outside = [int(node) for node, cpus in nodes.items() if cpus and not numbers(cpus) & allowed]
    if outside and site.num_processes > 1:
        yield warn(
            "NUMA",
            f"no core of node {spans(outside)} of {len(nodes)} is allowed here",
            "widen the core set, or launch with --bind none",
        )
    else:
        yield ok("NUMA", "; ".join(f"node {node}: {cpus}" for node, cpus in nodes.items()))


def limits(site: Site) -> Iterator[Line]:
    """`ulimit`: open files, processes, locked memory, core files."""
    yield from _least("open files", "-n", resource.RLIMIT_NOFILE, LEAST_OPEN_FILES[site.device])
    yield from _least("processes", "-u", resource.RLIMIT_NPROC, LEAST_PROCESSES)
    if site.device == "ascend":  # RDMA registers pinned memory; how much HCCL's host side needs is not documented
        yield from _least("locked memory", "-l", resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)
    if resource.getrlimit(resource.RLIMIT_CORE)[0] == resource.RLIM_INFINITY and site.num_processes > 1:
        yield warn(
            "core files",
            "not limited: each rank that crashes writes all its memory",
            "`ulimit -c 0` before the job starts",
        )


def _least(what: str, flag: str, number: int, least: int) -> Iterator[Line]:
    soft, hard = (float("inf") if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(number))
    wanted = float("inf") if least == resource.RLIM_INFINITY else least
    words = "unlimited" if wanted == float("inf") else str(least)
    if soft >= wanted:
        yield ok(what, "unlimited" if soft == float("inf") else f"{soft}")
        return
    raise_hard = f"raise it in /etc/security/limits.conf (docker --ulimit), then `ulimit {flag} {words}`"
    yield warn(
        what,
        f"{soft}; less than {words}",
        f"`ulimit {flag} {words}` before the job starts" if hard >= wanted else raise_hard,
    )


CHECKS = (memory, shared_memory, swap, cores, numa, limits)
