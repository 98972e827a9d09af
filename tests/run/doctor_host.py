"""A made-up Ascend server for the tests of the doctor: files under a directory, tools as scripts, the machine's own
numbers replaced.

recorded/*.txt are made after the public documentation of npu-smi, hccn_tool and CANN and after outputs that users
published; none was recorded here, and nothing was tried on hardware. hccn_ip.txt has N for the device's number.
"""

import json
import os
import resource
import socket
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil

from pangu_run.doctor import storage, versions
from pangu_run.doctor.site import Site
from pangu_run.rank_table import RankTable

RECORDED = Path(__file__).parent / "recorded"
SCRIPT = """#!/bin/sh
file="{answers}/${{0##*/}} $*"
[ -f "$file" ] || {{ echo "unknown words: $*"; exit 3; }}
[ -f "$file.hang" ] && {{ /bin/sleep 30 & echo $! > "$file.pid"; wait; }}
while IFS= read -r line; do echo "$line"; done < "$file"
[ -f "$file.fails" ] && exit 1
exit 0
"""
CANN = "/usr/local/Ascend/ascend-toolkit/latest"
SHELL = {
    "ASCEND_HOME_PATH": CANN,
    "LD_LIBRARY_PATH": f"{CANN}/lib64",
    "ASCEND_OPP_PATH": f"{CANN}/opp",
    "PYTHONPATH": f"{CANN}/opp/built-in/op_impl/ai_core/tbe",
}
VERSIONS = {"mindspore": "2.7.2", "mindformers": "1.8.0", "safetensors": "0.7.0"}
Entry = namedtuple("Entry", "family address")
Disk = namedtuple("Disk", "f_bavail f_blocks f_frsize f_files f_favail")
GIB = 1 << 30


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


