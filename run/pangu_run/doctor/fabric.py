"""Checks of the devices' own network (RoCE): addresses and links, from hccn_tool and /etc/hccn.conf, compared with the
rank table."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pangu_ms.core.errors import RankTableError
from pangu_run.doctor import npu
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site, spans
from pangu_run.rank_table.hccn import HCCN_CONF, read_conf

UNSET = ("Init", "Detect ip set")
"""Values of the network health before, or just after, an address to detect is set (-netdetect)."""


@dataclass(frozen=True)
class Port:
    """A device's network port; None means unknown."""

    address: str | None = None
    link: str | None = None
    health: str | None = None
    optical: str | None = None
    problem: str | None = None


def _port(site: Site, device: int) -> Port:
    texts: dict[str, str] = {}
    for what in ("-ip", "-link", "-net_health", "-optical"):
        if what == "-optical" and npu.value(texts["-link"], "link status") == "UP":
            continue  # the link is up, so it does not matter whether it is optical
        answer = site.tool("hccn_tool", "-i", str(device), what, "-g")
        if answer.problem and what != "-optical":
            return Port(problem=answer.problem)
        texts[what] = answer.text
    optical = npu.value(texts.get("-optical", ""), "present")
    return Port(
        npu.value(texts["-ip"], "ipaddr"),
        npu.value(texts["-link"], "link status"),
        npu.value(texts["-net_health"], "net health status"),
        optical,
    )


def ports(site: Site) -> Iterator[Line]:
    """Address, link and health of each device's port."""
    if site.device == "cpu":
        return
    configured: dict[int, str] = {}
    try:
        configured = read_conf(str(site.path(HCCN_CONF))) if site.path(HCCN_CONF).is_file() else {}
    except RankTableError as error:
        yield fail("device addresses", str(error), f"mend {HCCN_CONF}: one line for each device")
    # If npu-smi shows nothing, the file still says which devices the host should have.
    devices = [device.device_id for device in npu.devices(site.tool("npu-smi", "info").text)] or sorted(configured)
    if not devices:
        yield warn("device addresses", "no device to ask for", "mend the line on devices first")
        return
    if (first := site.tool("hccn_tool", "-i", str(devices[0]), "-ip", "-g")).missing:
        yield warn(
            "device links (RoCE)",
            first.problem or "",
            "it comes with the driver; in a container mount /usr/local/Ascend/driver/tools",
        )
        yield from _addresses(site, {device: configured.get(device) for device in devices}, HCCN_CONF)
        return
    with ThreadPoolExecutor(len(devices)) as pool:
        found = dict(zip(devices, pool.map(lambda device: _port(site, device), devices), strict=True))
    silent = {device: port for device, port in found.items() if port.problem}
    if silent:
        words = next(iter(silent.values())).problem
        yield fail(
            "device links (RoCE)",
            f"{spans(silent)}: {words}",
            "restart the device or the driver; the tool needs root or the group HwHiAiUser",
        )
    answered = {device: port for device, port in found.items() if not port.problem}
    yield from _links(answered)
    yield from _health(site, answered)
    yield from _addresses(site, {device: port.address for device, port in answered.items()}, "hccn_tool")
    if changed := [
        device
        for device, port in answered.items()
        if port.address and configured.get(device, port.address) != port.address
    ]:
        found_words = (
            f"{spans(changed)}: {answered[changed[0]].address} in effect, {configured[changed[0]]} in {HCCN_CONF}"
        )
        yield warn(
            "device addresses",
            found_words,
            f"the next start of the host takes the file's: `hccn_tool -i {changed[0]} -cfg recovery`, or mend the file",
        )


def _links(found: dict[int, Port]) -> Iterator[Line]:
    for link in sorted({port.link or "unknown" for port in found.values()} - {"UP"}):
        ids = [device for device, port in found.items() if (port.link or "unknown") == link]
        optics = "; no optical module" if any(found[device].optical == "not present" for device in ids) else ""
        yield fail(
            "device links (RoCE)",
            f"{link}: {spans(ids)}{optics}",
            f"check cable, module and switch port; `hccn_tool -i {ids[0]} -link_stat -g`",
        )
    if found and all(port.link == "UP" for port in found.values()):
        yield ok("device links (RoCE)", f"UP: {spans(found)}")


def _health(site: Site, found: dict[int, Port]) -> Iterator[Line]:
    for health in sorted({port.health or "unknown" for port in found.values()} - {"Success"}):
        ids = [device for device, port in found.items() if (port.health or "unknown") == health]
        if health not in UNSET:
            yield fail(
                "device network",
                f"{health}: {spans(ids)}",
                f"check address, gateway and switch: `hccn_tool -i {ids[0]} -gateway -g`, `-netdetect -g`",
            )
        elif site.num_servers > 1:
            yield warn(
                "device network",
                f"not tested yet ({health}): {spans(ids)}",
                f"`hccn_tool -i {ids[0]} -netdetect -s address GATEWAY` for each device",
            )
    if found and all(port.health == "Success" for port in found.values()):
        yield ok("device network", f"Success: {spans(found)}")


def _addresses(site: Site, found: dict[int, str | None], source: str) -> Iterator[Line]:
    if without := [device for device, address in found.items() if not address]:
        words = f"none on {spans(without)} ({source})"
        fix = f"`hccn_tool -i {without[0]} -ip -s address IP netmask MASK` for each device"
        yield (fail if site.num_servers > 1 else warn)("device addresses", words, fix)
    counts = Counter(address for address in found.values() if address)
    if double := sorted(address for address, count in counts.items() if count > 1):
        yield fail(
            "device addresses",
            f"{', '.join(double)} on several devices",
            "give each device its own: `hccn_tool -i N -ip -s address IP netmask MASK`",
        )
    yield from _against_table(site, found)
    if counts and not without and not double:
        yield ok("device addresses", ", ".join(f"{device}: {address}" for device, address in sorted(found.items())))


def _against_table(site: Site, found: dict[int, str | None]) -> Iterator[Line]:
    wanted = (
        {device.device_id: device.device_ip for device in site.server.devices if device.device_ip}
        if site.server
        else {}
    )
    if other := [
        device
        for device, addresses in wanted.items()
        if found.get(device) and found[device] not in addresses.split(",")
    ]:
        words = "; ".join(
            f"device {device}: {found[device]} here, {wanted[device]} in the table" for device in other[:4]
        )
        yield fail(
            "rank table addresses",
            words,
            f"make {site.table_path} anew (`pangu ranktable make`), or set the address by hccn_tool",
        )


CHECKS = (ports,)
