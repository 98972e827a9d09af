"""Launchers of several hosts, connected to the leader's: lines of JSON over TCP, and both sides notice when the other one is gone."""

import asyncio
import hashlib
import ipaddress
import json
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from pangu_run.console import USER_ERROR
from pangu_run.errors import LaunchError
from pangu_run.exit_codes import EXIT_HOST
from pangu_run.launch import record
from pangu_run.launch.job import Job
from pangu_run.supervise.scheduler import require_free

Message = dict[str, Any]
ALIVE_S, LOST_S = 2.0, 60.0
"""Seconds between signs of life, and without one until a host counts as lost."""
TELL_S, RETRY_S = 10.0, 0.2
LINE_BYTES = 1 << 20
HELLO_S, STRANGERS = 5.0, 64
"""For a connection to say who it is, and how many may be about it beside the hosts that are waited for."""


class LeaderMissing(Exception):
    """No launcher of the first host: not the user's mistake, but a matter of time."""


def digest(job: Job) -> str:
    """Equal on hosts that launch the same: places, words, resolved configuration and versions."""
    places = [(place.rank, place.server, place.device) for place in job.places]
    packages = {name: version for name, version in record.versions().items() if name in record.PACKAGES}
    same = [places, job.rank_words(0, False)[1:], job.start, job.max_restarts, job.description.get("config"), packages]
    return hashlib.sha256(json.dumps(same).encode()).hexdigest()


class Link:
    """One connection, either side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    def send(self, message: Message) -> None:
        """Send without waiting."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self, wait_s: float = LOST_S) -> Message | None:
        """The next message that is not a mere sign of life; None when the other side is gone."""
        while True:
            try:
                line = await asyncio.wait_for(self._reader.readline(), wait_s)
            except (OSError, asyncio.TimeoutError, ValueError):  # the last one: a line without an end
                return None
            if (message := _parsed(line)) != {}:
                return message

    async def keep_alive(self) -> None:
        """Send signs of life for ever."""
        while True:
            self.send({})
            await asyncio.sleep(ALIVE_S)

    async def close(self) -> None:
        """Send what is left and close."""
        try:
            await asyncio.wait_for(self._writer.drain(), ALIVE_S)
            self._writer.close()
        except (OSError, asyncio.TimeoutError):
            self.drop()  # it is gone

    def drop(self) -> None:
        """Close at once, whatever is left."""
        self._writer.transport.abort()


def _parsed(line: bytes) -> Message | None:
    """None where the line is no whole message: the other side is gone, or a stranger."""
    try:
        message = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


