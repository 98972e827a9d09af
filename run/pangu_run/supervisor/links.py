"""Connections between the leader's launcher and those of the other hosts: lines of JSON over TCP. Both sides notice
when the other one is gone.

First the host and then the leader sends a hello line with its version and a random number (nonce); all later lines are
signed (see authentication.py). The first signed line of the host contains a digest of what it launches; the first
signed line of the leader says whether the host is accepted.
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
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pangu_ms.core.console import USER_ERROR
from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_HOST
from pangu_ms.core.isolated import JOB_SECRET
from pangu_run.job import record
from pangu_run.job.job import Job
from pangu_run.job.secret import ADVICE
from pangu_run.supervisor import messages
from pangu_run.supervisor.authentication import MessageAuthenticator
from pangu_run.supervisor.messages import Message
from pangu_run.supervisor.scheduler import require_free

ALIVE_S, LOST_S = 2.0, 60.0
"""Seconds between keep-alive lines; seconds without any line after which the other side counts as lost."""
REPORT_S, RETRY_S = 10.0, 0.2
"""Seconds between two messages on the hosts that are missing; seconds between two attempts to connect."""
READ_BYTES, HELLO_BYTES, LINE_BYTES = 1 << 16, 1 << 12, 1 << 20
"""Maximum bytes of one read, of a line before its sender is authenticated, and of a line after that."""
HELLO_S, MAX_UNIDENTIFIED, BACKLOG = 5.0, 64, 1024
"""Seconds within which a connection must identify itself; number of unidentified connections that are allowed in
addition to the missing hosts; number of connections that the kernel queues until they are accepted."""
PROTOCOL = 2
"""Version of the protocol, increased with every change of the messages; version 1 had no authentication."""
ONE_VERSION = "one job has launchers of one version; install the same on all hosts"
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class NotJoined(Exception):
    """This host cannot join the job: the launcher of the first host could not be reached in time, or refused this host.
    This is not always a user's mistake.

    Attributes:
        code: exit code of this launcher.
    """

    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


def digest(job: Job) -> str:
    """A value that is equal on all hosts with the same assignments, arguments, resolved configuration and versions."""
    assignments = [(one.rank, one.server, one.device) for one in job.assignments]
    packages = {name: version for name, version in record.versions().items() if name in record.PACKAGES}
    argv = job.rank_argv(0, False)[1:]
    facts = [assignments, argv, job.start, job.max_restarts, job.description.get("config"), packages]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@functools.cache
def version() -> str:
    """Version of this launcher. In other versions the same messages may have another meaning."""
    return f"{record.versions()['pangu-ms'] or 'not installed'}, protocol {PROTOCOL}"


class HostLink:
    """One side of a connection between the leader and a host."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self._buffer, self._max_line = bytearray(), HELLO_BYTES
        self._hello_sent = self._hello_received = b""
        self._outgoing: MessageAuthenticator
        self._incoming: MessageAuthenticator
        self.forged = False
        """Whether a line was received whose sender does not have the job's secret."""

    def send_hello(self, message: Message) -> None:
        """Send the first line, which is not signed."""
        self._hello_sent = _text(message)
        self._write(self._hello_sent)

    async def receive_hello(self) -> Message | None:
        """The other side's first line; None if the connection is lost, or the other side is no launcher."""
        self._hello_received = await self._line()
        return _parsed(self._hello_received)

    def authenticate(self, secret: bytes, leads: bool) -> None:
        """Sign and verify all lines from now on; call this after both hello lines.

        Args:
            secret: the job's secret.
            leads: whether this is the leader's side.
        """
        if leads:
            hellos, own, other = (self._hello_sent, self._hello_received), b"leader", b"host"
        else:
            hellos, own, other = (self._hello_received, self._hello_sent), b"host", b"leader"
        self._outgoing = MessageAuthenticator(secret, own, hellos)
        self._incoming = MessageAuthenticator(secret, other, hellos)

    def accept_long_lines(self) -> None:
        """Accept lines of up to LINE_BYTES from now on, since the other side has proved that it has the job's
        secret."""
        self._max_line = LINE_BYTES

    def send(self, message: Message) -> None:
        """Send a signed line without waiting."""
        self._write(self._outgoing.sign(_text(message)))

    async def receive(self) -> Message | None:
        """The next signed message, without keep-alive lines; None if the connection is lost or a line was forged."""
        while line := await self._line():
            text = self._incoming.verify(line)
            if text is None:
                self.forged = True
                return None
            if (message := _parsed(text)) != {}:  # {} only keeps the connection alive
                return message
        return None

    async def keep_alive(self) -> None:
        """Send keep-alive lines for ever."""
        while True:
            self.send({})
            await asyncio.sleep(ALIVE_S)

    async def close(self) -> None:
        """Send the remaining lines and close."""
        try:
            # With a time limit, since the other side may have stopped reading.
            await asyncio.wait_for(self._writer.drain(), ALIVE_S)
            self._writer.close()
        except (OSError, asyncio.TimeoutError):
            self.abort()  # the connection is lost

    def abort(self) -> None:
        """Close at once, without sending the remaining lines."""
        self._writer.transport.abort()

    def _write(self, line: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(line + b"\n")

    async def _line(self) -> bytes:
        """The next line without its newline; b"" if the connection is lost or the line is too long."""
        # The bytes before the last read are known to contain no newline, so only the last READ_BYTES are searched.
        while (end := self._buffer.find(b"\n", max(0, len(self._buffer) - READ_BYTES))) < 0:
            if len(self._buffer) > self._max_line:
                return b""
            try:
                content = await asyncio.wait_for(self._reader.read(READ_BYTES), LOST_S)
            except (OSError, asyncio.TimeoutError):
                return b""
            if not content:
                return b""
            self._buffer += content
        if end > self._max_line:
            return b""
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _text(message: Message) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode(errors="replace")  # names of files may hold any bytes


def _parsed(text: bytes) -> Message | None:
    """The message in a line; None if the line contains no message."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


class HostLinks:
    """The leader's connections to all other hosts."""

    def __init__(self, job: Job, on_message: Callable[[Message], None]):
        """
        Args:
            job: the job as the leader sees it.
            on_message: called with each message of a host, with "host" added, and with {"is": "lost", "host"} if the
                connection to a host is lost.
        """
        self._job, self._on_message = job, on_message
        self.links: dict[str, HostLink] = {}
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unidentified: dict[HostLink, None] = {}
        """Connections that have not identified themselves as a host yet, the oldest first."""
        self._digest = ""
        self._closing = False
        self._print_line: Callable[[str], None] = lambda text: None
        self._printed: set[str] = set()

    async def wait_for_hosts(self, print_line: Callable[[str], None]) -> list[str]:
        """Wait until every host has connected; returns the hosts that did not connect in time.

        Args:
            print_line: shows a line to the user.

        Raises:
            LaunchError: the leader's port is in use.
        """
        missing = set(self._job.servers[1:])
        if not missing:
            return []
        self._print_line, self._digest = print_line, digest(self._job)
        host, port = self._job.scheduler_address
        require_reachable(host, self._job.servers)
        require_free(host, port + 1)
        if not self._job.secret:
            print_line(
                f"{JOB_SECRET} is not set: whoever reaches {host}:{port + 1} can stop this job or read its errors;"
                f" {ADVICE}"
            )
        self._listener = socket.create_server((host, port + 1), backlog=BACKLOG)
        self._listener.setblocking(False)
        self._spawn(self._accept(self._listener))
        began = reported = time.monotonic()
        while missing := set(self._job.servers[1:]) - self.links.keys():
            if time.monotonic() - began >= self._job.limits.host_s:
                break
            await asyncio.sleep(RETRY_S)
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                print_line(
                    f"waiting for {len(missing)} of {len(self._job.servers)} hosts: {', '.join(sorted(missing)[:16])}"
                )
        return sorted(missing)

    def send(self, server: str, command: Message) -> None:
        """Send a command to a host."""
        if server in self.links:
            self.links[server].send(command)

    async def close(self, code: int, text: str) -> None:
        """Tell all hosts how the job ended, and close the connections."""
        self._closing = True
        # In parallel, since each unresponsive host takes ALIVE_S to close.
        await asyncio.gather(*(self._end(link, code, text) for link in list(self.links.values())))
        for task in self._tasks:
            task.cancel()
        # Only to wait for them: each ends with CancelledError.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener:
            self._listener.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections for ever.

        asyncio's own server cannot be used here: when file descriptors run out, it logs an error for each waiting
        connection, again and again.
        """
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                link = HostLink(*await asyncio.open_connection(sock=connection, limit=READ_BYTES))
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._print_once(
                        "room",
                        f"no room for another connection ({error.strerror}); strangers are sent away for it; raise"
                        " `ulimit -n` where this repeats",
                    )
                    self._abort_unidentified(0)
                await asyncio.sleep(RETRY_S)
                continue
            self._unidentified[link] = None
            self._abort_unidentified(max_unidentified(len(self._job.servers)))
            self._spawn(self._serve(link))

    def _abort_unidentified(self, keep: int) -> None:
        """Close all but `keep` connections that have not identified themselves. The oldest go first: a launcher
        identifies itself at once, and connects again where it was closed."""
        while len(self._unidentified) > keep:
            oldest = next(iter(self._unidentified))
            del self._unidentified[oldest]
            oldest.abort()

    async def _serve(self, link: HostLink) -> None:
        try:
            server = await asyncio.wait_for(self._identify(link), HELLO_S)
        except asyncio.TimeoutError:
            server = None
        if server is None:
            await link.close()
            self._unidentified.pop(link, None)
            return
        self._unidentified.pop(link, None)
        await self._receive_from(server, link)

    async def _identify(self, link: HostLink) -> str | None:
        """The host that a connection belongs to; None if it belongs to no host and must be closed."""
        received = await link.receive_hello()
        hello = messages.HELLO.read(received)
        if hello is None:
            if received and received.get("is") == "hello":  # protocol 1, whose launcher reads a line without signature
                server = str(received.get("host"))
                text = self._other_version(server, "of an earlier version")
                self._print_of_host(server, "version", text)
                link.send_hello({"do": "end", "code": USER_ERROR, "text": text})
            return None
        server = hello["host"]
        link.send_hello({"is": "hello", "host": self._job.server, "version": version(), "nonce": secrets.token_hex(16)})
        if hello["version"] != version():
            self._print_of_host(server, "version", self._other_version(server, hello["version"]))
            return None  # the other launcher detects this, too, and tells its user
        link.authenticate(self._job.secret, leads=True)
        joins = messages.JOIN.read(await link.receive())
        if link.forged:
            self._print_of_host(
                server,
                "secret",
                f"host {server}: a launcher came by that name with another {JOB_SECRET} or none, and was sent away;"
                f" {ADVICE}",
            )
            link.send({})  # the other launcher cannot verify this line, and tells its user
            return None
        if joins is None:
            return None
        fault = self._fault(server, joins["digest"])
        if fault:
            await self._end(link, *fault)
            return None
        self.links[server] = link
        link.accept_long_lines()
        link.send({"do": "welcome"})
        return server

    async def _receive_from(self, server: str, link: HostLink) -> None:
        """Pass on a host's messages until the connection to it is lost."""
        keep_alive = asyncio.create_task(link.keep_alive())
        try:
            while received := await link.receive():
                if (message := messages.from_host(received)) and self._may_report(server, message):
                    self._on_message(message | {"host": server})
            link.abort()
        finally:
            keep_alive.cancel()
            del self.links[server]  # the host may connect again until all hosts are connected
            if not self._closing:
                self._on_message({"is": "lost", "host": server})

    def _may_report(self, server: str, message: Message) -> bool:
        """Whether a message concerns the host itself or one of its own ranks."""
        rank = message.get("rank")
        return rank is None or rank < self._job.world and self._job.assignments[rank].server == server

    def _print_of_host(self, server: str, kind: str, text: str) -> None:
        """Show a message about a host of the job; names that unknown connections give themselves are not shown."""
        if server in self._job.servers[1:]:
            self._print_once(f"{kind} {server}", text)

    def _print_once(self, key: str, text: str) -> None:
        """Show a message unless one with the same key was shown before, since there may be any number of such
        connections."""
        if key not in self._printed:
            self._printed.add(key)
            self._print_line(text)

    async def _end(self, link: HostLink, code: int, text: str) -> None:
        """Tell a host's launcher to end, with an exit code and a message for its user."""
        link.send({"do": "end", "code": code, "text": text})
        await link.close()

    def _other_version(self, server: str, found: str) -> str:
        return f"host {server}: its launcher is {found}, that of {self._job.server} is {version()}; {ONE_VERSION}"

    def _fault(self, server: str, found: str) -> tuple[int, str] | None:
        """Exit code and reason if a host that has the secret is refused; None if it is accepted."""
        if server in self.links:
            advice = "start one launcher on each host, or name them apart by --server-id"
            return EXIT_HOST, f"host {server}: is there already; {advice}"
        if server not in self._job.servers[1:]:
            text = (
                f"is none of the hosts that {self._job.server} waits for; use the same rank table or --hosts everywhere"
            )
            return USER_ERROR, f"host {server}: {text}"
        if found != self._digest:
            text = f"launches something else than {self._job.server}"
            advice = "use the same command, rank table and configuration on all hosts"
            return USER_ERROR, f"host {server}: {text}; {advice}"
        return None


def max_unidentified(hosts: int) -> int:
    """Number of unidentified connections that are allowed: some of this process's file descriptors must remain for its
    ranks."""
    return min(hosts + MAX_UNIDENTIFIED, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


def require_reachable(host: str, servers: Sequence[str]) -> None:
    """Raise LaunchError if the leader's name resolves to an address that only its own host can reach (127.0.1.1 in
    Debian's /etc/hosts), while another host's name does not."""
    if _is_loopback(host) and any(_is_loopback(server) is False for server in servers):
        where = "stands for a loopback address here, which other hosts cannot reach"
        raise LaunchError(
            f"{host}: {where}; name this host's address in the cluster by --master-address, or correct /etc/hosts"
        )


def _is_loopback(host: str) -> bool | None:
    """Whether a name resolves to a loopback address; None if it cannot be resolved on this host."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:
        return None


async def join(job: Job, signals: list[str]) -> HostLink | None:
    """Connect to the leader as one of its hosts.

    Args:
        job: the job as this host sees it.
        signals: names of the stop signals received so far; the list grows while this function waits.

    Returns:
        the connection; None if a stop signal came first.

    Raises:
        NotJoined: the leader could not be reached in time, or refuses this host.
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


async def _join(job: Job) -> HostLink:
    host, port = job.scheduler_address
    deadline = time.monotonic() + job.limits.host_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            connection = asyncio.open_connection(host, port + 1, limit=READ_BYTES)
            link = HostLink(*await asyncio.wait_for(connection, HELLO_S))
            joined = False
            try:
                joined = await asyncio.wait_for(_handshake(job, link), max(HELLO_S, deadline - time.monotonic()))
                if joined:
                    return link
            finally:
                if not joined:
                    link.abort()
        await asyncio.sleep(RETRY_S)
    where = f"{host}:{port + 1}"
    advice = "start it there, and see that the port is open"
    raise NotJoined(
        EXIT_HOST,
        f"{where}: no launcher of the first host ({job.servers[0]}) came within {job.limits.host_s:.0f} s; {advice}",
    )


async def _handshake(job: Job, link: HostLink) -> bool:
    """Identify this host to the leader; False if the connection was lost and the caller should try again.

    Raises:
        NotJoined: the leader refuses this host, or belongs to another version or job.
    """
    host, port = job.scheduler_address
    leader = f"{host}:{port + 1}"
    link.send_hello({"is": "hello", "host": job.server, "version": version(), "nonce": secrets.token_hex(16)})
    received = await link.receive_hello()
    if received is None:
        return False
    hello = messages.HELLO.read(received)
    if hello is None or hello["version"] != version():
        theirs = f"is {hello['version']}" if hello else "is of an earlier version, or none of ours"
        raise NotJoined(
            USER_ERROR, f"{leader}: the launcher there {theirs}, that of {job.server} is {version()}; {ONE_VERSION}"
        )
    link.authenticate(job.secret, leads=False)
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
    link.accept_long_lines()
    return answer is not None
