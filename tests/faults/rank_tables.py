"""Rank tables made by code: good ones of 1 to 2048 ranks, and bad ones, each with the place and words of the fault that
must be found."""

import copy
import json
from collections.abc import Callable
from typing import Any

Table = dict[str, Any]


def table(servers: int, devices: int = 8) -> Table:
    """A table of form 1.0."""
    rows = []
    for s in range(servers):
        row = [
            {"device_id": str(d), "device_ip": f"192.{s // 256}.{s % 256}.{d + 1}", "rank_id": str(s * devices + d)}
            for d in range(devices)
        ]
        rows.append({"server_id": f"10.0.{s // 256}.{s % 256}", "device": row, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(servers), "server_list": rows, "status": "completed"}


def super_pods(servers: int, devices: int, pods: int) -> Table:
    """A table of form 1.2, its servers dealt out to super pods in blocks."""
    made = table(servers, devices) | {"version": "1.2"}
    for s, server in enumerate(made["server_list"]):
        for d, device in enumerate(server["device"]):
            device["super_device_id"] = str(s * devices + d)
    size = servers // pods
    ids = [{"server_id": server["server_id"]} for server in made["server_list"]]
    made["super_pod_list"] = [
        {"super_pod_id": str(p), "server_list": ids[p * size : (p + 1) * size]} for p in range(pods)
    ]
    return made


def group(instances: int, devices: int = 8) -> Table:
    """A table of ModelArts' form."""
    rows = []
    for i in range(instances):
        row = [{"device_id": str(d), "device_ip": f"192.0.{i}.{d + 1}"} for d in range(devices)]
        rows.append({"devices": row, "pod_name": f"job0123abcd-job-train-{i}", "server_id": f"10.0.0.{i + 1}"})
    one = {
        "device_count": str(instances * devices),
        "group_name": "job-train",
        "instance_count": str(instances),
        "instance_list": rows,
    }
    return {"group_count": "1", "group_list": [one], "status": "completed"}


def lab(servers: int, devices: int) -> Table:
    """A table of the first hccl_tools: an instance for each device."""
    rows = [
        {
            "devices": [{"device_id": str(d), "device_ip": f"192.0.{s}.{d + 1}"}],
            "rank_id": str(s * devices + d),
            "server_id": f"10.0.0.{s + 1}",
        }
        for s in range(servers)
        for d in range(devices)
    ]
    count = str(servers * devices)
    one = {
        "device_num": count,
        "server_num": str(servers),
        "group_name": "",
        "instance_count": count,
        "instance_list": rows,
    }
    return {
        "board_id": "0x002f",
        "chip_info": "910",
        "deploy_mode": "lab",
        "group_count": "1",
        "group_list": [one],
        "status": "completed",
    }


def operator(servers: int, devices: int = 8) -> Table:
    """A table as Ascend Operator writes it."""
    made = table(servers, devices)
    for s, server in enumerate(made["server_list"]):
        del server["host_nic_ip"]
        server |= {"host_ip": server["server_id"], "container_ip": f"172.16.0.{s + 1}", "hardware_type": "800-A2"}
    return made


def changed(make: Callable[[], Table], *changes: tuple[str, Any]) -> bytes:
    """A table with values replaced: `server_list/0/device/1/rank_id`; a value of ... removes the key or item."""
    made = copy.deepcopy(make())
    for path, value in changes:
        *names, last = [int(name) if name.isdigit() else name for name in path.split("/")]
        place = made
        for name in names:
            place = place[name]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return dump(made)


def dump(value: Any) -> bytes:
    """As a file."""
    return json.dumps(value, indent=1).encode()


def two() -> Table:
    """2 servers with 4 devices each."""
    return table(2, 4)


def pods() -> Table:
    """4 servers with 2 devices each in 2 super pods."""
    return super_pods(4, 2, 2)


def jobs() -> Table:
    """2 instances with 2 devices each."""
    return group(2, 2)


def _without_ips(made: Table) -> bytes:
    for server in made["server_list"]:
        for device in server["device"]:
            del device["device_ip"]
    return dump(made)


def _shuffled() -> bytes:
    made = two()
    for server in made["server_list"]:
        server["device"].reverse()
    return dump(made)


D = "server_list/0/device/1/"
S = "server_list[0].device[1]"
LAST = "server_list[1].device[3]"

GOOD: dict[str, tuple[bytes, int]] = {
    "1 rank": (dump(table(1, 1)), 1),
    "1 rank without address": (_without_ips(table(1, 1)), 1),
    "8 ranks without addresses": (_without_ips(table(1, 8)), 8),
    "2 servers of 1": (dump(table(2, 1)), 2),
    "2 servers of 4": (dump(two()), 8),
    "16 devices": (dump(table(1, 16)), 16),
    "devices 4-7": (
        changed(
            lambda: table(1, 2), ("server_list/0/device/0/device_id", "6"), ("server_list/0/device/1/device_id", "7")
        ),
        2,
    ),
    "devices in another order": (_shuffled(), 8),
    "128 ranks": (dump(table(16)), 128),
    "1024 ranks": (dump(table(128)), 1024),
    "2048 ranks": (dump(table(256)), 2048),
    "no server_count": (changed(two, ("server_count", ...)), 8),
    "IPv6": (
        changed(
            lambda: table(1, 1),
            ("server_list/0/device/0/device_ip", "fd00::1"),
            ("server_list/0/server_id", "fd00::ff"),
        ),
        1,
    ),
    "two addresses each": (
        changed(lambda: table(1, 1), ("server_list/0/device/0/device_ip", "192.0.0.1,192.0.1.1")),
        1,
    ),
    "server names": (
        changed(two, ("server_list/0/server_id", "node_0"), ("server_list/1/server_id", "node-1.example.org")),
        8,
    ),
    "Ascend Operator": (dump(operator(4)), 32),
    "super pods": (dump(super_pods(8, 16, 2)), 128),
    "one super pod without addresses": (_without_ips(super_pods(4, 2, 1)), 8),
    "ModelArts": (dump(group(4)), 32),
    "lab": (dump(lab(2, 8)), 16),
}
"""Name -> file, world."""

BAD: dict[str, tuple[bytes, list[str]]] = {
    # the file
    "empty": (b"", ["file: is empty"]),
    "white space": (b" \n\t\n", ["file: is empty"]),
    "truncated in a list": (dump(two())[:200], ["the file ends in the middle"]),
    "truncated in a string": (dump(two())[:34], ["the file ends in the middle"]),
    "truncated at 2048 ranks": (dump(table(256))[:-3], ["the file ends in the middle"]),
    "half a byte": ('{"version": "1.0\u00e9'.encode()[:-1], ["line 1: byte 0xc3 is not UTF-8"]),
    "Latin-1": (b'{"version": "1.0",\n"status": "\xe9"}', ["line 2: byte 0xe9 is not UTF-8"]),
    "UTF-16": (dump(two()).decode().encode("utf-16"), ["line 1: byte 0xff is not UTF-8"]),
    "GBK": ('{"status": "\u5b8c\u6210"}'.encode("gbk"), ["is not UTF-8"]),
    "BOM": (b"\xef\xbb\xbf" + dump(two()), ["line 1 column 1: a byte order mark"]),
    "BOM and a bad rank": (
        b"\xef\xbb\xbf" + changed(two, (D + "rank_id", "9")),
        ["a byte order mark", f"{S}.rank_id: is 9", "no device has rank 1"],
    ),
    "64 MiB": (dump(two()) + b" " * (64 << 20), ["file: has 64 MiB"]),
    "binary": (bytes(range(256)), ["is not UTF-8"]),
    "null bytes": (bytes(100), ["line 1 column 1: expecting value"]),
    "YAML": (b"version: '1.0'\nstatus: completed\n", ["line 1 column 1: expecting value"]),
    "comment": (dump(two()).replace(b'"status"', b'// done\n "status"'), ["a comment"]),
    "trailing comma": (b'{"version": "1.0",\n "status": "completed",\n}', ["line 3 column 1"]),
    "single quotes": (b"{'version': '1.0'}", ["line 1 column 2"]),
    "two objects": (dump(two()) + dump(two()), ["extra data"]),
    "list": (dump([two()]), ["file: is a list"]),
    "string": (b'"hccl.json"', ["file: is a string"]),
    "number": (b"8", ["file: is a number"]),
    "null": (b"null", ["file: is null"]),
    "NaN": (dump(two()).replace(b'"1.0"', b"NaN"), ["file: has NaN"]),
    "infinity": (changed(two, (D + "rank_id", float("inf"))), ["file: has Infinity"]),
    "deep": (b"[" * 200_000 + b"]" * 200_000, ["is nested too deeply"]),
    "deep object": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, ["is nested too deeply"]),
    "deep below a device": (
        changed(two, (D + "device_id", json.loads("[" * 500 + "]" * 500))),
        ["file: is nested too deeply"],
    ),
    "endless number": (dump(two()).replace(b'"1.0"', b"9" * 5000), ["thousands of digits"]),
    "doubled key": (
        dump(two()).replace(b'"version": "1.0"', b'"version": "1.0", "version": "1.0"'),
        ["version: is given more than once"],
    ),
    "doubled key of a device": (
        dump(two()).replace(b'"rank_id": "7"', b'"rank_id": "6", "rank_id": "7"'),
        [f"{LAST}.rank_id: is given more than once"],
    ),
    # keys and kinds
    "no status": (changed(two, ("status", ...)), ["status: is missing"]),
    "initializing": (
        changed(two, ("status", "initializing"), ("server_list", None), ("server_count", "")),
        ['status: is "initializing"'],
    ),
    "failed": (changed(two, ("status", "failed")), ['status: is "failed"']),
    "no version": (changed(two, ("version", ...)), ["version: is missing"]),
    "unknown version": (changed(two, ("version", "2.0")), ['version: is "2.0"']),
    "version as number": (changed(two, ("version", 1.0)), ["version: is the number 1.0"]),
    "no list": (changed(two, ("server_list", ...)), ["has neither server_list nor group_list"]),
    "form 2.0": (
        dump({"version": "2.0", "status": "completed", "rank_count": "1", "rank_list": []}),
        ["has rank_list"],
    ),
    "ClusterD": (dump({"version": "1.0", "status": "completed", "server_group_list": []}), ["has server_group_list"]),
    "empty list": (changed(two, ("server_list", []), ("server_count", "0")), ["server_list: is empty"]),
    "list is an object": (changed(two, ("server_list", {})), ["server_list: is {}"]),
    "server is a string": (changed(two, ("server_list/1", "10.0.0.1")), ['server_list[1]: is "10.0.0.1"']),
    "no server_id": (changed(two, ("server_list/1/server_id", ...)), ["server_list[1].server_id: is missing"]),
    "empty server_id": (changed(two, ("server_list/1/server_id", "")), ["server_list[1].server_id: is empty"]),
    "no devices": (changed(two, ("server_list/1/device", ...)), ["server_list[1].device: is missing"]),
    "empty devices": (changed(two, ("server_list/1/device", [])), ["server_list[1].device: is empty"]),
    "device is null": (changed(two, ("server_list/0/device/1", None)), [f"{S}: is null"]),
    "no device_id": (changed(two, (D + "device_id", ...)), [f"{S}.device_id: is missing"]),
    "no rank_id": (changed(two, (D + "rank_id", ...)), [f"{S}.rank_id: is missing"]),
    "rank as number": (changed(two, (D + "rank_id", 1)), [f"{S}.rank_id: is the number 1"]),
    "rank as truth": (changed(two, (D + "rank_id", True)), [f"{S}.rank_id: is true"]),
    "rank as list": (changed(two, (D + "rank_id", ["1"])), [f'{S}.rank_id: is ["1"]']),
    "rank negative": (changed(two, (D + "rank_id", "-1")), [f'{S}.rank_id: "-1" is negative']),
    "rank negative number": (changed(two, (D + "rank_id", -1)), [f"{S}.rank_id: is the number -1", "is negative"]),
    "rank in hexadecimal": (changed(two, (D + "rank_id", "0x1")), [f'{S}.rank_id: "0x1" is no whole number']),
    "rank in other digits": (changed(two, (D + "rank_id", "\u0661")), [f"{S}.rank_id: is", "printable ASCII"]),
    "rank of many digits": (changed(two, (D + "rank_id", "9" * 5000)), [f"{S}.rank_id: ", "no whole number"]),
    # what values are together
    "rank twice": (
        changed(two, (D + "rank_id", "2")),
        ["rank_id: 2 is also at server_list[0].device[1].rank_id", "no device has rank 1"],
    ),
    "ranks from 1": (
        dump(json.loads(dump(table(1, 1)).replace(b'"rank_id": "0"', b'"rank_id": "1"'))),
        ["rank_id: is 1, and there are 1", "has rank 0"],
    ),
    "ranks missing in ranges": (
        changed(lambda: table(1), *((f"server_list/0/device/{d}/rank_id", str(100 + d)) for d in (1, 2, 3, 6))),
        [f"{S}.rank_id: is 101, and there are 8", "no device has rank 1-3,6"],
    ),
    "all ranks 0 of 2048": (
        dump(json.loads(json.dumps(table(256)).replace('"rank_id": "', '"rank_id": "0", "was": "'))),
        ["no device has rank 1-2047"],
    ),
    "address twice": (
        changed(two, (D + "device_ip", "192.0.1.4")),
        [f"{LAST}.device_ip: 192.0.1.4 is also at {S}.device_ip"],
    ),
    "bad address": (changed(two, (D + "device_ip", "192.0.0.256")), [f"{S}.device_ip: 192.0.0.256 is no IP address"]),
    "address with port": (
        changed(two, (D + "device_ip", "192.0.0.2:80")),
        [f"{S}.device_ip: 192.0.0.2:80 is no IP address"],
    ),
    "address 0.0.0.0": (changed(two, (D + "device_ip", "0.0.0.0")), [f"{S}.device_ip: 0.0.0.0 is no IP address"]),
    "no addresses on two servers": (
        _without_ips(two()),
        [f"{S}.device_ip: is missing", f"{LAST}.device_ip: is missing"],
    ),
    "address only here": (changed(two, (D + "device_ip", "")), [f"{S}.device_ip: is missing"]),
    "two addresses only here": (
        changed(two, (D + "device_ip", "192.0.0.2,192.0.9.2")),
        [f"{S}.device_ip: has 2 addresses"],
    ),
    "device twice": (
        changed(two, (D + "device_id", "2")),
        ["server_list[0].device[2].device_id: 2 is also at server_list[0].device[1].device_id"],
    ),
    "device 16": (changed(two, (D + "device_id", "16")), [f"{S}.device_id: is 16"]),
    "server twice": (
        changed(two, ("server_list/1/server_id", "10.0.0.0")),
        ["server_list[1].server_id: 10.0.0.0 is also at server_list[0].server_id"],
    ),
    "bad server address": (
        changed(two, ("server_list/1/server_id", "10.0.0.300")),
        ["server_list[1].server_id: 10.0.0.300 is no IP address"],
    ),
    "bad container address": (
        changed(lambda: operator(2, 2), ("server_list/1/container_ip", "pod")),
        ["server_list[1].container_ip: pod is no IP address"],
    ),
    "count": (changed(two, ("server_count", "3")), ["server_count: is 3, and there are 2"]),
    "unequal servers": (
        changed(lambda: table(3, 4), ("server_list/2/device/3", ...)),
        ["server_list[2]: has 3 devices"],
    ),
    # super pods, groups
    "super pods in 1.0": (changed(pods, ("version", "1.0")), ['version: is "1.0"']),
    "1.2 without super pods": (changed(pods, ("super_pod_list", ...)), ["super_pod_list: is missing"]),
    "server in no super pod": (
        changed(pods, ("super_pod_list/1/server_list/1", ...)),
        ["server_list[3]: 10.0.0.3 is in no super pod"],
    ),
    "server in two super pods": (
        changed(pods, ("super_pod_list/1/server_list/1/server_id", "10.0.0.0")),
        [
            'super_pod_list[1].server_list[1].server_id: "10.0.0.0" is already in super pod 0',
            "server_list[3]: 10.0.0.3 is in no super pod",
        ],
    ),
    "super pod of a stranger": (
        changed(pods, ("super_pod_list/0/server_list/0/server_id", "10.9.9.9")),
        ['"10.9.9.9" is not in server_list'],
    ),
    "super device twice": (
        changed(pods, ("server_list/1/device/0/super_device_id", "0")),
        ["server_list[1].device[0].super_device_id: 0 is also at"],
    ),
    "no super device": (
        changed(pods, ("server_list/1/device/0/super_device_id", ...)),
        ["server_list[1].device[0].super_device_id: is missing"],
    ),
    "group count": (changed(jobs, ("group_count", "2")), ["group_count: is 2, and there are 1"]),
    "instance count": (
        changed(jobs, ("group_list/0/instance_count", "3")),
        ["group_list[0].instance_count: is 3, and there are 2"],
    ),
    "device count": (
        changed(jobs, ("group_list/0/device_count", "16")),
        ["group_list[0].device_count: is 16, and there are 4"],
    ),
    "pod without index": (
        changed(jobs, ("group_list/0/instance_list/1/pod_name", "train")),
        ['pod_name: "train" does not end in -INDEX'],
    ),
    "pod twice": (
        changed(jobs, ("group_list/0/instance_list/1/pod_name", "job-0")),
        ["pod_name: two end in the same index"],
    ),
    "two pods on a server": (
        changed(jobs, ("group_list/0/instance_list/1/server_id", "10.0.0.1")),
        ["10.0.0.1 is also at"],
    ),
    "lab rank twice": (
        changed(lambda: lab(1, 2), ("group_list/0/instance_list/1/rank_id", "0")),
        ["0 is also at", "no device has rank 1"],
    ),
    "four faults at once": (
        changed(
            two,
            (D + "rank_id", "0"),
            (D + "device_ip", "x"),
            ("server_count", "9"),
            ("server_list/1/device/0/device_id", "99"),
        ),
        [
            f"{S}.rank_id: 0 is also at",
            f"{S}.device_ip: x is no IP",
            "server_count: is 9",
            "server_list[1].device[0].device_id: is 99",
        ],
    ),
}
"""Name -> file, words of the faults that must be found."""
