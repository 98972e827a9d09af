"""Parse a rank table of any form, value by value, so that every fault is reported with its location.

Forms (all values are strings):
    1.0    {"version": "1.0", "status", "server_count",
            "server_list": [{"server_id", "device": [{"device_id", "device_ip", "rank_id"}]}]}
           of hccl_tools and Ascend Operator (with host_ip, container_ip, hardware_type; server_list is null or empty
           while "status" is "initializing").
    1.2    the same, with "super_device_id" of each device and
            "super_pod_list": [{"super_pod_id", "server_list": [{"server_id"}]}].
    group  {"status", "group_count", "group_list": [{"group_name", "device_count", "instance_count",
            "instance_list": [{"pod_name", "server_id", "devices": [{"device_id", "device_ip"}]}]}]}
           of ModelArts ("template 2"). It has no rank ids: ranks are numbered by the index at the end of pod_name, then
           by device_id, as ModelArts' own conversion does. If HCCL reads this form itself, it numbers servers in order
           of server_id, which may give other ranks, so the table should be converted. If every instance has one device
           and a "rank_id", it is the "lab" form of the first hccl_tools.

Source: CANN HCCL, topoinfo_ranktable{Parser,Concise,Standard}.cc; Ascend Operator, ranktable/common; ModelArts
documentation, "RANK_TABLE_FILE". The group form follows documentation and public sources and was not tested on
ModelArts.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from pangu_run.rank_table.json_file import Fault, JsonObject, join

MAX_DEVICE_ID = 15
"""Largest device id, since a server has 8 or 16 devices. Source: HCCL, GetSingleDevice."""
COMPLETED, INITIALIZING = "completed", "initializing"
STRINGS = 'every value of a rank table is a string, such as "8"; `pangu ranktable convert` mends it'
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_POD_INDEX = re.compile(r"-([0-9]{1,9})$", re.ASCII)


@dataclass
class DeviceEntry:
    """A device as written in the file; a value that could not be read is None."""

    location: str
    raw: dict[str, Any]
    device_id: int | None
    rank_id: int | None
    device_ips: list[str]
    super_device_id: str | None = None


@dataclass
class ServerEntry:
    """A server as written in the file."""

    location: str
    raw: dict[str, Any]
    server_id: str | None
    devices: list[DeviceEntry]
    super_pod_id: str | None = None


@dataclass
class Parsed:
    """A table as written in the file."""

    raw: dict[str, Any]
    form: str = "1.0"
    status: str | None = None
    servers: list[ServerEntry] = field(default_factory=list)
    whole: bool = True
    """Whether all servers and devices could be read, even if some of their values could not."""

    @property
    def devices(self) -> list[DeviceEntry]:
        """Devices of all servers."""
        return [device for server in self.servers for device in server.devices]


class Reader:
    """Reads values from JSON objects and collects their faults."""

    def __init__(self, lenient: bool):
        self.lenient = lenient
        self.faults: list[Fault] = []
        self.whole = True

    def fault(self, location: str, found: str, rule: str) -> None:
        """Add a fault."""
        self.faults.append(Fault(location, found, rule))

    def text(self, holder: dict[str, Any], name: str, at: str, required: bool = True) -> str | None:
        """A non-empty string. A number is a fault, and is read as the string of its digits."""
        location, value = join(at, name), holder.get(name)
        if name not in holder or (value == "" and not required):
            if required:
                self.fault(
                    location,
                    "is missing",
                    "every rank table has it; add it, or make the table again (`pangu ranktable make`)",
                )
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not self.lenient:
                self.fault(location, f"is the number {value}", STRINGS)
            return str(value)
        if not isinstance(value, str):
            self.fault(location, f"is {_shown(value)}", STRINGS)
            return None
        if not value.strip():
            self.fault(location, "is empty", "must not be; write it, or make the table again (`pangu ranktable make`)")
            return None
        if not (value.isascii() and value.isprintable()):
            self.fault(location, f"is {_shown(value)}", "must be printable ASCII; mend it")
            return None
        return value

    def number(self, holder: dict[str, Any], name: str, at: str, required: bool = True) -> int | None:
        """A non-negative integer in a string."""
        value = self.text(holder, name, at, required)
        if value is None or _NUMBER.fullmatch(value):
            return None if value is None else int(value)
        negative = re.fullmatch("-[0-9]+", value)
        self.fault(
            join(at, name),
            f"{_shown(value)} is {'negative' if negative else 'no whole number'}",
            "must be a whole number from 0 in decimal digits",
        )
        return None

    def count(self, holder: dict[str, Any], name: str, at: str, actual: int, of: str) -> None:
        """Check a number that must be the length of a list, if it is given. Source: HCCL uses the length if
        server_count is missing."""
        stated = self.number(holder, name, at, required=False)
        if stated is not None and stated != actual:
            self.fault(
                join(at, name),
                f"is {stated}, and there are {actual} in {of}",
                f'must be their number; write "{actual}" or find out what is missing',
            )

    def objects(self, holder: dict[str, Any], name: str, at: str) -> list[tuple[str, dict[str, Any]]]:
        """The objects of a non-empty list, each with its location."""
        location, value = join(at, name), holder.get(name)
        if not isinstance(value, list) or not value:
            found = "is missing" if name not in holder else "is empty" if value == [] else f"is {_shown(value)}"
            self.fault(
                location, found, "must be a list of objects, not empty; make the table again (`pangu ranktable make`)"
            )
            self.whole = False
            return []
        for i, item in enumerate(value):
            if not isinstance(item, dict):
                self.whole = False
                self.fault(f"{location}[{i}]", f"is {_shown(item)}", "must be an object {...}")
        return [(f"{location}[{i}]", item) for i, item in enumerate(value) if isinstance(item, dict)]


def parse(value: JsonObject | dict[str, Any], lenient: bool = False) -> tuple[Parsed, list[Fault]]:
    """Read a table of any form. Rules on several values together are checked in rules.py.

    Args:
        value: content of the file.
        lenient: accept numbers in place of strings, and a missing version (as 1.0) or status (as completed).

    Returns:
        the parsed table, and the faults. A table that is still being written has one fault, whatever else is missing.
    """
    reader, parsed = Reader(lenient), Parsed(value)
    parsed.status = reader.text(value, "status", "") if "status" in value or not lenient else COMPLETED
    if parsed.status == INITIALIZING:
        return parsed, [
            Fault(
                "status", f'is "{INITIALIZING}"', 'must be "completed"; wait for who writes it: `pangu ranktable wait`'
            )
        ]
    if parsed.status not in (COMPLETED, None):
        reader.fault(
            "status", f"is {_shown(parsed.status)}", 'must be "completed"; see why the scheduler did not complete it'
        )
    if "group_list" in value and "server_list" not in value:
        parsed.form, parsed.servers = "group", _group_servers(reader, value)
    elif "server_list" in value:
        parsed.form, parsed.servers = _version(reader, value), _servers(reader, value)
        if "super_pod_list" in value or parsed.form == "1.2":
            _super_pods(reader, value, parsed)
    else:
        other = next((name for name in ("rank_list", "server_group_list") if name in value), None)
        found = f"has {other}" if other else "has neither server_list nor group_list"
        reader.fault(
            "file",
            found,
            "known forms are 1.0 and 1.2 (server_list) and ModelArts' group_list; name a job's rank table",
        )
    parsed.whole = reader.whole
    return parsed, reader.faults


def _version(reader: Reader, value: dict[str, Any]) -> str:
    if "version" not in value and reader.lenient:
        return "1.2" if "super_pod_list" in value else "1.0"
    version = reader.text(value, "version", "")
    if version not in ("1.0", "1.2", None):
        reader.fault("version", f"is {_shown(version)}", 'must be "1.0", or "1.2" with super pods')
    if version == "1.0" and "super_pod_list" in value:
        reader.fault("version", 'is "1.0"', 'HCCL reads super_pod_list in version "1.2" alone; write "1.2"')
    return version if version in ("1.0", "1.2") else "1.0"


def _servers(reader: Reader, value: dict[str, Any]) -> list[ServerEntry]:
    servers = []
    for location, raw in reader.objects(value, "server_list", ""):
        server_id = reader.text(raw, "server_id", location)
        servers.append(
            ServerEntry(
                location,
                raw,
                server_id,
                [_device(reader, at, item, True) for at, item in reader.objects(raw, "device", location)],
            )
        )
    if isinstance(value["server_list"], list):
        reader.count(value, "server_count", "", len(value["server_list"]), "server_list")
    return servers


def _device(reader: Reader, location: str, raw: dict[str, Any], ranked: bool) -> DeviceEntry:
    device_id = reader.number(raw, "device_id", location)
    if device_id is not None and device_id > MAX_DEVICE_ID:
        reader.fault(
            f"{location}.device_id", f"is {device_id}", f"a server has devices 0 to 7, or 0 to {MAX_DEVICE_ID}"
        )
    rank_id = reader.number(raw, "rank_id", location) if ranked else None
    ips = reader.text(raw, "device_ip", location, required=False) or ""
    super_device_id = reader.number(raw, "super_device_id", location, required=False)
    device_ips = [ip.strip() for ip in ips.split(",")] if ips else []
    return DeviceEntry(
        location, raw, device_id, rank_id, device_ips, None if super_device_id is None else str(super_device_id)
    )


def _super_pods(reader: Reader, value: dict[str, Any], parsed: Parsed) -> None:
    by_id = {server.server_id: server for server in parsed.servers}
    seen: set[str] = set()
    for location, raw in reader.objects(value, "super_pod_list", ""):
        pod = reader.text(raw, "super_pod_id", location)
        if pod in seen:
            reader.fault(
                f"{location}.super_pod_id",
                f"{_shown(pod)} is given twice",
                "each super pod stands once; put its servers together",
            )
        seen.add(pod or "")
        for at, item in reader.objects(raw, "server_list", location):
            server_id = reader.text(item, "server_id", at)
            server = by_id.get(server_id)
            if server_id is not None and server is None:
                rule = "super pods consist of the table's servers; remove it or add the server"
                reader.fault(f"{at}.server_id", f"{_shown(server_id)} is not in server_list", rule)
            elif server is not None and server.super_pod_id is not None:
                reader.fault(
                    f"{at}.server_id",
                    f"{_shown(server_id)} is already in super pod {server.super_pod_id}",
                    "a server is in one super pod",
                )
            elif server is not None:
                server.super_pod_id = pod


def _group_servers(reader: Reader, value: dict[str, Any]) -> list[ServerEntry]:
    servers: list[ServerEntry] = []
    for location, group in reader.objects(value, "group_list", ""):
        instances = []
        for at, raw in reader.objects(group, "instance_list", location):
            server_id = reader.text(raw, "server_id", at)
            devices = [_device(reader, where, item, False) for where, item in reader.objects(raw, "devices", at)]
            instances.append(ServerEntry(at, raw, server_id, devices))
        for name, actual, of in (
            ("instance_count", len(instances), "instance_list"),
            ("device_count", sum(len(one.devices) for one in instances), "devices"),
        ):
            reader.count(group, name, location, actual, of)
        servers += instances
    if isinstance(value["group_list"], list):
        reader.count(value, "group_count", "", len(value["group_list"]), "group_list")
    return _lab_servers(reader, servers) if any("rank_id" in one.raw for one in servers) else _counted(reader, servers)


def _counted(reader: Reader, servers: list[ServerEntry]) -> list[ServerEntry]:
    """Servers in order of the indices of their pods, with consecutive rank ids."""
    indices: dict[str, int] = {}
    for server in servers:
        name = reader.text(server.raw, "pod_name", server.location)
        index = _POD_INDEX.search(name or "")
        if name is not None and index is None and len(servers) > 1:
            reader.fault(
                f"{server.location}.pod_name",
                f"{_shown(name)} does not end in -INDEX",
                "ranks are counted by that index; convert a table that has it",
            )
        indices[server.location] = int(index.group(1)) if index else 0
    if len(set(indices.values())) < len(servers) and all(
        _POD_INDEX.search(str(server.raw.get("pod_name"))) for server in servers
    ):
        reader.fault(
            "pod_name",
            "two end in the same index",
            "ranks are counted by the index that ends pod_name; each stands once",
        )
    ordered = sorted(servers, key=lambda server: indices[server.location])
    rank = 0
    for server in ordered:
        for device in sorted(server.devices, key=lambda device: device.device_id or 0):
            device.rank_id = rank
            rank += 1
    return ordered


def _lab_servers(reader: Reader, instances: list[ServerEntry]) -> list[ServerEntry]:
    """The servers of instances that have one device and its rank each."""
    servers: dict[str | None, ServerEntry] = {}
    for one in instances:
        rank_id = reader.number(one.raw, "rank_id", one.location)
        if len(one.devices) > 1:
            reader.fault(
                f"{one.location}.devices",
                f"has {len(one.devices)} devices and one rank_id",
                "an instance with a rank_id has one device",
            )
        for device in one.devices:
            device.rank_id = rank_id
        if one.server_id in servers:
            servers[one.server_id].devices += one.devices
        else:
            servers[one.server_id] = one
    return list(servers.values())


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
