"""How this machine is called: what a rank table's servers, or a job's host, are compared with."""

import socket


def addresses() -> list[str]:
    """IP addresses of this host's interfaces, without their zones."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return [
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in families
    ]


def names() -> list[str]:
    """Host name, whole and without its domain, then the addresses; each once."""
    host = socket.gethostname()
    return list(dict.fromkeys([host, host.partition(".")[0], *addresses()]))
