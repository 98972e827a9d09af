"""Launchers of several hosts, connected to the leader's: lines of JSON over TCP, and both sides notice when the other
one is gone.

A host says hello, the leader says hello, each with its version and a random number; from then on each line is sealed
(see seal.py). The host's first sealed line says what it launches, the leader's first one whether the host may stay.
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import ipaddress
import json
import resource
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from pangu_ms.core.console import USER_ERROR
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_HOST
from pangu_ms.core.isolated import JOB_SECRET
from pangu_run.job import record
from pangu_run.job.job import Job
from pangu_run.job.secret import ADVICE
from pangu_run.supervisor import messages
from pangu_run.supervisor.authentication import Seal
from pangu_run.supervisor.scheduler import require_free

Message = dict[str, Any]
ALIVE_S, LOST_S = 2.0, 60.0
"""Seconds between signs of life, and without one until a host counts as lost."""
TELL_S, RETRY_S = 10.0, 0.2
READ_BYTES, HELLO_BYTES, LINE_BYTES = 1 << 16, 1 << 12, 1 << 20
"""Of one read, and of a line before and after it is known who writes."""
HELLO_S, STRANGERS, BACKLOG = 5.0, 64, 1024
"""For a connection to say who it is; how many may be about it beside the hosts that are waited for; how many the kernel
keeps until they are accepted."""
PROTOCOL = 2
ONE_VERSION = "one job has launchers of one version; install the same on all hosts"
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class NotJoined(Exception):
    """This host is no part of the job: no launcher of the first host came in time, or it sent this one away. Not always
    this user's mistake."""

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


def digest(job: Job) -> str:
    """Equal on hosts that launch the same: places, words, resolved configuration and versions."""
    places = [(place.rank, place.server, place.device) for place in job.places]
    packages = {name: version for name, version in record.versions().items() if name in record.PACKAGES}
    same = [places, job.rank_words(0, False)[1:], job.start, job.max_restarts, job.description.get("config"), packages]
    return hashlib.sha256(json.dumps(same).encode()).hexdigest()


@functools.cache
def version() -> str:
    """Of this launcher: launchers of other versions may mean other things by the same words."""
    return f"{record.versions()['pangu-ms'] or 'not installed'}, protocol {PROTOCOL}"


