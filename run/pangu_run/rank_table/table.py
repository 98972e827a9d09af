"""Rank tables: they assign a rank to each device of each server.

A table is read in any form (see parse.py), checked completely, and written as form 1.2 if there are super pods, else as
1.0 (see forms.py).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_ms.core.errors import RankTableError
from pangu_run import this_host
from pangu_run.rank_table.json_file import Fault, load
from pangu_run.rank_table.parse import COMPLETED, INITIALIZING, DeviceEntry, Parsed, ServerEntry, parse
from pangu_run.rank_table.rules import address, faults_of, host_names

__all__ = ["Device", "Fault", "RankTable", "Server", "check", "wait_completed"]
SHOWN_FAULTS = 20
POLL_S, REPEAT_S = 1.0, 30.0
"""Seconds between two checks of a file while waiting for it, and until the same message is shown again."""
_OWN_KEYS = {"device": ("device_id", "rank_id", "device_ip"), "server": ("server_id", "device", "devices", "rank_id")}
_TABLE_KEYS = (
    "version",
    "status",
    "server_count",
    "server_list",
    "super_pod_list",
    "group_count",
    "group_list",
    "deploy_mode",
)


@dataclass(frozen=True)
class Device:
    """One device and its rank."""

    device_id: int
    rank_id: int
    device_ip: str | None
    """Address of the device; several addresses are separated by commas."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Additional keys of the file, such as super_device_id."""


