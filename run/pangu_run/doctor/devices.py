"""The visible devices, their health, memory and links inside the host."""

import os
from collections.abc import Iterator

from pangu_ms.core.size_text import size_text
from pangu_run.doctor import npu
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site, numbers, spans

MOST_USED = 0.1
"""Largest share of a device's memory that may be in use before a job starts: the driver keeps about 5 % of a 64 GB 910B
for itself."""


def seen(site: Site) -> Iterator[Line]:
    """Devices of `npu-smi info`: their number, health and free memory."""
    if site.device == "cpu":
        yield ok("devices", "no NPU here; ranks run on the CPU")
        if site.table:
            yield warn(
                "devices",
                f"{site.table_path} names NPUs, and this host has none",
                "run the doctor on the servers of the table, or launch with --smoke",
            )
        return
    answer = site.tool("npu-smi", "info")
    if answer.problem:
        yield fail(
            "devices",
            answer.problem,
            "install or restart the driver, in a container mount it and npu-smi; then look at `dmesg`",
        )
        return
    devices = npu.devices(answer.text)
    if not devices:
        yield fail(
            "devices",
            "`npu-smi info` shows none",
            "look at `dmesg` and `lspci | grep d80`; in a container give it --device /dev/davinciN",
        )
        return
    names = sorted({device.name for device in devices})
    yield ok("devices", f"{len(devices)} x {', '.join(names)} ({spans(device.device_id for device in devices)})")
    if len(names) > 1:
        yield warn(
            "device kinds",
            f"{', '.join(names)} in one host",
            "give a job devices of one kind: ASCEND_RT_VISIBLE_DEVICES or the rank table",
        )
    yield from _against_table(site, {device.device_id for device in devices})
    yield from _health(devices)
    yield from _memory(devices, npu.processes(answer.text))


def _against_table(site: Site, here: set[int]) -> Iterator[Line]:
    wanted = {device.device_id for device in site.server.devices} if site.server else set()
    if missing := wanted - here:
        found = f"{spans(missing)} of {site.table_path} not seen here; seen: {spans(here)}"
        yield fail("devices wanted", found, "make the rank table anew, or mend the devices")


def _health(devices: list[npu.Device]) -> Iterator[Line]:
    for health in sorted({device.health for device in devices} - {"OK"}):
        ids = spans(device.device_id for device in devices if device.health == health)
        card = next(device.npu for device in devices if device.health == health)
        line = warn if health == "Warning" else fail
        yield line(
            "device health",
            f"{health}: {ids}",
            f"`npu-smi info -t health -i {card}` names the fault; take the host out until it is mended",
        )
    if all(device.health == "OK" for device in devices):
        yield ok("device health", "OK on all")


def _memory(devices: list[npu.Device], processes: list[npu.Process]) -> Iterator[Line]:
    full = [device for device in devices if device.used_mib > MOST_USED * device.total_mib]
    free = min(device.total_mib - device.used_mib for device in devices) << 20
    if processes or full:
        holders = (
            ", ".join(f"pid {p.pid} ({p.name}) on {p.npu}" for p in processes[:8]) or "no process that this host sees"
        )
        found = f"{size_text(free)} free at least; in use: {spans(d.device_id for d in full) or 'little'}; {holders}"
        yield warn(
            "device memory",
            found,
            "end those processes (another container's may be hidden), or reset: `npu-smi set -t reset -i N -c 0`",
        )
    else:
        yield ok("device memory", f"{size_text(free)} free at least")


def links(site: Site) -> Iterator[Line]:
    """Links between the devices of this host, and whether this process may use the cores near them."""
    if site.device == "cpu":
        return
    answer = site.tool("npu-smi", "info", "-t", "topo")
    table, cores = npu.topology(answer.text)
    if answer.problem or not table:
        yield warn(
            "device links",
            answer.problem or "`npu-smi info -t topo` shows none",
            "core binding then goes by device number; update the driver",
        )
        return
    alone = [
        device
        for device, kinds in table.items()
        if kinds and not any(kind.startswith(("HCCS", "SIO")) for kind in kinds.values())
    ]
    if alone:
        found = f"{spans(alone)} has no HCCS link: {', '.join(sorted(set(table[alone[0]].values())))}"
        yield warn(
            "device links",
            found,
            "model_parallel over them is slow; have the board looked at, or keep such devices to data_parallel",
        )
    else:
        yield ok("device links", "HCCS")
    allowed = os.sched_getaffinity(0)
    if away := [device for device, span in cores.items() if not numbers(span) & allowed]:
        found = f"none near {spans(away)} is allowed to this process ({spans(allowed)})"
        yield warn(
            "cores of devices",
            found,
            "widen the container's or the scheduler's core set (docker --cpuset-cpus, Slurm --cpus-per-task)",
        )


CHECKS = (seen, links)