class Link:
    """One connection, either side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._read, self._most = bytearray(), HELLO_BYTES
        self._said = self._heard = b""
        self._own: Seal | None = None
        self._other: Seal | None = None
        self.forged = False
        """Whether a line came that is not from who has the job's secret."""

    def say(self, message: Message) -> None:
        """Send the first line, which is not sealed."""
        self._said = _text(message)
        self._write(self._said)

    async def hear(self) -> Message | None:
        """The other side's first line; None when that is gone, or no launcher."""
        self._heard = await self._line()
        return _parsed(self._heard)

    def seal(self, secret: bytes, leads: bool) -> None:
        """From here on all lines are sealed."""
        hellos = (self._said, self._heard) if leads else (self._heard, self._said)
        self._own, self._other = (
            Seal(secret, direction, hellos) for direction in ((b"leader", b"host") if leads else (b"host", b"leader"))
        )

    def trust(self) -> None:
        """From here on the other side may write long lines: it has the job's secret."""
        self._most = LINE_BYTES

    def send(self, message: Message) -> None:
        """Send a sealed line without waiting."""
        self._write(self._own.sealed(_text(message)))

    async def receive(self) -> Message | None:
        """The next sealed line that is not a mere sign of life; None when the other side is gone, or is not who it
        was."""
        while line := await self._line():
            text = self._other.opened(line)
            if text is None:
                self.forged = True
                return None
            if (message := _parsed(text)) != {}:
                return message
        return None

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

    def _write(self, line: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(line + b"\n")

    async def _line(self) -> bytes:
        """The next line without its end; b"" when the other side is gone, or writes without end."""
        while (end := self._read.find(b"\n", max(0, len(self._read) - READ_BYTES))) < 0 and len(
            self._read
        ) <= self._most:
            try:
                content = await asyncio.wait_for(self._reader.read(READ_BYTES), LOST_S)
            except (OSError, asyncio.TimeoutError):
                return b""
            if not content:
                return b""
            self._read += content
        if not 0 <= end <= self._most:
            return b""
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line


def _text(message: Message) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode(errors="replace")


def _parsed(text: bytes) -> Message | None:
    """None where the text is no message: the other side is gone, or a stranger."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


class Hosts:
    """The leader's connections to all other hosts."""

    def __init__(self, job: Job, tell: Callable[[Message], None]):
        """Messages of hosts go to `tell`, with "host"; {"is": "lost", "host"} when one is gone."""
        self._job, self._tell = job, tell
        self.links: dict[str, Link] = {}
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task] = set()
        self._strangers: dict[Link, None] = {}
        self._digest = ""
        self._closing = False
        self._say: Callable[[str], None] = lambda text: None
        self._said: set[str] = set()

    async def gather(self, say: Callable[[str], None]) -> list[str]:
        """Wait until every host is here; returns those that have not come in time.

        Args:
            say: shows a line to the user.

        Raises:
            LaunchError: the leader's port is taken.
        """
        missing = set(self._job.servers[1:])
        if not missing:
            return []
        self._say, self._digest = say, digest(self._job)
        host, port = self._job.master
        require_reachable(host, self._job.servers)
        require_free(host, port + 1)
        if not self._job.secret:
            say(
                f"{JOB_SECRET} is not set: whoever reaches {host}:{port + 1} can stop this job or read its errors;"
                f" {ADVICE}"
            )
        self._listener = socket.create_server((host, port + 1), backlog=BACKLOG)
        self._listener.setblocking(False)
        self._spawn(self._accept())
        began = told = time.monotonic()
        while (
            missing := set(self._job.servers[1:]) - self.links.keys()
        ) and time.monotonic() - began < self._job.limits.host_s:
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
        await asyncio.gather(
            *(self._refuse(link, code, text) for link in list(self.links.values()))
        )  # at once: many may be silent
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener:
            self._listener.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        """Take connections in for ever. asyncio's own server tells of missing file descriptors once for each connection
        that waits, without end."""
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
                link = Link(*await asyncio.open_connection(sock=connection, limit=READ_BYTES))
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._say_once(
                        "room",
                        f"no room for another connection ({error.strerror}); strangers are sent away for it; raise"
                        " `ulimit -n` where this repeats",
                    )
                    self._leave_strangers(0)
                await asyncio.sleep(RETRY_S)
                continue
            self._strangers[link] = None
            self._leave_strangers(most_strangers(len(self._job.servers)))
            self._spawn(self._welcome(link))

    def _leave_strangers(self, most: int) -> None:
        """The oldest go first: a host says who it is at once, and comes again."""
        while len(self._strangers) > most:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.drop()

    async def _welcome(self, link: Link) -> None:
        try:
            server = await asyncio.wait_for(self._admit(link), HELLO_S)
        except asyncio.TimeoutError:
            server = None
        if server is None:
            await link.close()
            self._strangers.pop(link, None)
            return
        self._strangers.pop(link, None)
        await self._attend(server, link)

    async def _admit(self, link: Link) -> str | None:
        """The host that a connection is of; None for a stranger."""
        words = await link.hear()
        hello = messages.HELLO.read(words)
        if hello is None:
            if words and words.get("is") == "hello":  # protocol 1, which takes an answer that is not sealed
                text = self._other_version(server := str(words.get("host")), "of an earlier version")
                self._say_of(server, "version", text)
                link.say({"do": "end", "code": USER_ERROR, "text": text})
            return None
        server = hello["host"]
        link.say({"is": "hello", "host": self._job.server, "version": version(), "nonce": secrets.token_hex(16)})
        if hello["version"] != version():
            self._say_of(server, "version", self._other_version(server, hello["version"]))
            return None  # it says the same to its user
        link.seal(self._job.secret, leads=True)
        joins = messages.JOIN.read(await link.receive())
        if link.forged:
            self._say_of(
                server,
                "secret",
                f"host {server}: a launcher came by that name with another {JOB_SECRET} or none, and was sent away;"
                f" {ADVICE}",
            )
            link.send({})  # not sealed as it would be there, which tells its user
            return None
        if joins is None:
            return None
        fault = self._fault(server, joins["digest"])
        if fault:
            await self._refuse(link, *fault)
            return None
        self.links[server] = link
        link.trust()
        link.send({"do": "welcome"})
        return server

    async def _attend(self, server: str, link: Link) -> None:
        alive = asyncio.create_task(link.keep_alive())
        try:
            while words := await link.receive():
                if (message := messages.from_host(words)) and self._may_tell(server, message):
                    self._tell(message | {"host": server})
            link.drop()
        finally:
            alive.cancel()
            del self.links[server]  # until all are here it may come again
            if not self._closing:
                self._tell({"is": "lost", "host": server})

    def _may_tell(self, server: str, message: Message) -> bool:
        """Whether this is the host's own to tell: of signals, and of its own ranks."""
        return (
            "rank" not in message
            or message["rank"] < self._job.world
            and self._job.places[message["rank"]].server == server
        )

    def _say_of(self, server: str, kind: str, text: str) -> None:
        if server in self._job.servers[1:]:  # what a stranger calls itself is not shown
            self._say_once(f"{kind} {server}", text)

    def _say_once(self, what: str, text: str) -> None:
        """Strangers may come without end; the user is told of each kind once."""
        if what not in self._said:
            self._said.add(what)
            self._say(text)

    async def _refuse(self, link: Link, code: int, text: str) -> None:
        link.send({"do": "end", "code": code, "text": text})
        await link.close()

    def _other_version(self, server: str, found: str) -> str:
        return f"host {server}: its launcher is {found}, that of {self._job.server} is {version()}; {ONE_VERSION}"

    def _fault(self, server: str, found: str) -> tuple[int, str] | None:
        """Why a host that has the secret may not stay: exit code and text."""
        if server in self.links:
            return (
                EXIT_HOST,
                f"host {server}: is there already; start one launcher on each host, or name them apart by --server-id",
            )
        if server not in self._job.servers[1:]:
            return (
                USER_ERROR,
                (
                    f"host {server}: is none of the hosts that {self._job.server} waits for; use the same rank table or"
                    " --hosts everywhere"
                ),
            )
        if found != self._digest:
            return (
                USER_ERROR,
                (
                    f"host {server}: launches something else than {self._job.server}; use the same command, rank table"
                    " and configuration on all hosts"
                ),
            )
        return None