@dataclass(frozen=True)
class Server:
    """One server."""

    server_id: str
    devices: tuple[Device, ...]
    """In order of device_id."""
    addresses: tuple[str, ...]
    """server_id, host_ip, container_ip and pod_name, if they are valid addresses or host names."""
    super_pod_id: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Additional keys of the file, such as host_ip."""


@dataclass(frozen=True)
class RankTable:
    """A rank table without faults; its ranks are 0 to world - 1."""

    servers: tuple[Server, ...]
    version: str = "1.0"
    """Form of the file: 1.0, 1.2 or group."""
    status: str = COMPLETED
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | str, lenient: bool = False) -> "RankTable":
        """Read a file of any form.

        Args:
            path: the file.
            lenient: accept faults that are corrected when the table is written again: numbers instead of strings, a
                byte order mark, a missing version or status.

        Raises:
            RankTableError: the file has faults; the message names up to SHOWN_FAULTS of them.
        """
        value, faults = load(path, lenient)
        return cls._built(str(path), value, faults, lenient)

    @classmethod
    def of(cls, value: dict[str, Any], name: str) -> "RankTable":
        """The table in a JSON value; `name` is its name in error messages.

        Raises:
            RankTableError: it has faults.
        """
        return cls._built(name, value, [], False)

    @classmethod
    def _built(cls, name: str, value: dict[str, Any] | None, faults: list[Fault], lenient: bool) -> "RankTable":
        parsed, further = _parsed(value, lenient)
        if faults + further:
            raise RankTableError(_in_one_line(name, faults + further))
        servers = tuple(_server(server) for server in parsed.servers)
        extra = {} if parsed.form == "group" else _extra(parsed.raw, _TABLE_KEYS)
        return cls(servers, parsed.form, parsed.status or COMPLETED, extra)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return sum(len(server.devices) for server in self.servers)

    @property
    def has_super_pods(self) -> bool:
        """Whether servers are in super pods."""
        return any(server.super_pod_id is not None for server in self.servers)

    def ranks(self) -> dict[int, tuple[Server, Device]]:
        """Server and device of each rank, in order of ranks."""
        return dict(sorted((device.rank_id, (server, device)) for server in self.servers for device in server.devices))

    def ordered(self, placement: Sequence[tuple[int, int]]) -> "RankTable":
        """The table whose rank r is the device at `placement[r]`.

        Args:
            placement: for each rank its server, an index into `servers`, and its device there, an index into `devices`.

        Raises:
            RankTableError: the placement does not use each device of the table once.
        """
        if fault := _misfit(self, placement):
            raise RankTableError(f"rank table: {fault}")
        rank_at = {tuple(slot): rank for rank, slot in enumerate(placement)}
        servers = []
        for s, server in enumerate(self.servers):
            devices = tuple(
                dataclasses.replace(device, rank_id=rank_at[s, d]) for d, device in enumerate(server.devices)
            )
            servers.append(dataclasses.replace(server, devices=devices))
        return dataclasses.replace(self, servers=tuple(servers))

    def this_server(self, server_id: str | None = None) -> int:
        """Index of the server that this machine is.

        Args:
            server_id: server_id or another address of the server; None searches for a server with an address or host
                name of this machine.

        Raises:
            RankTableError: no server matches, or more than one.
        """
        own = [server_id] if server_id is not None else this_host.names()
        names = {_normal(name) for name in own}
        found = []
        for i, server in enumerate(self.servers):
            if names & {_normal(name) for name in (server.server_id, *server.addresses)}:
                found.append(i)
        if len(found) == 1:
            return found[0]
        more = ", ..." if len(self.servers) > SHOWN_FAULTS else ""
        table = ", ".join(server.server_id for server in self.servers[:SHOWN_FAULTS]) + more
        what = "no server"
        if found:
            what = f"more than one server ({', '.join(self.servers[i].server_id for i in found)})"
        raise RankTableError(
            f"rank table: {what} is called {' or '.join(own)}; it has {table}; name this machine's with --server-id"
        )

    def as_dict(self) -> dict[str, Any]:
        """Content of the file that HCCL reads: form 1.2 where there are super pods, else 1.0."""
        from pangu_run.rank_table.forms import as_form

        return as_form(self, "1.2" if self.has_super_pods else "1.0")


def check(
    path: Path | str, world: int | None = None, placement: Sequence[tuple[int, int]] | None = None
) -> list[Fault]:
    """Every fault of a file.

    Args:
        path: the file.
        world: number of ranks that the table must have.
        placement: for each rank its position in the plan. The set of devices must fit; their order need not, since
            `pangu launch` orders them (see `misplaced`).
    """
    value, faults = load(path)
    parsed, further = _parsed(value, False)
    faults += further
    devices, wanted = len(parsed.devices), world if placement is None else len(placement)
    if wanted is not None and devices and devices != wanted:
        faults.append(
            Fault(
                "rank_id",
                f"the table has {devices} ranks",
                f"the plan has {wanted}; take other servers, or change the section `parallel`",
            )
        )
    elif value is not None and placement is not None and not faults:
        fault = _misfit(RankTable.of(value, str(path)), placement)
        faults += [fault] if fault else []
    return faults


def misplaced(table: RankTable, placement: Sequence[tuple[int, int]]) -> list[int]:
    """Ranks whose position differs from the plan, in a table that fits the plan; `RankTable.ordered` corrects this."""
    at = {device.rank_id: (s, d) for s, server in enumerate(table.servers) for d, device in enumerate(server.devices)}
    return [rank for rank, slot in enumerate(placement) if at[rank] != tuple(slot)]


def wait_completed(path: Path | str, timeout_s: float, print_line: Callable[[str], None]) -> RankTable:
    """Wait until the writer of a table (Ascend Operator, ModelArts) has completed it. Meanwhile the file may be
    truncated and rewritten.

    Args:
        path: the file, which need not exist yet.
        timeout_s: maximum time to wait, in seconds.
        print_line: called with a message on what is missing, whenever that changes.

    Raises:
        RankTableError: the table was not completed in time, or the completed table has faults.
    """
    end, shown, shown_at = time.monotonic() + timeout_s, "", 0.0
    while True:
        value, faults = load(path)
        # Without a value the file is missing, or in the middle of being written: not a fault yet.
        missing = str(faults[-1]) if value is None else _still_missing(value)
        if missing is None:
            return RankTable.read(path)
        now = time.monotonic()
        if now >= end:
            raise RankTableError(
                f"{path}: not completed after {timeout_s:g} s: {missing}; see what the scheduler waits for, or wait"
                " longer with --timeout"
            )
        if missing != shown or now - shown_at >= REPEAT_S:
            print_line(f"waiting for {path}: {missing}")
            shown, shown_at = missing, now
        time.sleep(min(POLL_S, max(end - now, 0.0)))


def _still_missing(value: dict[str, Any]) -> str | None:
    if value.get("status") != INITIALIZING:
        return None
    servers = value.get("server_list") or value.get("group_list")
    number = len(servers) if isinstance(servers, list) else 0
    stated = value.get("server_count") or value.get("group_count")
    return f'status is "{INITIALIZING}", entries so far: {number}' + (f" of {stated}" if stated else "")


def _parsed(value: dict[str, Any] | None, lenient: bool) -> tuple[Parsed, list[Fault]]:
    if value is None:
        return Parsed({}), []
    parsed, faults = parse(value, lenient)
    return parsed, faults + faults_of(parsed)


def _in_one_line(name: str, faults: list[Fault]) -> str:
    if len(faults) == 1:
        return f"{name}: {faults[0]}"
    shown = "; ".join(f"{fault.location}: {fault.found} ({fault.rule})" for fault in faults[:SHOWN_FAULTS])
    rest = len(faults) - SHOWN_FAULTS
    return f"{name}: {len(faults)} faults: {shown}" + (
        f"; and {rest} more, see `pangu ranktable check`" if rest > 0 else ""
    )


def _extra(raw: dict[str, Any], own: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name not in own}


def _server(entry: ServerEntry) -> Server:
    devices = tuple(sorted((_device(device) for device in entry.devices), key=lambda device: device.device_id))
    return Server(
        str(entry.server_id), devices, host_names(entry), entry.super_pod_id, _extra(entry.raw, _OWN_KEYS["server"])
    )


def _device(entry: DeviceEntry) -> Device:
    assert entry.device_id is not None and entry.rank_id is not None
    extra = _extra(entry.raw, _OWN_KEYS["device"])
    if entry.super_device_id is not None:
        extra["super_device_id"] = entry.super_device_id
    return Device(entry.device_id, entry.rank_id, ",".join(entry.device_ips) or None, extra)


def _misfit(table: RankTable, placement: Sequence[tuple[int, int]]) -> Fault | None:
    """The fault if a placement does not use each device exactly once."""
    own = {(s, d) for s, server in enumerate(table.servers) for d in range(len(server.devices))}
    wanted = [tuple(slot) for slot in placement]
    if len(wanted) == len(own) and set(wanted) == own:
        return None
    outside = next((slot for slot in wanted if slot not in own), None)
    found = f"{len(table.servers)} servers with {len(own)} devices"
    rule = f"the plan has {len(wanted)} ranks" + (
        f", one on device {outside[1]} of server {outside[0]}" if outside else ""
    )
    return Fault("server_list", found, f"{rule}; must fit; take other servers, or set parallel.devices_per_server")


def _normal(name: str) -> str:
    ip = address(name)
    return str(ip) if ip else name.lower()
