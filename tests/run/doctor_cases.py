"""Each rule of the doctor: what changes on a healthy server, and the line that must come of it."""

import os
import resource
import socket
import sys
import time

import psutil

from pangu_run.cli import doctor as cli
from pangu_run.doctor import site, storage
from tests.run.doctor_host import CANN, GIB, recorded


def alone(host):
    """The same host with a job of its own: no rank table, no other host."""
    host.table = None
    (host.options["output"] / "job/doctor/host-b.json").unlink()


def without_table(host, *names):
    """A job of several hosts that --hosts names."""
    host.table = None
    host.options["hosts"] = names


def no_chrony(host, answer):
    host.no_tool("chronyc")
    host.answer("timedatectl show -p NTPSynchronized", answer)


def python_version(host, *version):
    host.patch(sys, "version_info", (*version, "final", 0))


def holding(host, offset):
    """Another process listens on the port."""
    listener = socket.socket()
    listener.bind(("", host.options["master_port"] + offset))
    listener.listen()
    host.listener = listener  # open until the test ends


def limit(name, soft, hard=resource.RLIM_INFINITY):
    return lambda host: host.limits.update({getattr(resource, f"RLIMIT_{name}"): (soft, hard)})


def clock_ahead(host, seconds):
    """This host's clock, against the file system's."""
    real = time.time
    host.patch(time, "time", lambda: real() + seconds)


def variables(**values):
    return lambda host: host.environment.update(values)


def no_shared_rename(host):
    """A file system whose rename copies, and leaves the old name."""
    host.patch(os, "replace", lambda old, new: open(new, "wb").close())


def full_disk(host):
    def sync(descriptor):
        raise OSError(28, "No space left on device")

    host.patch(os, "fsync", sync)


def mount(kind):
    rows = "22 1 0:21 / / rw - ext4 /dev/sda rw\n31 22 0:44 / {} rw - {} x rw\n"
    return lambda host: host.write("/proc/self/mountinfo", rows.format(host.options["output"].parent, kind))


def another_mindspore(host):
    other = host.root / "src" / "mindspore"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    host.environment["PYTHONPATH"] += f":{other.parent}"


def describe(text, code=0):
    """What pangu_ms.cli.train_describe says of --config."""

    def change(host):
        program = host.root / "python"
        program.write_text(
            f"#!/bin/sh\nfor last; do :; done\n[ \"$last\" = alpha/tiny ] || exit 9\necho '{text}'\nexit {code}\n"
        )
        program.chmod(0o755)
        host.patch(sys, "executable", str(program))
        host.options["config"] = ("--config", "alpha/tiny")

    return change


def describe_fault(text):
    """The same of a configuration with a mistake."""
    return describe(f"' >&2; echo 'pangu train: {text}' >&2; echo '", 2)


def both(*changes):
    return lambda host: [change(host) for change in changes]