def most_strangers(hosts: int) -> int:
    """How many connections may be about to say who they are: never so many that none of this process's file descriptors
    are left for its ranks."""
    return min(hosts + STRANGERS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def require_reachable(host: str, servers: Sequence[str]) -> None:
    """Raise LaunchError if this host's own name stands for an address that only it can reach (127.0.1.1 in Debian's
    /etc/hosts)."""
    if _is_loopback(host) and any(_is_loopback(server) is False for server in servers):
        where = "stands for a loopback address here, which other hosts cannot reach"
        raise LaunchError(
            f"{host}: {where}; name this host's address in the cluster by --master-address, or correct /etc/hosts"
        )


def _is_loopback(host: str) -> bool | None:
    """None for a name that cannot be resolved here."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:
        return None


async def join(job: Job, signals: list[str]) -> Link | None:
    """Connect to the leader as one of its hosts; None if there are signals before that.

    Raises:
        NotJoined: it is not there in time, or does not take this host.
    """
    task = asyncio.create_task(_join(job))
    while not task.done() and not signals:
        await asyncio.wait({task}, timeout=RETRY_S)
    if task.done():
        return task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return None


async def _join(job: Job) -> Link:
    host, port = job.master
    deadline = time.monotonic() + job.limits.host_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            link = Link(*await asyncio.wait_for(asyncio.open_connection(host, port + 1, limit=READ_BYTES), HELLO_S))
            joined = False
            try:
                if joined := await asyncio.wait_for(_introduce(job, link), max(HELLO_S, deadline - time.monotonic())):
                    return link
            finally:
                if not joined:
                    link.drop()
        await asyncio.sleep(RETRY_S)
    where = f"{host}:{port + 1}"
    advice = "start it there, and see that the port is open"
    raise NotJoined(
        EXIT_HOST,
        f"{where}: no launcher of the first host ({job.servers[0]}) came within {job.limits.host_s:.0f} s; {advice}",
    )


async def _introduce(job: Job, link: Link) -> bool:
    """Whether the leader takes this host; False where it is to be tried again.

    Raises:
        NotJoined: it does not.
    """
    leader = f"{job.master[0]}:{job.master[1] + 1}"
    link.say({"is": "hello", "host": job.server, "version": version(), "nonce": secrets.token_hex(16)})
    words = await link.hear()
    if words is None:
        return False
    hello = messages.HELLO.read(words)
    if hello is None or hello["version"] != version():
        theirs = f"is {hello['version']}" if hello else "is of an earlier version, or none of ours"
        raise NotJoined(
            USER_ERROR, f"{leader}: the launcher there {theirs}, that of {job.server} is {version()}; {ONE_VERSION}"
        )
    link.seal(job.secret, leads=False)
    link.send({"is": "join", "digest": digest(job)})
    answer = messages.from_leader(await link.receive())
    if link.forged:
        fault = (
            f"has another {JOB_SECRET} than that of {job.server}, or none"
            if job.secret
            else f"has a {JOB_SECRET}, that of {job.server} has none"
        )
        raise NotJoined(USER_ERROR, f"{leader}: the launcher there {fault}; {ADVICE}")
    if answer and answer["do"] == "end":
        raise NotJoined(answer["code"], answer["text"])
    link.trust()
    return answer is not None
