"""Checks of environment variables that contradict each other or this host: variables of the cluster, of Python and of
logs. hccl.py checks those of HCCL."""

import os
from collections.abc import Iterator
from pathlib import Path

from pangu_run.doctor import versions
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site

UNSET = "`unset {}`: the launcher sets it for each rank"
ROLES = ("MS_WORKER", "MS_SCHED", "MS_PSERVER")
LEFT_ON = {
    "GLOG_v": ("0", "1"),
    "ASCEND_GLOBAL_LOG_LEVEL": ("0", "1"),
    "MS_DEV_SAVE_GRAPHS": ("1", "2", "3"),
    "ASCEND_LAUNCH_BLOCKING": ("1",),
    "MS_SIMULATION_LEVEL": ("0", "1", "2", "3"),
}
"""Variables for debugging, with the values that make a real job slow or fill its disk. With MS_SIMULATION_LEVEL set,
MindSpore computes nothing at all."""
RELEVANT = ("MS_", "RANK_", "HCCL_", "ASCEND_", "GLOG_", "DEVICE_ID", "MINDSPORE_", "OMP_")


def ranks(site: Site) -> Iterator[Line]:
    """RANK_ID, RANK_SIZE and DEVICE_ID."""
    values = site.environment
    for name in ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "MS_WORKER_NUM"):
        if name in values and not values[name].isdecimal():
            yield fail(name, f"{values[name]!r} is not a number", UNSET.format(name))
    if "RANK_ID" in values and "RANK_SIZE" not in values:
        yield fail("RANK_ID", f"{values['RANK_ID']}, but no RANK_SIZE", UNSET.format("RANK_ID"))
    elif "RANK_SIZE" in values and "RANK_ID" not in values:
        yield fail("RANK_SIZE", f"{values['RANK_SIZE']}, but no RANK_ID", UNSET.format("RANK_SIZE"))
    elif "RANK_ID" in values:
        rank, world = values["RANK_ID"], values["RANK_SIZE"]
        if rank.isdecimal() and world.isdecimal() and int(rank) >= int(world):
            yield fail("RANK_ID", f"{rank} of RANK_SIZE={world}: ranks begin at 0", UNSET.format("RANK_ID RANK_SIZE"))
        else:
            yield warn(
                "RANK_ID",
                f"{rank} of {world} is set where a job is started, not by its launcher",
                UNSET.format("RANK_ID RANK_SIZE"),
            )
    if (size := values.get("RANK_SIZE")) and (workers := values.get("MS_WORKER_NUM")) and size != workers:
        yield fail("MS_WORKER_NUM", f"{workers}, but RANK_SIZE={size}", UNSET.format("MS_WORKER_NUM RANK_SIZE"))


def cluster(site: Site) -> Iterator[Line]:
    """MS_ROLE, MS_SCHED_HOST, MS_SCHED_PORT."""
    values = site.environment
    role, host, port = (values.get(name) for name in ("MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT"))
    if role is not None and role not in ROLES:
        yield fail("MS_ROLE", f"{role!r} is none of {', '.join(ROLES)}", UNSET.format("MS_ROLE"))
    if role is not None and (
        missing := [name for name in ("MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT") if name not in values]
    ):
        yield fail("MS_ROLE", f"{role}, but no {', '.join(missing)}", UNSET.format("MS_ROLE"))
    elif (host is None) != (port is None):
        there, other = ("MS_SCHED_HOST", "MS_SCHED_PORT") if host else ("MS_SCHED_PORT", "MS_SCHED_HOST")
        yield fail(there, f"{values[there]}, but no {other}", UNSET.format(there))
    if port is not None and not (port.isdecimal() and 0 < int(port) < 65536):
        yield fail("MS_SCHED_PORT", f"{port!r} is not a port, 1 to 65535", UNSET.format("MS_SCHED_PORT"))
    if host in ("127.0.0.1", "localhost") and site.num_servers > 1:
        yield fail(
            "MS_SCHED_HOST",
            f"{host} on a job of {site.num_servers} servers",
            "`unset MS_SCHED_HOST`: the launcher takes the first server's address",
        )


def rank_table_file(site: Site) -> Iterator[Line]:
    """RANK_TABLE_FILE and its older name."""
    values = site.environment
    paths = {name: values[name] for name in ("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH") if values.get(name)}
    for name, path in paths.items():
        if not Path(path).is_file():
            yield fail(name, f"{path} is no file", f"`unset {name}`, and name the table by --rank-table")
        elif site.table_path and Path(path).resolve() != Path(site.table_path).resolve():
            yield warn(
                name,
                f"{path}, but --rank-table is {site.table_path}",
                f"`unset {name}`: the launcher's option is taken",
            )
    if len(set(paths.values())) > 1:
        found = " and ".join(f"{name}={path}" for name, path in paths.items())
        yield fail("RANK_TABLE_FILE", found, f"`unset {' '.join(paths)}`, and name the table by --rank-table")
    if paths and values.get("MS_ROLE"):
        fix = f"`unset MS_ROLE {' '.join(paths)}`; `pangu launch --start` chooses"
        yield fail("MS_ROLE", f"{values['MS_ROLE']} with {next(iter(paths))}: two ways to start a cluster", fix)


