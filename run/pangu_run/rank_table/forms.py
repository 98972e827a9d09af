"""Writes rank tables in the forms 1.0, 1.2 and group, merges several tables, and makes tables from hosts."""

import dataclasses
from typing import Any

from pangu_ms.core.errors import RankTableError
from pangu_run.rank_table import Device, RankTable, Server
from pangu_run.rank_table.parse import COMPLETED

FORMS = ("1.0", "1.2", "group")
GROUP_NAME = "job"


def as_form(table: RankTable, form: str) -> dict[str, Any]:
    """Content of a file in a form; additional keys of the table are kept if the form has the object that they belong
    to.

    Args:
        table: the table.
        form: one of FORMS.

    Raises:
        RankTableError: the form cannot represent the table.
    """
    return {"1.0": _list_form, "1.2": _super_pod_form, "group": _group_form}[form](table)


def merged(tables: list[RankTable], names: list[str]) -> RankTable:
    """One table with the servers of several tables. Ranks are renumbered: first those of the first table in their
    order, then those of the next table.

    Args:
        tables: one for each host, or for several.
        names: names of the tables in error messages.

    Raises:
        RankTableError: the merged table has faults, such as an address that occurs in two tables.
    """
    forms = {table.version for table in tables}
    if len(forms) > 1:
        raise RankTableError(
            f"{' + '.join(names)}: forms {', '.join(sorted(forms))}; must be of one form; `pangu ranktable convert --to"
            " 1.0` them first"
        )
    servers, first = [], 0
    for table in tables:
        for server in table.servers:
            servers.append(
                dataclasses.replace(
                    server,
                    devices=tuple(dataclasses.replace(one, rank_id=one.rank_id + first) for one in server.devices),
                )
            )
        first += table.world
    whole = dataclasses.replace(tables[0], servers=tuple(servers))
    RankTable.of(whole.as_dict(), " + ".join(names))
    return whole


def _list_form(table: RankTable) -> dict[str, Any]:
    servers = []
    for server in table.servers:
        devices = [_device(device, ranked=True, keep_super=False) for device in server.devices]
        servers.append({"server_id": server.server_id, "device": devices, **server.extra})
    return {
        "version": "1.0",
        "status": table.status,
        "server_count": str(len(servers)),
        "server_list": servers,
        **table.extra,
    }


def _super_pod_form(table: RankTable) -> dict[str, Any]:
    pods: dict[str, list[dict[str, str]]] = {}
    made = _list_form(table) | {"version": "1.2"}
    for i, server in enumerate(table.servers):
        if server.super_pod_id is None:
            raise RankTableError(
                f"server_list[{i}]: {server.server_id} is in no super pod; form 1.2 needs one for each server; take"
                " form 1.0"
            )
        if lacking := [device.device_id for device in server.devices if "super_device_id" not in device.extra]:
            raise RankTableError(
                f"server_list[{i}]: device {lacking[0]} has no super_device_id; form 1.2 needs one for each device;"
                " take form 1.0"
            )
        made["server_list"][i]["device"] = [_device(device, ranked=True, keep_super=True) for device in server.devices]
        pods.setdefault(server.super_pod_id, []).append({"server_id": server.server_id})
    made["super_pod_list"] = [{"super_pod_id": pod, "server_list": servers} for pod, servers in pods.items()]
    return made


def _group_form(table: RankTable) -> dict[str, Any]:
    instances = []
    for i, server in enumerate(table.servers):
        devices = [_device(device, ranked=False, keep_super=True) for device in server.devices]
        instances.append(
            {"devices": devices, "pod_name": f"{GROUP_NAME}-{i}", "server_id": server.server_id, **server.extra}
        )
    group = {
        "device_count": str(table.world),
        "group_name": GROUP_NAME,
        "instance_count": str(len(instances)),
        "instance_list": instances,
    }
    made = {"group_count": "1", "group_list": [group], "status": COMPLETED}
    # The group form has no rank ids, so its readers number the ranks themselves; the result must be the same.
    if _rank_order(RankTable.of(made, "group form")) != _rank_order(table):
        raise RankTableError(
            "rank_id: ranks do not go server by server in order of device_id; the group form has no rank ids; take"
            " form 1.0"
        )
    return made


def _rank_order(table: RankTable) -> list[tuple[str, int]]:
    return [(server.server_id, device.device_id) for server, device in table.ranks().values()]


def _device(device: Device, ranked: bool, keep_super: bool) -> dict[str, Any]:
    made = {"device_id": str(device.device_id)} | ({"device_ip": device.device_ip} if device.device_ip else {})
    made |= {"rank_id": str(device.rank_id)} if ranked else {}
    return made | {name: value for name, value in device.extra.items() if keep_super or name != "super_device_id"}


def made_table(hosts: list[str], device_ids: list[int], device_ips: list[list[str]] | None) -> RankTable:
    """A table of equal servers, whose ranks are numbered server by server.

    Args:
        hosts: addresses or names of the servers, which become their server ids.
        device_ids: devices of each server.
        device_ips: for each host the address of each device; None if devices have no addresses, as on a single server.

    Raises:
        RankTableError: the table has faults, such as an address given twice.
    """
    servers = []
    for h, host in enumerate(hosts):
        ips = device_ips[h] if device_ips else [None] * len(device_ids)
        devices = [
            Device(device, h * len(device_ids) + d, ip)
            for d, (device, ip) in enumerate(zip(device_ids, ips, strict=True))
        ]
        servers.append(Server(host, tuple(devices), (host,)))
    return RankTable.of(_list_form(RankTable(tuple(servers))), "--hosts")
