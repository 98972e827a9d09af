"""Where the ranks of one machine wait for each other, however long it takes. No mindspore import.

A collective of MindSpore's CPU backend gives up after 30 s, a constant in its library: no rank may enter one while
another still saves, evaluates or compiles. So they wait for each other here first. The socket's name is an abstract
one (Linux): no file is left behind, and two jobs of a machine do not meet.
"""

import os
import socket
import struct
import time
from multiprocessing.connection import Client, Connection, wait

from pangu_ms.core.exit_codes import EXIT_PEER_LOST
from pangu_ms.core.heartbeat import WAIT, beat

START_S = 60.0
FAILED = "failed"
"""What a rank that cannot go on brings to the others."""


class PeerLost(SystemExit):
    """Another rank is gone. Whoever started the ranks says why, so this one ends without a message."""

    def __init__(self) -> None:
        super().__init__(EXIT_PEER_LOST)


class Rendezvous:
    """All ranks of a job; rank 0 listens, and the others are connected to it."""

    def __init__(self, name: str, rank: int, world: int) -> None:
        """Args:
        name: the job's, the same on all ranks and no other job's.

        Raises:
            PeerLost: not all of them within START_S seconds.
        """
        address = f"\0pangu-ms-{name}"
        self._peers = [_connect(address)] if rank else _accept(address, world - 1)
        self._rank = rank

    def barrier(self, message: str = "") -> str:
        """Wait until all ranks are here; returns the first message that any of them brought, the same on all.

        Raises:
            PeerLost: another rank is gone.
        """
        beat(WAIT)
        try:
            if self._rank:
                self._peers[0].send_bytes(message.encode())
                return self._peers[0].recv_bytes().decode()
            answer = next(filter(None, [message, *self._receive_all()]), "")
            for peer in self._peers:
                peer.send_bytes(answer.encode())
            return answer
        except (EOFError, OSError):
            raise PeerLost from None

    def _receive_all(self) -> list[str]:
        """A message of each peer. All are read from until the last one has sent: a silent one must not hide that
        another is gone."""
        messages: dict[Connection, str] = {}
        while len(messages) < len(self._peers):
            ready = wait(self._peers)
            for peer in self._peers:
                if peer in ready:
                    # who has sent sends no more before the answer: more to read is its end, an EOFError
                    messages[peer] = peer.recv_bytes().decode()
        return [messages[peer] for peer in self._peers]


def _accept(address: str, count: int) -> list[Connection]:
    deadline = time.monotonic() + START_S
    peers: list[Connection] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(count)
        while len(peers) < count:
            listener.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                peer, _ = listener.accept()
            except OSError:  # the time is over
                raise PeerLost from None
            if _user(peer) == os.getuid():  # any user of the machine can reach the name
                peer.setblocking(True)
                peers.append(Connection(peer.detach()))
            else:
                peer.close()
    return peers


def _user(peer: socket.socket) -> int:
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user


def _connect(address: str) -> Connection:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            return Client(address, "AF_UNIX")
        except OSError:
            time.sleep(0.02)
    raise PeerLost
