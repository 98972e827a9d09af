"""Names and addresses of this machine, by which it is found among the servers of a rank table or the hosts of a job."""

import socket


def addresses() -> list[str]:
    """IP addresses of this host's interfaces, without IPv6 zones."""
    import psutil

    found = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                found.append(entry.address.partition("%")[0])  # fe80::1%eth0 is fe80::1 for other hosts
    return found


def names() -> list[str]:
    """The full host name, the host name without its domain, and the addresses, without duplicates."""
    host = socket.gethostname()
    return list(dict.fromkeys([host, host.partition(".")[0], *addresses()]))