CASES = {
    "versions": {
        "old python": (lambda h: python_version(h, 3, 9, 2), "FAIL Python", "3.9.2; needs 3.10 to 3.12"),
        "new python": (lambda h: python_version(h, 3, 13, 0), "FAIL Python", "3.13.0"),
        "no mindspore": (lambda h: h.installed.pop("mindspore"), "FAIL MindSpore", "not installed"),
        "mindspore 2.8": (
            lambda h: h.installed.update(mindspore="2.8.0"),
            "FAIL MindSpore",
            "2.8.0; needs 2.9 or 2.7.2",
        ),
        "mindspore 2.7.20": (lambda h: h.installed.update(mindspore="2.7.20"), "FAIL MindSpore", "2.7.20"),
        "no mindformers": (lambda h: h.installed.pop("mindformers"), "WARN MindFormers", "not installed"),
        "other mindformers": (
            lambda h: h.installed.update(mindformers="1.9.0"),
            "WARN MindFormers",
            "1.9.0 with MindSpore 2.7.2",
        ),
        "wrong safetensors": (
            lambda h: h.installed.update(safetensors="0.8.0"),
            "FAIL safetensors",
            "0.8.0 writes wrong values",
        ),
        "no safetensors": (lambda h: h.installed.pop("safetensors"), "FAIL safetensors", "not installed"),
        "no cann": (
            lambda h: h.remove(f"{CANN}/aarch64-linux/ascend_toolkit_install.info"),
            "FAIL CANN",
            f"{CANN} says no version",
        ),
        "other cann": (
            lambda h: h.write(f"{CANN}/aarch64-linux/ascend_toolkit_install.info", "version=8.3.RC1\n"),
            "FAIL CANN",
            "8.3.RC1; MindSpore 2.7.2 takes 8.5",
        ),
        "accepted cann": (
            lambda h: h.installed.update(mindspore="2.9.0"),
            "WARN CANN",
            "MindSpore 2.9 accepts it, but was released with 9.0",
        ),
        "cann alone": (lambda h: h.installed.pop("mindspore"), "WARN CANN", "no known MindSpore"),
        "no driver": (lambda h: h.remove("/usr/local/Ascend/driver/version.info"), "FAIL driver", "no version in"),
        "old driver": (
            lambda h: h.write("/usr/local/Ascend/driver/version.info", "Version=24.1.rc3\n"),
            "WARN driver",
            "24.1.rc3, older than 25.5",
        ),
        "no firmware": (
            lambda h: h.remove("/usr/local/Ascend/firmware/version.info"),
            "WARN firmware",
            "no version in",
        ),
        "old firmware": (
            lambda h: h.write("/usr/local/Ascend/firmware/version.info", "Version=6.4.12.1.241\n"),
            "FAIL firmware",
            "driver 25.5.0 takes 7.0.0 to 8.9.9",
        ),
    },
    "devices": {
        "table without npu": (
            lambda h: h.options.update(wanted_device="cpu"),
            "WARN devices",
            "names NPUs, and this host has none",
        ),
        "no npu-smi": (lambda h: h.no_tool("npu-smi"), "FAIL devices", "npu-smi is not installed"),
        "dead driver": (
            lambda h: h.answer("npu-smi info", recorded("npu_smi_no_driver"), "fails"),
            "FAIL devices",
            "exit code 1: dcmi module initialize failed. ret is -8005",
        ),
        "npu-smi hangs": (
            lambda h: (h.patch(site, "TOOL_S", 0.3), h.answer("npu-smi info", "", "hang")),
            "FAIL devices",
            "gave no answer in 0.3 s",
        ),
        "no devices": (lambda h: h.answer("npu-smi info", "nothing\n"), "FAIL devices", "`npu-smi info` shows none"),
        "two kinds": (
            lambda h: h.swap("npu-smi info", "| 3     910B3", "| 3     910B4"),
            "WARN device kinds",
            "910B3, 910B4",
        ),
        "too few devices": (
            lambda h: h.answer("npu-smi info", recorded("npu_smi_info_910b").partition("| 6     910B3")[0]),
            "FAIL devices wanted",
            "6-7 of ",
        ),
        "alarm": (
            lambda h: h.swap(
                "npu-smi info",
                "| 0     910B3               | OK            ",
                "| 0     910B3               | Alarm         ",
            ),
            "FAIL device health",
            "Alarm: 0",
        ),
        "warning": (
            lambda h: h.swap("npu-smi info", "| OK            ", "| Warning       "),
            "WARN device health",
            "Warning: 0",
        ),
        "device in use": (
            lambda h: h.answer("npu-smi info", recorded("npu_smi_info_910_93")),
            "WARN device memory",
            "pid 499214 (python) on 1",
        ),
        "device full": (
            lambda h: h.swap("npu-smi info", "3341 / 65536", "60000/ 65536"),
            "WARN device memory",
            "5.4 GiB free at least; in use: 3; no process",
        ),
        "no topology": (
            lambda h: h.answer("npu-smi info -t topo", "not supported\n", "fails"),
            "WARN device links",
            "exit code 1: not supported",
        ),
        "no hccs": (
            lambda h: h.answer("npu-smi info -t topo", recorded("npu_smi_topo_910b").replace("HCCS", "SYS ")),
            "WARN device links",
            "0-7 has no HCCS link: SYS",
        ),
        "cores elsewhere": (
            lambda h: h.patch(os, "sched_getaffinity", lambda _: set(range(96))),
            "WARN cores of devices",
            "none near 0-3 is allowed to this process (0-95)",
        ),
        "no hccn_tool": (lambda h: h.no_tool("hccn_tool"), "WARN device links (RoCE)", "hccn_tool is not installed"),
        "hccn_tool fails": (
            lambda h: h.answer("hccn_tool -i 2 -link -g", "hccn_tool is busy\n", "fails"),
            "FAIL device links (RoCE)",
            "2: `hccn_tool -i 2 -link -g` ended with exit code 1: hccn_tool is busy",
        ),
        "nothing to ask for": (
            lambda h: (h.no_tool("npu-smi"), h.remove("/etc/hccn.conf")),
            "WARN device addresses",
            "no device to ask for",
        ),
        "link down": (
            lambda h: h.swap("hccn_tool -i 5 -link -g", "UP", "DOWN"),
            "FAIL device links (RoCE)",
            "DOWN: 5; no optical module",
        ),
        "network fault": (
            lambda h: h.swap("hccn_tool -i 1 -net_health -g", "Success", "Receive timeout"),
            "FAIL device network",
            "Receive timeout: 1",
        ),
        "network untested": (
            lambda h: h.swap("hccn_tool -i 1 -net_health -g", "Success", "Init"),
            "WARN device network",
            "not tested yet (Init): 1",
        ),
        "no address": (
            lambda h: h.answer("hccn_tool -i 4 -ip -g", "\n"),
            "FAIL device addresses",
            "none on 4 (hccn_tool)",
        ),
        "no address, one host": (
            lambda h: (alone(h), h.answer("hccn_tool -i 4 -ip -g", "\n")),
            "WARN device addresses",
            "none on 4 (hccn_tool)",
        ),
        "address twice": (
            lambda h: h.swap("hccn_tool -i 4 -ip -g", "104", "103"),
            "FAIL device addresses",
            "192.168.100.103 on several devices",
        ),
        "address changed": (
            lambda h: h.write("/etc/hccn.conf", "address_4=192.168.7.7\n"),
            "WARN device addresses",
            "4: 192.168.100.104 in effect, 192.168.7.7 in /etc/hccn.conf",
        ),
        "two addresses": (
            lambda h: h.write("/etc/hccn.conf", "address_4=192.168.7.7\naddress_4=192.168.7.8\n"),
            "FAIL device addresses",
            "device 4 has 192.168.7.7 and 192.168.7.8",
        ),
        "other table": (
            lambda h: h.write_table(first="192.168.9.10"),
            "FAIL rank table addresses",
            "device 0: 192.168.100.100 here, 192.168.9.100 in the table",
        ),
    },
    "network": {
        "bad table": (lambda h: h.options.update(table_fault="hccl.json: truncated"), "FAIL rank table", "truncated"),
        "not in the table": (lambda h: h.interfaces("10.9.9.9"), "FAIL rank table", "this host is not in it"),
        "unknown server": (
            lambda h: h.write_table(servers=("host-a", "host-z")),
            "FAIL server names",
            "no address for host-z",
        ),
        "own name unknown": (lambda h: h.names({}), "WARN own name", "host-a has no address"),
        "own name is local": (
            lambda h: h.names({"host-a": "127.0.1.1"}),
            "WARN own name",
            "host-a is 127.0.1.1, which other hosts cannot reach",
        ),
        "first host is local": (
            lambda h: (h.names({"host-a": "127.0.1.1", "host-b": "10.0.0.2"}), without_table(h, "host-a", "host-b")),
            "FAIL first host",
            "host-a is 127.0.1.1 here, which other hosts cannot reach",
        ),
        "own name is local, hosts": (
            lambda h: (h.names({"host-a": "127.0.1.1", "host-b": "10.0.0.2"}), without_table(h, "host-b", "host-a")),
            "WARN own name",
            "host-a is 127.0.1.1, which other hosts cannot reach",
        ),
        "unknown first host": (
            lambda h: h.options.update(master_address="leader"),
            "FAIL first host",
            "leader has no address",
        ),
        "not among the hosts": (
            lambda h: without_table(h, "10.0.0.8", "10.0.0.9"),
            "FAIL hosts",
            "this host is not in it",
        ),
        "port taken": (lambda h: holding(h, 0), "FAIL ", f"taken by pid {os.getpid()}"),
        "next port taken": (lambda h: holding(h, 1), "FAIL ", "the launcher needs it"),
        "port of a hidden process": (
            lambda h: (holding(h, 0), h.patch(psutil, "net_connections", lambda kind: [])),
            "FAIL ",
            "a process that this user may not see",
        ),
        "hccl ports": (
            lambda h: h.write("/proc/sys/net/ipv4/ip_local_reserved_ports", "60000-60015\n"),
            "WARN HCCL's ports",
            "60000-60031 may be given",
        ),
        "proxy": (
            variables(http_proxy="http://proxy:3128", no_proxy="10.0.0.1,.local"),
            "WARN http_proxy",
            "no_proxy lacks 10.0.0.2",
        ),
    },
    "hosts": {
        "host of --hosts not seen": (
            lambda h: without_table(h, "10.0.0.1", "10.0.0.2", "10.0.0.3"),
            "WARN shared directory",
            "no word of 10.0.0.3",
        ),
        "no shared directory": (lambda h: h.options.update(output=None), "WARN shared directory", "not looked at"),
        "host not seen": (
            lambda h: h.write_table(servers=("10.0.0.1", "10.0.0.2", "10.0.0.3")),
            "WARN shared directory",
            "no word of 10.0.0.3",
        ),
        "broken word": (
            lambda h: (h.options["output"] / "job/doctor/host-c.json").write_text('{"host": "host-c"}'),
            "WARN shared directory",
            "host-c.json cannot be read",
        ),
        "old word": (lambda h: h.other_host(age=3 * 86400), "WARN host host-b", "its word is 72 h old"),
        "clocks apart": (lambda h: h.other_host(skew=30.0), "WARN host host-b", "30.0 s behind the clock of host-b"),
        "clocks far apart": (
            lambda h: h.other_host(skew=-90.0),
            "FAIL host host-b",
            "90.0 s ahead of the clock of host-b",
        ),
        "other mindspore there": (
            lambda h: h.other_host(mindspore="2.9.0"),
            "FAIL host host-b",
            "mindspore 2.9.0 there, 2.7.2 here",
        ),
        "other driver there": (
            lambda h: h.other_host(driver="25.3.rc1"),
            "WARN host host-b",
            "driver 25.3.rc1 there, 25.5.0 here",
        ),
    },
    "disk": {
        "output is a file": (lambda h: h.options.update(output=h.table), "FAIL output", "Not a directory"),
        "tmpfs": (mount("tmpfs"), "WARN file system", "gone with the container"),
        "object store": (mount("fuse.obsfs"), "WARN file system", "a rename copies"),
        "local disk": (mount("xfs"), "WARN file system", "local, unless this host exports it"),
        "short files": (lambda h: (alone(h), mount("vfat")(h)), "FAIL largest file", "4.0 GiB on vfat"),
        "little room": (lambda h: h.disk(free=100 * GIB), "WARN disk room", "100.0 GiB free; less than 200.0 GiB"),
        "no room": (lambda h: h.disk(free=GIB // 2), "FAIL disk room", "512 MiB free"),
        "no inodes": (lambda h: h.disk(free=500 * GIB, inodes=12), "WARN inodes", "12 free"),
        "file limit": (limit("FSIZE", 4 * GIB), "WARN largest file", "ulimit -f allows 4.0 GiB"),
        "small file limit": (limit("FSIZE", GIB // 2), "FAIL largest file", "ulimit -f allows 512 MiB"),
        "slow disk": (lambda h: h.patch(storage, "SLOW", 1e15), "WARN write speed", "MB/s"),
        "rename copies": (no_shared_rename, "FAIL rename", "does not replace a file whole"),
        "write fails": (full_disk, "FAIL write", "No space left on device"),
    },
    "clock": {
        "clock ahead": (lambda h: clock_ahead(h, 7), "WARN clock", " s ahead of the file system's clock"),
        "clock wrong": (lambda h: clock_ahead(h, -3600), "FAIL clock", " s behind the file system's clock"),
        "chrony lost": (
            lambda h: h.swap("chronyc -n tracking", "Normal", "Not synchronised"),
            "WARN network time",
            "chrony is not synchronised",
        ),
        "no network time": (lambda h: no_chrony(h, "NTPSynchronized=no\n"), "WARN network time", "not synchronised"),
        "network time unknown": (
            lambda h: (h.no_tool("chronyc"), h.no_tool("timedatectl")),
            "WARN network time",
            "not known: chronyc is not installed",
        ),
    },
    "machine": {
        "cgroup's memory": (
            lambda h: (
                h.write("/sys/fs/cgroup/job/memory.max", str(8 * GIB)),
                h.write("/sys/fs/cgroup/job/memory.current", str(2 * GIB)),
            ),
            "WARN memory",
            "6.0 GiB free of 8.0 GiB that the cgroup allows; 8 rank(s) take 16.0 GiB",
        ),
        "older cgroup": (
            lambda h: h.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", str(GIB // 2)),
            "FAIL memory",
            "512 MiB free of 512 MiB",
        ),
        "small shm": (
            lambda h: h.disk(500 * GIB, shm=64 << 20),
            "WARN /dev/shm",
            "64 MiB free of 64 MiB; less than 1.0 GiB",
        ),
        "no shm": (
            lambda h: h.patch(os, "statvfs", lambda path: (_ for _ in ()).throw(OSError(2, "No such file"))),
            "WARN /dev/shm",
            "No such file",
        ),
        "swapped": (
            lambda h: h.patch(psutil, "swap_memory", lambda: type("", (), {"used": 3 * GIB, "total": 8 * GIB})),
            "WARN swap",
            "3.0 GiB of 8.0 GiB in use",
        ),
        "cpu quota": (lambda h: h.write("/sys/fs/cgroup/job/cpu.max", "400000 100000\n"), "WARN cores", "4.0 by quota"),
        "few cores": (lambda h: h.patch(os, "sched_getaffinity", lambda _: {0, 1}), "WARN cores", "for 8 ranks"),
        "no numa": (
            lambda h: [
                h.remove(f"/sys/devices/system/node/node{n}/cpulist")
                or (h.root / f"sys/devices/system/node/node{n}").rmdir()
                for n in (0, 1)
            ],
            "WARN NUMA",
            "nodes not known",
        ),
        "node left out": (
            lambda h: h.patch(os, "sched_getaffinity", lambda _: set(range(96))),
            "WARN NUMA",
            "no core of node 1 of 2",
        ),
        "open files": (limit("NOFILE", 1024), "WARN open files", "1024; less than 65536"),
        "processes": (limit("NPROC", 1024, 1024), "WARN processes", "1024; less than 4096"),
        "locked memory": (limit("MEMLOCK", 65536), "WARN locked memory", "65536; less than unlimited"),
        "core files": (limit("CORE", resource.RLIM_INFINITY), "WARN core files", "not limited"),
    },
    "environment": {
        "rank is no number": (variables(RANK_ID="a", RANK_SIZE="8"), "FAIL RANK_ID", "'a' is not a number"),
        "rank without size": (variables(RANK_ID="3"), "FAIL RANK_ID", "3, but no RANK_SIZE"),
        "size without rank": (variables(RANK_SIZE="8"), "FAIL RANK_SIZE", "8, but no RANK_ID"),
        "rank too large": (variables(RANK_ID="8", RANK_SIZE="8"), "FAIL RANK_ID", "ranks begin at 0"),
        "rank in the shell": (variables(RANK_ID="0", RANK_SIZE="8"), "WARN RANK_ID", "set where a job is started"),
        "sizes differ": (variables(RANK_SIZE="8", MS_WORKER_NUM="16"), "FAIL MS_WORKER_NUM", "16, but RANK_SIZE=8"),
        "unknown role": (variables(MS_ROLE="MS_BOSS"), "FAIL MS_ROLE", "'MS_BOSS' is none of"),
        "role alone": (
            variables(MS_ROLE="MS_WORKER", MS_SCHED_PORT="8118"),
            "FAIL MS_ROLE",
            "no MS_WORKER_NUM, MS_SCHED_HOST",
        ),
        "host without port": (
            variables(MS_SCHED_HOST="10.0.0.1"),
            "FAIL MS_SCHED_HOST",
            "10.0.0.1, but no MS_SCHED_PORT",
        ),
        "port without host": (variables(MS_SCHED_PORT="8118"), "FAIL MS_SCHED_PORT", "8118, but no MS_SCHED_HOST"),
        "no such port": (
            variables(MS_SCHED_HOST="10.0.0.1", MS_SCHED_PORT="99999"),
            "FAIL MS_SCHED_PORT",
            "'99999' is not a port",
        ),
        "local scheduler": (
            variables(MS_SCHED_HOST="127.0.0.1", MS_SCHED_PORT="8118"),
            "FAIL MS_SCHED_HOST",
            "127.0.0.1 on a job of 2 servers",
        ),
        "table not there": (
            variables(RANK_TABLE_FILE="/no/such.json"),
            "FAIL RANK_TABLE_FILE",
            "/no/such.json is no file",
        ),
        "another table": (variables(RANK_TABLE_FILE=__file__), "WARN RANK_TABLE_FILE", "but --rank-table is"),
        "two tables": (
            variables(RANK_TABLE_FILE=__file__, MINDSPORE_HCCL_CONFIG_PATH=cli.__file__),
            "FAIL RANK_TABLE_FILE",
            " and MINDSPORE_HCCL_CONFIG_PATH=",
        ),
        "role and table": (
            variables(MS_ROLE="MS_WORKER", RANK_TABLE_FILE=__file__),
            "FAIL MS_ROLE",
            "two ways to start a cluster",
        ),
        "visible with space": (
            variables(ASCEND_RT_VISIBLE_DEVICES="0, 1"),
            "FAIL ASCEND_RT_VISIBLE_DEVICES",
            "stops at anything else",
        ),
        "visible descending": (
            variables(ASCEND_RT_VISIBLE_DEVICES="1,0"),
            "FAIL ASCEND_RT_VISIBLE_DEVICES",
            "rising numbers",
        ),
        "device not visible": (
            variables(ASCEND_RT_VISIBLE_DEVICES="4,5,6,7", DEVICE_ID="4"),
            "FAIL DEVICE_ID",
            "4, but ASCEND_RT_VISIBLE_DEVICES=4,5,6,7 shows 4",
        ),
        "too few visible": (
            variables(ASCEND_RT_VISIBLE_DEVICES="4,5,6,7"),
            "FAIL ASCEND_RT_VISIBLE_DEVICES",
            "shows 4 devices; the job has 8",
        ),
        "debug log": (variables(GLOG_v="0"), "WARN GLOG_v", "for looking for errors"),
        "simulation": (variables(MS_SIMULATION_LEVEL="1"), "WARN MS_SIMULATION_LEVEL", "for looking for errors"),
        "no log level": (variables(GLOG_v="info"), "WARN GLOG_v", "'info' is no level"),
        "silent log": (variables(GLOG_v="4"), "WARN GLOG_v", "hides the reasons"),
        "another mindspore": (another_mindspore, "FAIL PYTHONPATH", "has another mindspore"),
        "threads no number": (variables(OMP_NUM_THREADS="all"), "FAIL OMP_NUM_THREADS", "'all' is not a number"),
        "too many threads": (
            variables(OMP_NUM_THREADS="48"),
            "WARN OMP_NUM_THREADS",
            "48 for each of 8 rank(s), on 192 cores",
        ),
        "no cann libraries": (variables(LD_LIBRARY_PATH="/usr/lib"), "FAIL LD_LIBRARY_PATH", "no library of CANN"),
        "set_env.sh not sourced": (variables(ASCEND_OPP_PATH=""), "WARN ASCEND_OPP_PATH", "has no /opp"),
        "timeout no number": (
            variables(HCCL_CONNECT_TIMEOUT="10min"),
            "FAIL HCCL_CONNECT_TIMEOUT",
            "'10min' is not a whole number",
        ),
        "timeout too long": (
            variables(HCCL_CONNECT_TIMEOUT="72000"),
            "FAIL HCCL_CONNECT_TIMEOUT",
            "72000; must be 120 to 7200",
        ),
        "no timeout": (variables(HCCL_EXEC_TIMEOUT="0"), "WARN HCCL_EXEC_TIMEOUT", "waited for without end"),
        "no address in IF_IP": (variables(HCCL_IF_IP="eth0"), "FAIL HCCL_IF_IP", "'eth0' is not an address"),
        "another's address": (variables(HCCL_IF_IP="10.0.0.2"), "FAIL HCCL_IF_IP", "10.0.0.2 is not of this host"),
        "no such interface": (
            variables(HCCL_SOCKET_IFNAME="=eth"),
            "FAIL HCCL_SOCKET_IFNAME",
            "fits no interface of this host (eth0, lo)",
        ),
    },
    "configuration": {
        "other world": (
            describe('{"world": 8, "device": "Ascend", "placement": [], "devices_per_server": 8}'),
            "FAIL configuration",
            "8 ranks; ",
        ),
        "bad configuration": (describe_fault("a.yaml: no such field"), "FAIL configuration", "a.yaml: no such field"),
        "strange description": (describe("hello"), "FAIL configuration", "no description but 'hello'"),
    },
}
"""By kind of check and name: (what changes, level of the line and the beginning of its `what`, a part of its
`found`)."""