class Host:
    """Server 0 of two with 8 devices each; all is well with it until a test changes something."""

    def __init__(self, directory: Path, monkeypatch):
        self.patch, self.root, self.answers, self.tools = (
            monkeypatch.setattr,
            directory / "host",
            directory / "answers",
            directory / "bin",
        )
        for made in (self.root, self.answers, self.tools, directory / "output"):
            made.mkdir()
        self.environment = {"PATH": str(self.tools), **SHELL}
        self.options = {"output": directory / "output", "master_port": free_port()}
        self.installed = dict(VERSIONS)
        self.limits = {}
        self._files()
        self._tools()
        self._machine()
        self.table = directory / "hccl.json"
        self.write_table()
        self.other_host()

    def _files(self):
        self.write("/usr/local/Ascend/driver/version.info", recorded("driver_version_info"))
        self.write("/usr/local/Ascend/firmware/version.info", recorded("firmware_version_info"))
        self.write(f"{CANN}/aarch64-linux/ascend_toolkit_install.info", recorded("toolkit_install_info"))
        self.write("/etc/hccn.conf", recorded("hccn_conf"))
        self.write(
            "/proc/self/mountinfo", "22 1 0:21 / / rw - ext4 /dev/sda rw\n31 22 0:44 / /tmp rw - nfs4 store:/ rw\n"
        )
        self.write("/proc/self/cgroup", "0::/job\n")
        self.write("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
        self.write("/proc/sys/net/ipv4/ip_local_reserved_ports", "60000-60031\n")
        self.write("/dev/shm/.keep", "")
        for node in range(2):
            self.write(f"/sys/devices/system/node/node{node}/cpulist", f"{node * 96}-{node * 96 + 95}\n")

    def _tools(self):
        for name in ("npu-smi", "hccn_tool", "chronyc", "timedatectl"):
            self.tool(name)
        self.answer("npu-smi info", recorded("npu_smi_info_910b"))
        self.answer("npu-smi info -t topo", recorded("npu_smi_topo_910b"))
        self.answer("chronyc -n tracking", recorded("chronyc_tracking"))
        for device in range(8):
            self.answer(f"hccn_tool -i {device} -ip -g", recorded("hccn_ip").replace("N", str(device)))
            self.answer(f"hccn_tool -i {device} -link -g", recorded("hccn_link"))
            self.answer(f"hccn_tool -i {device} -net_health -g", recorded("hccn_net_health"))
            self.answer(f"hccn_tool -i {device} -optical -g", recorded("hccn_optical"))

    def _machine(self):
        self.interfaces("10.0.0.1")
        self.patch(socket, "gethostname", lambda: "host-a")
        self.names({"host-a": "10.0.0.1"})
        self.patch(os, "sched_getaffinity", lambda _: set(range(192)))
        self.patch(psutil, "virtual_memory", lambda: SimpleNamespace(total=1024 * GIB, available=900 * GIB))
        self.patch(psutil, "swap_memory", lambda: SimpleNamespace(total=8 * GIB, used=0))
        self.patch(versions, "installed", lambda package: self.installed.get(package))
        self.disk(free=500 * GIB)
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        self.patch(
            resource,
            "getrlimit",
            lambda number: self.limits.get(number, (0, 0) if number == resource.RLIMIT_CORE else unlimited),
        )
        self.patch(storage, "PROBE_BYTES", 1 << 20)
        self.patch(storage, "SLOW", 0.0)

    def write(self, path: str, text: str):
        """A file of the host."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def remove(self, path: str):
        (self.root / path.lstrip("/")).unlink()

    def tool(self, name: str):
        (self.tools / name).write_text(SCRIPT.format(answers=self.answers))
        (self.tools / name).chmod(0o755)

    def no_tool(self, name: str):
        (self.tools / name).unlink()

    def answer(self, command: str, text: str, how: str | None = None):
        """What a tool says; `how` is None, "fails" or "hang"."""
        (self.answers / command).write_text(text)
        if how:
            (self.answers / f"{command}.{how}").touch()

    def swap(self, command: str, old: str, new: str):
        """Change what a tool says."""
        file = self.answers / command
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    def interfaces(self, address: str):
        entries = {"lo": [Entry(socket.AF_INET, "127.0.0.1")], "eth0": [Entry(socket.AF_INET, address)]}
        self.patch(psutil, "net_if_addrs", lambda: entries)

    def names(self, known: dict[str, str]):
        def look_up(name, port, *rest, **options):
            if name not in known:
                raise socket.gaierror(-2, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[name], port or 0))]

        self.patch(socket, "getaddrinfo", look_up)

    def disk(self, free: int, inodes: int = 1 << 20, shm: int = 64 * GIB):
        real = os.statvfs
        fake = {False: Disk(free, 2 * free, 1, 1 << 21, inodes), True: Disk(shm, shm, 1, 0, 0)}
        self.patch(
            os,
            "statvfs",
            lambda path: fake["shm" in str(path)] if str(path).startswith(str(self.root.parent)) else real(path),
        )

    def write_table(self, servers=("10.0.0.1", "10.0.0.2"), first="192.168.100.10", devices=8):
        prefixes = [first, *(f"192.168.{100 + server}.10" for server in range(1, len(servers)))]
        listed = []
        for server, (name, prefix) in enumerate(zip(servers, prefixes, strict=True)):
            entries = [
                {"device_id": f"{d}", "device_ip": f"{prefix}{d}", "rank_id": f"{server * devices + d}"}
                for d in range(devices)
            ]
            listed.append({"server_id": name, "device": entries, "host_nic_ip": "reserve"})
        self.table.write_text(
            json.dumps(
                {"version": "1.0", "server_count": f"{len(servers)}", "server_list": listed, "status": "completed"}
            )
        )

    def other_host(self, age: float = 60.0, skew: float = 0.0, **changed: str):
        """What the doctor of host-b left in the output directory."""
        own = versions.all_versions(Site(environment=self.environment, root=self.root))
        where = self.options["output"] / "job" / "doctor"
        where.mkdir(parents=True, exist_ok=True)
        word = {
            "host": "host-b",
            "addresses": ["10.0.0.2", "host-b"],
            "time": time.time() - age,
            "skew_s": skew,
            "versions": own | changed,
        }
        (where / "host-b.json").write_text(json.dumps(word))

    def site(self) -> Site:
        table = {"table": RankTable.read(self.table), "table_path": str(self.table)} if self.table else {}
        return Site(environment=self.environment, root=self.root, **table, **self.options)


def free_port() -> int:
    """A free port with a free one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            try:
                second.bind(("", first.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue
            return first.getsockname()[1]