def devices(site: Site) -> Iterator[Line]:
    """ASCEND_RT_VISIBLE_DEVICES and DEVICE_ID.

    Source: CANN 9.0, environment variables, ASCEND_RT_VISIBLE_DEVICES: numbers in ascending order, separated by commas
        only; text after any other character is ignored.
    """
    visible, device = site.environment.get("ASCEND_RT_VISIBLE_DEVICES"), site.environment.get("DEVICE_ID", "")
    if visible is None:
        return
    parts = visible.split(",")
    ids = [int(part) for part in parts if part.isdecimal()]
    if len(ids) < len(parts) or ids != sorted(set(ids)):
        yield fail(
            "ASCEND_RT_VISIBLE_DEVICES",
            f"{visible!r}: CANN reads rising numbers and commas, and stops at anything else",
            "write it as 0,1,2,3",
        )
        return
    if device.isdecimal() and int(device) >= len(ids):
        found = f"{device}, but ASCEND_RT_VISIBLE_DEVICES={visible} shows {len(ids)}: devices are counted among those"
        yield fail("DEVICE_ID", found, UNSET.format("DEVICE_ID"))
    if len(ids) < site.num_processes:
        found = f"{visible} shows {len(ids)} devices; the job has {site.num_processes} on this server"
        yield fail(
            "ASCEND_RT_VISIBLE_DEVICES",
            found,
            "`unset ASCEND_RT_VISIBLE_DEVICES`: the rank table says which devices a job has",
        )


def debugging(site: Site) -> Iterator[Line]:
    """Variables for debugging that are still set."""
    values = site.environment
    for name, slow in LEFT_ON.items():
        if values.get(name) in slow:
            yield warn(name, f"{values[name]}, for looking for errors: slow, and fills disks", f"`unset {name}`")
    level = values.get("GLOG_v")
    if level is not None and level not in ("0", "1", "2", "3", "4"):
        yield warn(
            "GLOG_v", f"{level!r} is no level, 0 (debug) to 4 (critical)", "export GLOG_v=2, or 3 for errors alone"
        )
    elif level == "4":
        yield warn("GLOG_v", "4 hides the reasons that MindSpore gives for its errors", "export GLOG_v=3")


def python_path(site: Site) -> Iterator[Line]:
    """A MindSpore on PYTHONPATH that differs from the installed one."""
    entries = [entry for entry in site.environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    own = versions.directory_of("mindspore")
    # Python searches PYTHONPATH before site-packages.
    for entry in entries:
        other = Path(entry) / "mindspore"
        if (other / "__init__.py").is_file() and other.resolve() != own:
            yield fail(
                "PYTHONPATH",
                f"{entry} has another mindspore, which is taken before the installed one",
                f"take {entry} out of PYTHONPATH",
            )


def threads(site: Site) -> Iterator[Line]:
    """OMP_NUM_THREADS compared with the cores of this host."""
    value, allowed = site.environment.get("OMP_NUM_THREADS"), len(os.sched_getaffinity(0))
    if value is None:
        return
    if not value.isdecimal() or int(value) < 1:
        yield fail(
            "OMP_NUM_THREADS", f"{value!r} is not a number of threads", "`unset OMP_NUM_THREADS`, or name 1 or more"
        )
    elif int(value) * site.num_processes > allowed:
        found = f"{value} for each of {site.num_processes} rank(s), on {allowed} cores"
        yield warn("OMP_NUM_THREADS", found, f"export OMP_NUM_THREADS={max(1, allowed // site.num_processes)}")


def cann_paths(site: Site) -> Iterator[Line]:
    """Whether CANN is installed and its set_env.sh was sourced."""
    home = versions.cann_home(site)
    if site.device == "cpu" or home is None:
        return
    loader = " ".join(
        path.read_text(errors="replace") for path in sorted(site.path("/etc/ld.so.conf.d").glob("*.conf"))
    )
    libraries = site.environment.get("LD_LIBRARY_PATH", "")
    if not any(directory in libraries + loader for directory in ("/Ascend", home)):
        yield fail(
            "LD_LIBRARY_PATH",
            "has no library of CANN",
            f"source {Path(home).parent}/set_env.sh (or {home}/set_env.sh) in the job's shell",
        )
    for name, part in (("ASCEND_OPP_PATH", "/opp"), ("PYTHONPATH", "opp/built-in/op_impl/ai_core/tbe")):
        if part not in site.environment.get(name, ""):  # as in MindSpore's own check: run_check/_check_version.py
            yield warn(
                name,
                f"has no {part}",
                f"source {Path(home).parent}/set_env.sh (or {home}/set_env.sh) in the job's shell",
            )


def variables_set(site: Site) -> Iterator[Line]:
    """Which variables of MindSpore and CANN are set."""
    found = sorted(name for name in site.environment if name.startswith(RELEVANT))
    yield ok("set here", ", ".join(found) if found else "none of MindSpore's or CANN's")


CHECKS = (variables_set, ranks, cluster, rank_table_file, devices, debugging, python_path, threads, cann_paths)