class Hosts:
    """The leader's connections to all other hosts."""

    def __init__(self, job: Job, tell: Callable[[Message], None]):
        """Messages of hosts go to `tell`, with "host"; {"is": "lost", "host"} when one is gone."""
        self._job, self._tell = job, tell
        self.links: dict[str, Link] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()
        self._strangers: dict[Link, None] = {}
        self._digest = ""
        self._closing = False

    async def gather(self, say: Callable[[str], None]) -> list[str]:
        """Wait until every host is here; returns those that have not come in time.

        Raises:
            LaunchError: the leader's port is taken.
        """
        missing = set(self._job.servers[1:])
        if not missing:
            return []
        self._digest = digest(self._job)
        host, port = self._job.master
        require_reachable(host, self._job.servers)
        require_free(host, port + 1)
        self._server = await asyncio.start_server(self._begin, host, port + 1, limit=LINE_BYTES, backlog=STRANGERS)
        began = told = time.monotonic()
        while (missing := set(self._job.servers[1:]) - self.links.keys()) and time.monotonic() - began < self._job.limits.host_s:
            await asyncio.sleep(RETRY_S)
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                say(f"waiting for {len(missing)} of {len(self._job.servers)} hosts: {', '.join(sorted(missing)[:16])}")
        return sorted(missing)

    def send(self, server: str, command: Message) -> None:
        """Send a command to a host."""
        if server in self.links:
            self.links[server].send(command)

    async def close(self, code: int, text: str) -> None:
        """Tell all hosts how the job ended, and let them go."""
        self._closing = True
        await asyncio.gather(*(self._refuse(link, code, text) for link in list(self.links.values())))  # at once: many may be silent
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """In a task of our own: asyncio shows a traceback where one that it made is cancelled (Python 3.11 and older)."""
        link = Link(reader, writer)
        self._strangers[link] = None
        if len(self._strangers) > len(self._job.servers) + STRANGERS:
            oldest = next(iter(self._strangers))  # a host says who it is at once
            del self._strangers[oldest]
            oldest.drop()
        task = asyncio.create_task(self._welcome(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _welcome(self, link: Link) -> None:
        hello = await link.receive(HELLO_S)
        self._strangers.pop(link, None)
        if hello is None:
            await link.close()
            return
        server = str(hello.get("host"))
        if server in self.links:
            await self._refuse(link, EXIT_HOST, f"host {server}: is there already; start one launcher on each host, or name them apart by --server-id")
            return
        if fault := self._fault(hello):
            await self._refuse(link, USER_ERROR, fault)
            return
        self.links[server] = link
        alive = asyncio.create_task(link.keep_alive())
        try:
            while message := await link.receive():
                if self._may_tell(server, message):
                    self._tell(message | {"host": server})
        finally:
            alive.cancel()
            del self.links[server]  # until all are here it may come again
            if not self._closing:
                self._tell({"is": "lost", "host": server})

    def _may_tell(self, server: str, message: Message) -> bool:
        """Whether a host may say this: signals, and what its own ranks do; that a host is lost, only the leader finds."""
        kind, rank = message.get("is"), message.get("rank")
        if kind == "signal":
            return isinstance(message.get("name"), str)
        own = type(rank) is int and 0 <= rank < len(self._job.places) and self._job.places[rank].server == server
        return own and kind in ("beat", "exit", "stacks")

    async def _refuse(self, link: Link, code: int, text: str) -> None:
        link.send({"do": "end", "code": code, "text": text})
        await link.close()

    def _fault(self, hello: Message) -> str | None:
        server = hello.get("host")
        if server not in self._job.servers[1:]:
            return f"host {server}: is none of the hosts that {self._job.server} waits for; use the same rank table or --hosts everywhere"
        if hello.get("digest") != self._digest:
            return f"host {server}: launches something else than {self._job.server}; use the same command, rank table and configuration on all hosts"
        return None


def require_reachable(host: str, servers: Sequence[str]) -> None:
    """Raise LaunchError if this host's own name stands for an address that only it can reach (127.0.1.1 in Debian's /etc/hosts)."""
    if _is_loopback(host) and any(_is_loopback(server) is False for server in servers):
        where = "stands for a loopback address here, which other hosts cannot reach"
        raise LaunchError(f"{host}: {where}; name this host's address in the cluster by --master-address, or correct /etc/hosts")


def _is_loopback(host: str) -> bool | None:
    """None for a name that cannot be resolved here."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:
        return None


async def join(job: Job, signals: list[str]) -> Link | None:
    """Connect to the leader as one of its hosts; None if there are signals before that.

    Raises:
        LeaderMissing: it is not there in time.
    """
    host, port = job.master
    deadline = time.monotonic() + job.limits.host_s
    while time.monotonic() < deadline:
        if signals:
            return None
        try:
            link = Link(*await asyncio.wait_for(asyncio.open_connection(host, port + 1, limit=LINE_BYTES), HELLO_S))
        except (OSError, asyncio.TimeoutError):
            await asyncio.sleep(RETRY_S)
            continue
        link.send({"is": "hello", "host": job.server, "digest": digest(job)})
        return link
    where = f"{host}:{port + 1}"
    raise LeaderMissing(f"{where}: no launcher of the first host ({job.servers[0]}) came within {job.limits.host_s:.0f} s; start it there, and see that the port is open")
