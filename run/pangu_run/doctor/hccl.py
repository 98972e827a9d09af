"""Checks of HCCL's environment variables: whether numbers are in range, and addresses and interfaces belong to this
host.

Source: CANN 8.5 and 9.0, environment variables, HCCL.
"""

from collections.abc import Iterator

import psutil

from pangu_run import this_host
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.network import is_address
from pangu_run.doctor.site import Site

RANGES = {
    "HCCL_CONNECT_TIMEOUT": (120, 7200),
    "HCCL_EXEC_TIMEOUT": (0, 2147483647),
    "HCCL_IF_BASE_PORT": (1024, 65520),
    "HCCL_BUFFSIZE": (1, 2147483647),
    "HCCL_RDMA_TIMEOUT": (5, 24),
    "HCCL_RDMA_RETRY_CNT": (1, 7),
    "HCCL_RDMA_SL": (0, 7),
    "HCCL_RDMA_TC": (0, 255),
}
"""Smallest and largest value. On the first Ascend 910 the largest HCCL_EXEC_TIMEOUT is 17340."""


def numbers(site: Site) -> Iterator[Line]:
    """Timeouts, ports and sizes."""
    for name, (low, high) in RANGES.items():
        value = site.environment.get(name)
        if value is None:
            continue
        if not value.isdecimal():
            yield fail(name, f"{value!r} is not a whole number", f"`unset {name}`, or set {low} to {high}")
        elif not low <= int(value) <= high:
            yield fail(name, f"{value}; must be {low} to {high}", f"`unset {name}`, or set {low} to {high}")
    if site.environment.get("HCCL_EXEC_TIMEOUT") == "0":
        yield warn(
            "HCCL_EXEC_TIMEOUT",
            "0: a lost rank is waited for without end",
            "`unset HCCL_EXEC_TIMEOUT`, or set the seconds of the longest step or save",
        )


def addresses(site: Site) -> Iterator[Line]:
    """Whether HCCL_IF_IP and HCCL_SOCKET_IFNAME belong to this host."""
    address, names = site.environment.get("HCCL_IF_IP"), site.environment.get("HCCL_SOCKET_IFNAME")
    if address is not None:
        if not is_address(address):
            yield fail(
                "HCCL_IF_IP", f"{address!r} is not an address", "`unset HCCL_IF_IP`, or name this host's address"
            )
        elif address not in this_host.addresses():
            yield fail(
                "HCCL_IF_IP",
                f"{address} is not of this host",
                "each host has its own: `unset HCCL_IF_IP`, or use HCCL_SOCKET_IFNAME",
            )
        else:
            yield ok("HCCL_IF_IP", address)
    if names is not None and not any(_fits(interface, names) for interface in psutil.net_if_addrs()):
        interfaces = ", ".join(sorted(psutil.net_if_addrs()))
        yield fail(
            "HCCL_SOCKET_IFNAME",
            f"{names!r} fits no interface of this host ({interfaces})",
            "name one of them, or `unset HCCL_SOCKET_IFNAME`",
        )


def _fits(interface: str, names: str) -> bool:
    """Whether HCCL_SOCKET_IFNAME selects an interface: `eth` selects all interfaces whose names begin with it, `=eth0`
    only that one, and a leading `^` selects all others."""
    others, exact = names.startswith("^"), names.lstrip("^").startswith("=")
    words = [word.strip() for word in names.lstrip("^=").split(",") if word.strip()]
    return others != any(interface == word if exact else interface.startswith(word) for word in words)


CHECKS = (numbers, addresses)
