"""Signed lines: they are rejected from a peer without the secret, and where they are replayed, reordered, reflected or
sent on another connection. The format is compared with the standard's, too."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import socket

import pytest

from pangu_ms.core.errors import LaunchError
from pangu_run.job.secret import require_long
from pangu_run.supervisor import links
from pangu_run.supervisor.links import HostLink

SECRET = b"0123456789abcdef"


@contextlib.asynccontextmanager
async def connected(secret=SECRET, other=SECRET):
    """A leader's and a host's link of one connection, after their hellos."""
    sockets = socket.socketpair()
    leader, host = [HostLink(*await asyncio.open_connection(sock=one)) for one in sockets]
    host.send_hello({"is": "hello", "nonce": "1"})
    assert await leader.receive_hello() == {"is": "hello", "nonce": "1"}
    leader.send_hello({"is": "hello", "nonce": "2"})
    assert await host.receive_hello() == {"is": "hello", "nonce": "2"}
    leader.authenticate(secret, leads=True), host.authenticate(other, leads=False)
    yield leader, host
    leader.abort(), host.abort()


def line(link, number):
    """A signed line of a link that it has not sent yet."""
    return link._outgoing.sign(json.dumps({"number": number}).encode())


def test_lines_are_heard_in_both_directions():
    async def talk():
        async with connected() as (leader, host):
            for number in range(3):
                host.send({"number": number}), leader.send({"number": -number})
                assert (await leader.receive(), await host.receive()) == ({"number": number}, {"number": -number})

    asyncio.run(talk())


@pytest.mark.parametrize("other", [b"", b"another secret of a job", SECRET + b"0"])
def test_another_secret_or_none_is_forged(other):
    async def talk():
        async with connected(SECRET, other) as (leader, host):
            host.send({"number": 1}), leader.send({"number": 1})
            assert await leader.receive() is None and leader.forged and await host.receive() is None and host.forged

    asyncio.run(talk())


def again(first, second, back):
    return [first, first]


def swapped(first, second, back):
    return [second, first]


def left_out(first, second, back):
    return [second]


def reflected(first, second, back):
    return [back]


def changed(first, second, back):
    return [first.replace(b"1", b"2")]


@pytest.mark.parametrize("tamper", [again, swapped, left_out, reflected, changed])
def test_a_line_counts_once_at_its_place_and_in_its_direction(tamper):
    async def talk():
        async with connected() as (leader, host):
            sent = tamper(line(host, 1), line(host, 2), line(leader, 1))
            for words in sent:
                host._write(words)
            heard = [await leader.receive() for _ in sent]
            assert heard[-1] is None and leader.forged and heard.count(None) >= len(heard) - 1

    asyncio.run(talk())


def test_a_line_of_another_connection_does_not_count():
    async def talk():
        async with connected() as (_, first):
            words = line(first, 1)
        sockets = socket.socketpair()
        leader, host = [HostLink(*await asyncio.open_connection(sock=one)) for one in sockets]
        host.send_hello({"is": "hello", "nonce": "1"}), await leader.receive_hello()  # as it was said there
        leader.send_hello({"is": "hello", "nonce": "3"})
        leader.authenticate(SECRET, leads=True)
        host._write(words)
        assert await leader.receive() is None and leader.forged
        leader.abort(), host.abort()

    asyncio.run(talk())


def test_the_code_is_hmac_sha256_as_it_stands_in_the_standard():
    async def talk():
        async with connected() as (leader, host):
            hellos = b'{"is": "hello", "nonce": "2"}\n{"is": "hello", "nonce": "1"}'
            key = hmac.new(SECRET, b"host\n" + hellos, hashlib.sha256).digest()
            for count, text in enumerate((b'{"x": 1}', b'{"x": 2}'), 1):
                host._write(hmac.new(key, f"{count}\n".encode() + text, hashlib.sha256).hexdigest().encode() + text)
            assert [await leader.receive(), await leader.receive()] == [{"x": 1}, {"x": 2}]

    asyncio.run(talk())


@pytest.mark.parametrize(
    ("before", "size", "heard"),
    [(True, 4096, True), (True, 5000, False), (False, 900_000, True), (False, 1_200_000, False)],
)
def test_lines_have_a_limit_that_is_small_until_it_is_known_who_writes(before, size, heard):
    async def talk():
        async with connected() as (leader, host):
            if not before:
                leader.accept_long_lines()
            host.send({"x": "x" * (size - 100)})
            assert (await leader.receive() is not None) == heard and not leader.forged

    asyncio.run(talk())


def test_a_line_that_has_no_end_is_not_kept(monkeypatch):
    monkeypatch.setattr(links, "LOST_S", 5.0)

    async def talk():
        async with connected() as (leader, host):
            host._writer.write(b"x" * (8 << 20))
            assert await leader.receive() is None and len(leader._buffer) < links.HELLO_BYTES + links.READ_BYTES

    asyncio.run(talk())


def test_a_short_secret_is_refused_with_advice():
    require_long(b""), require_long(b"x" * 16)
    with pytest.raises(
        LaunchError, match=r"^PANGU_JOB_SECRET: has 15 characters; must have 16 or more; .*openssl rand -hex 32"
    ):
        require_long(b"x" * 15)
