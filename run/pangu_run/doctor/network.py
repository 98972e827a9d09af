"""Checks of this host's network: which of the job's servers it is, names of servers, ports. No other host is
contacted."""

import ipaddress
import shlex
import socket
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil

from pangu_ms.core.errors import RankTableError
from pangu_run.doctor.check import Line, fail, ok, warn
from pangu_run.doctor.site import Site

MAX_FAULT_TEXT = 240
"""Maximum number of characters of a rank table's faults in a line."""
HCCL_PORT, HCCL_PORTS = 60000, 32
"""First host port that HCCL uses, and their number (16 before CANN 8.2), unless HCCL_IF_BASE_PORT sets others. Source:
CANN 8.5, environment variables, HCCL_IF_BASE_PORT."""


def is_address(word: str) -> bool:
    """Whether a text is an IP address and not a name."""
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True


def rank_table(site: Site) -> Iterator[Line]:
    """Whether the rank table can be read, and whether this host is in it or among --hosts."""
    if site.table_fault:
        words = textwrap.shorten(site.table_fault, MAX_FAULT_TEXT, placeholder=" ...")
        yield fail(
            "rank table", words, f"`pangu ranktable check {shlex.quote(str(site.table_path))}` names every fault"
        )
    if site.roster is None:
        return
    what, has = (
        ("rank table", f"{site.table.world} ranks on {site.num_servers} servers")
        if site.table
        else ("hosts", f"{site.num_servers} servers")
    )
    try:
        number = site.roster.this_server(site.server_id)
    except RankTableError as error:
        yield fail(
            what,
            f"this host is not in it: {error}",
            "run on one of its servers, say which one this is by --server-id, or name the right ones",
        )
        return
    yield ok(what, f"{has}; this is server {number}, {site.roster.servers[number].server_id}")


def names(site: Site) -> Iterator[Line]:
    """Whether this host's name, and the names of servers without an address in the table, can be resolved."""
    servers = site.roster.servers if site.roster else ()
    named = [server for server in servers if server.addresses and not any(map(is_address, server.addresses))]
    # A name server that does not answer takes seconds for each name.
    with ThreadPoolExecutor(16) as pool:
        known = list(pool.map(lambda server: any(map(_resolved, server.addresses)), named))
    if unknown := [server.server_id for server, resolved in zip(named, known, strict=True) if not resolved]:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        yield fail(
            "server names",
            f"no address for {', '.join(unknown[:4])}{more}",
            "add them to /etc/hosts or the name server, or use addresses in the table",
        )
    elif named:
        yield ok("server names", f"{len(named)} have addresses")
    own = socket.gethostname()
    address = _resolved(own)
    if address is None:
        yield warn("own name", f"{own} has no address", f"add `ADDRESS {own}` to /etc/hosts: some tools look it up")
    elif site.num_servers > 1 and ipaddress.ip_address(address).is_loopback:
        fix = f"give {own} its network address in /etc/hosts, or use addresses in the table"
        yield warn("own name", f"{own} is {address}, which other hosts cannot reach", fix)


def first_host(site: Site) -> Iterator[Line]:
    """Whether the first host's name resolves to an address that other hosts can reach; nothing is sent there."""
    if site.roster is None or site.num_servers < 2:
        return
    name = site.master_address or site.roster.servers[0].server_id
    address = name if is_address(name) else _resolved(name)
    fix = "give it its network address in /etc/hosts on each host, or name that by --master-address"
    if address is None:
        yield fail("first host", f"{name} has no address", fix)
    elif ipaddress.ip_address(address).is_loopback:
        yield fail("first host", f"{name} is {address} here, which other hosts cannot reach", fix)
    else:
        yield ok("first host", f"its address is {address}; it was not spoken to: it need not run yet")


def _resolved(name: str) -> str | None:
    try:
        return str(socket.getaddrinfo(name, None)[0][4][0])
    except (OSError, UnicodeError):
        return None


def ports(site: Site) -> Iterator[Line]:
    """Whether the scheduler's port and the next one, which the leader uses, are free on the first server."""
    if site.roster and site.server is not site.roster.servers[0]:
        return  # only the first server listens
    for port, use in ((site.master_port, "MindSpore's scheduler"), (site.master_port + 1, "the launcher")):
        if _is_free(port):
            yield ok(f"port {port}", f"free, for {use}")
        else:
            yield fail(
                f"port {port}",
                f"taken by {_holder(port)}; {use} needs it",
                "end that process, or name another one by --master-port",
            )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def _holder(port: int) -> str:
    try:
        for entry in psutil.net_connections("tcp"):
            if entry.laddr and entry.laddr.port == port and entry.status == psutil.CONN_LISTEN and entry.pid:
                return f"pid {entry.pid} ({psutil.Process(entry.pid).name()})"
    except psutil.Error:
        pass
    return "a process that this user may not see"


def hccl_ports(site: Site) -> Iterator[Line]:
    """Whether HCCL's ports are reserved, so that the system does not assign them to other programs."""
    base = site.environment.get("HCCL_IF_BASE_PORT", "")
    first = int(base) if base.isdecimal() else HCCL_PORT
    wanted = set(range(first, first + HCCL_PORTS))
    given = (site.read("/proc/sys/net/ipv4/ip_local_port_range") or "").split()
    if site.device == "cpu" or len(given) != 2 or not wanted & set(range(int(given[0]), int(given[1]) + 1)):
        return
    reserved = site.read("/proc/sys/net/ipv4/ip_local_reserved_ports") or ""
    parts = [part.partition("-") for part in reserved.strip().split(",") if part]
    kept = {port for low, _, high in parts for port in range(int(low), int(high or low) + 1)}
    span = f"{first}-{first + HCCL_PORTS - 1}"
    if wanted <= kept:
        yield ok("HCCL's ports", f"{span} are reserved")
    else:
        yield warn(
            "HCCL's ports",
            f"{span} may be given to other programs",
            f"`sysctl -w net.ipv4.ip_local_reserved_ports={span}` on the host, as root",
        )


def proxies(site: Site) -> Iterator[Line]:
    """Whether cluster addresses are exempt from proxies, which gRPC would otherwise use."""
    environment = {name.lower(): value for name, value in site.environment.items() if value}
    proxy = next((name for name in ("http_proxy", "https_proxy", "all_proxy") if name in environment), None)
    if proxy is None:
        return
    servers = [address for server in (site.roster.servers if site.roster else ()) for address in server.addresses]
    wanted = servers or [environment.get("ms_sched_host", "127.0.0.1")]
    exempt = [entry.strip() for entry in environment.get("no_proxy", "").split(",") if entry.strip()]
    if through := [address for address in wanted if not any(_covers(entry, address) for entry in exempt)]:
        more = ",..." if through[3:] else ""
        yield warn(
            proxy,
            f"set, and no_proxy lacks {', '.join(through[:3])}",
            f"export no_proxy={','.join(through[:3])}{more}, or unset {proxy}",
        )


def _covers(entry: str, address: str) -> bool:
    if entry == "*" or entry == address:
        return True
    if is_address(address):
        try:
            return ipaddress.ip_address(address) in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    return address.endswith("." + entry.lstrip("."))


CHECKS = (rank_table, names, first_host, ports, hccl_ports, proxies)
