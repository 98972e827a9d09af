"""A barrier at which the ranks of one machine wait for each other without a timeout. No mindspore import.

A collective of MindSpore's CPU backend gives up after 30 s, a constant in its library, so no rank may enter one while
another still saves, evaluates or compiles. The ranks therefore wait for each other here first. The socket has an
abstract name (Linux) with the job's name in it: no file is left behind, and jobs of one machine do not connect to each
other.
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
"""Message of a rank that cannot go on, to the other ranks."""


class PeerLost(SystemExit):
    """Another rank has ended. The launcher reports why, so this rank exits without a message."""

    def __init__(self) -> None:
        super().__init__(EXIT_PEER_LOST)


class Rendezvous:
    """The connections between all ranks of a job: rank 0 listens, and the others connect to it."""

    def __init__(self, name: str, rank: int, world: int) -> None:
        """Args:
        name: name of the job, the same on all its ranks and different from that of any other job.

        Raises:
            PeerLost: not all ranks have connected within START_S seconds.
        """
        address = f"\0pangu-ms-{name}"
        self._peers = [_connect(address)] if rank else _accept(address, world - 1)
        self._rank = rank

    def barrier(self, message: str = "") -> str:
        """Wait until all ranks have called this; returns the first message that any of them passed, the same on all
        ranks.

        Raises:
            PeerLost: another rank has ended.
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
        """Receive one message from each peer. All peers are read from until the last one has sent, so that waiting for
        a silent peer does not hide that another one has ended."""
        messages: dict[Connection, str] = {}
        while len(messages) < len(self._peers):
            ready = wait(self._peers)
            for peer in self._peers:
                if peer in ready:
                    # A peer that has sent its message sends nothing more before the answer. If there is more to read,
                    # its connection has ended, and this raises EOFError.
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
            except OSError:  # timeout
                raise PeerLost from None
            if _user(peer) == os.getuid():  # any user of the machine can connect to an abstract name
                peer.setblocking(True)  # Connection reads the descriptor itself, which must wait for data
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
            time.sleep(0.02)  # rank 0 does not listen yet
    raise PeerLost
