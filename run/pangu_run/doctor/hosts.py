"""Compares hosts by the files OUTPUT/job/doctor/HOST.json that the doctor writes on each of them: whether they share
the directory, and have the same clock and versions."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pangu_ms.core import files, small_json
from pangu_run import this_host
from pangu_run.doctor import clock, versions
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site
from pangu_run.doctor.storage import doctor_directory

OLD_S = 24 * 3600.0
MUST_BE_EQUAL = ("python", "mindspore", "mindformers", "cann")
"""Packages whose versions must be equal on all hosts: with another version a rank may compile a different graph, and
ranks would wait for each other in different collectives."""

_FORM: small_json.Form = {
    "host": str,
    "addresses": [str],
    "time": small_json.TIME,
    "skew_s": small_json.Between(-1e11, 1e11),
    "versions": dict,
}


def all_hosts(site: Site) -> Iterator[Line]:
    """Write this host's file, and compare it with those of the others."""
    where = doctor_directory(site)
    if where is None or not where.is_dir():
        if site.num_servers > 1:
            yield warn(
                "shared directory",
                "not looked at",
                "name --output DIR, the same on all servers, and run the doctor on each of them",
            )
        return
    own = marker(site, where)
    files.write_json(where / f"{own['host']}.json", own)
    others, broken = _read(where, own["host"])
    for name in broken:
        yield warn(
            "shared directory", f"{name} cannot be read", f"remove {where / name} and run the doctor on that host again"
        )
    yield from _missing(site, [own, *others])
    for other in sorted(others, key=lambda other: other["host"]):
        yield from _beside(own, other)


def marker(site: Site, where: Path) -> dict[str, Any]:
    """Content of this host's file."""
    seconds, _ = clock.skew(where)
    names = sorted({*this_host.names(), *([site.server.server_id] if site.server else [])})
    return {
        "host": socket.gethostname(),
        "addresses": names,
        # In the file system's time, which all hosts that share it have in common.
        "time": time.time() - seconds,
        "skew_s": seconds,
        "versions": versions.all_versions(site),
    }


def _read(where: Path, own: str) -> tuple[list[dict[str, Any]], list[str]]:
    found, broken = [], []
    for path in sorted(where.glob("*.json")):
        try:
            entry = small_json.read_object(path, form=_FORM)
        except ValueError:
            broken.append(path.name)
            continue
        if entry["host"] != own:
            found.append(entry)
    return found, broken


def _missing(site: Site, markers: list[dict[str, Any]]) -> Iterator[Line]:
    known: set[str] = set()
    for entry in markers:
        # Loopback names are the same on all hosts and identify none.
        known |= set(entry["addresses"]) - {"127.0.0.1", "::1", "localhost"}
    servers = site.roster.servers if site.roster else ()
    missing = [
        server.server_id
        for server in servers
        if server is not site.server and not known & {server.server_id, *server.addresses}
    ]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        found = f"no word of {', '.join(missing[:4])}{more}"
        yield warn(
            "shared directory",
            found,
            "run the doctor there with the same --output; if it was run, the directory is not shared: mount it there",
        )
    elif len(servers) > 1:
        yield ok("shared directory", f"all {len(servers)} servers have written to it")
    elif len(markers) > 1:
        yield ok("shared directory", f"written by {', '.join(sorted(entry['host'] for entry in markers))}")


def _beside(own: dict[str, Any], other: dict[str, Any]) -> Iterator[Line]:
    what, age = f"host {other['host']}", own["time"] - other["time"]
    if age > OLD_S:
        yield warn(what, f"its word is {age / 3600:.0f} h old", "run the doctor there again, or remove its file")
        return
    line = clock.skew_line(what, own["skew_s"] - other["skew_s"], f"the clock of {other['host']}")
    if line.level != "OK":
        yield line
    for name, version in own["versions"].items():
        if other["versions"].get(name) != version:
            kind = fail if name in MUST_BE_EQUAL else warn
            yield kind(
                what,
                f"{name} {other['versions'].get(name)} there, {version} here",
                "install the same on all hosts of a job",
            )
    if line.level == "OK" and other["versions"] == own["versions"]:
        yield ok(what, f"seen {max(age, 0) / 60:.0f} min ago, same versions, clock {line.found.partition(' of ')[0]}")


CHECKS = (all_hosts,)
