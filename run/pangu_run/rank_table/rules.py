"""Rules on several values of a rank table together: ranks, addresses, servers, super pods."""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable

from pangu_run.rank_table.json_file import Fault
from pangu_run.rank_table.parse import Parsed, ServerEntry

HOST_FIELDS = ("host_ip", "container_ip")
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DOTTED = re.compile(r"[0-9.]+", re.ASCII)


def faults_of(parsed: Parsed) -> list[Fault]:
    """Every rule that the table breaks. Source: HCCL, topoinfo_ranktableConcise.cc."""
    return [*_ranks(parsed), *_servers(parsed), *_device_ids(parsed), *_addresses(parsed), *_super_pods(parsed)]


def ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers as intervals, such as 0-3,7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in a text; None if it is not an IP address."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _twice(items: Iterable[tuple[str, object]], rule: str) -> list[Fault]:
    first: dict[object, str] = {}
    faults = []
    for location, value in items:
        if first.setdefault(value, location) != location:
            faults.append(Fault(location, f"{value} is also at {first[value]}", rule))
    return faults


def _ranks(parsed: Parsed) -> list[Fault]:
    devices = parsed.devices
    given = [(f"{device.location}.rank_id", device.rank_id) for device in devices if device.rank_id is not None]
    world = len(devices)
    rule = f"ranks are 0 to {world - 1}, each once; number them, or make the table again (`pangu ranktable make`)"
    faults = _twice(given, rule)
    if not parsed.whole:  # the expected number of ranks is unknown
        return faults
    faults += [
        Fault(location, f"is {rank}, and there are {world} devices", rule) for location, rank in given if rank >= world
    ]
    missing = sorted(set(range(world)) - {rank for _, rank in given})
    if missing and len(given) == world:
        faults.append(Fault("rank_id", f"no device has rank {ranges(missing)}", rule))
    return faults


def _servers(parsed: Parsed) -> list[Fault]:
    named = [
        (f"{server.location}.server_id", server.server_id) for server in parsed.servers if server.server_id is not None
    ]
    faults = _twice(
        named,
        "a server stands once in the table, and one launcher starts all its devices; put them together or mend the id",
    )
    for location, server_id in named:
        if _DOTTED.fullmatch(server_id) and "." in server_id and address(server_id) is None:
            faults.append(
                Fault(
                    location, f"{server_id} is no IP address", "must be an address of the server or its name; mend it"
                )
            )
        elif re.search(r"\s", server_id):
            faults.append(
                Fault(
                    location, f"{server_id!r} has white space", "must be an address of the server or its name; mend it"
                )
            )
    sizes = Counter(len(server.devices) for server in parsed.servers if server.devices)
    if len(sizes) > 1 and parsed.whole:
        usual = max(sizes, key=lambda size: (sizes[size], size))
        rule = f"all servers have as many devices; most have {usual}; add what is missing, or leave this server out"
        for server in parsed.servers:
            if server.devices and len(server.devices) != usual:
                faults.append(Fault(server.location, f"has {len(server.devices)} devices", rule))
    return faults


def _device_ids(parsed: Parsed) -> list[Fault]:
    rule = "a device stands once on its server; mend device_id or remove one of the two"
    faults: list[Fault] = []
    for server in parsed.servers:
        given = [(f"{device.location}.device_id", device.device_id) for device in server.devices]
        faults += _twice([(location, number) for location, number in given if number is not None], rule)
    return faults


def _addresses(parsed: Parsed) -> list[Fault]:
    faults: list[Fault] = []
    valid: list[tuple[str, object]] = []
    for server in parsed.servers:
        for name in HOST_FIELDS:
            text = server.raw.get(name)
            if isinstance(text, str) and text and address(text) is None:
                faults.append(
                    Fault(
                        f"{server.location}.{name}",
                        f"{text} is no IP address",
                        "must be an address of the server; mend it",
                    )
                )
    for device in parsed.devices:
        for text in device.device_ips:
            # Addresses that are valid but cannot be those of a device: 0.0.0.0, multicast, 127.0.0.1.
            ip = address(text)
            if ip is None or ip.is_unspecified or ip.is_multicast or ip.is_loopback:
                rule = "must be the device's own address, as `hccn_tool -i N -ip -g` shows it"
                faults.append(
                    Fault(f"{device.location}.device_ip", f"{text or 'nothing'} is no IP address of a device", rule)
                )
            else:
                valid.append((f"{device.location}.device_ip", ip))
    faults += _twice(
        valid, "every device has an address of its own, as `hccn_tool -i N -ip -g` shows it; mend one of the two"
    )
    return faults + _missing_addresses(parsed)


def _missing_addresses(parsed: Parsed) -> list[Fault]:
    """Faults of servers without addresses: servers are connected by device_ip or by host_ip; a single server or super
    pod needs neither."""
    one_pod = parsed.form == "1.2" and len({server.super_pod_id for server in parsed.servers}) == 1
    needed = len(parsed.servers) > 1 and not one_pod
    numbers = Counter(len(device.device_ips) for device in parsed.devices)
    usual = max((number for number in numbers if number), key=lambda number: (numbers[number], number), default=0)
    faults = []
    rule = "servers are linked by it; `hccn_tool -i N -ip -g` shows it; add it for all devices"
    for server in parsed.servers:
        for device in server.devices:
            number = len(device.device_ips)
            if number == 0 and (usual or (needed and not server.raw.get("host_ip"))):
                faults.append(Fault(f"{device.location}.device_ip", "is missing", rule))
            elif number and number != usual:
                faults.append(
                    Fault(
                        f"{device.location}.device_ip",
                        f"has {number} addresses",
                        f"most devices have {usual}; all must have as many",
                    )
                )
    return faults


def _super_pods(parsed: Parsed) -> list[Fault]:
    if "super_pod_list" not in parsed.raw:
        return []
    faults: list[Fault] = []
    pods: dict[str | None, list[tuple[str, object]]] = {}
    for server in parsed.servers:
        if server.super_pod_id is None:
            faults.append(
                Fault(
                    server.location,
                    f"{server.server_id} is in no super pod",
                    "every server is in one; add it to super_pod_list",
                )
            )
        for device in server.devices:
            if device.super_device_id is None:
                if "super_device_id" not in device.raw:
                    faults.append(
                        Fault(
                            f"{device.location}.super_device_id",
                            "is missing",
                            "every device of a super pod has one; add it",
                        )
                    )
            else:
                pods.setdefault(server.super_pod_id, []).append(
                    (f"{device.location}.super_device_id", device.super_device_id)
                )
    rule = "a device has one of its own in its super pod; mend one of the two"
    return faults + [fault for members in pods.values() for fault in _twice(members, rule)]


def host_names(server: ServerEntry) -> tuple[str, ...]:
    """Names of a server: its id, addresses and pod name, if they are valid addresses or host names."""
    names = []
    for text in (server.server_id, *(server.raw.get(name) for name in (*HOST_FIELDS, "pod_name"))):
        if isinstance(text, str) and (address(text) or _HOST_NAME.fullmatch(text)):
            names.append(text)
    return tuple(dict.fromkeys(names))
