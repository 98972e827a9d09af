"""Where the ranks of one machine wait for each other, however long it takes. No mindspore import.

A collective of MindSpore's CPU backend gives up after 30 s, a constant in its library: no rank may enter one while another still saves, evaluates
or compiles. So they meet first. The name is an abstract one (Linux): no file is left behind, and two jobs of a machine do not meet.
"""

import time
from multiprocessing.connection import Client, Connection, Listener

from pangu_run.exit_codes import EXIT_PEER_LOST
from pangu_run.heartbeat import WAIT, beat

START_S = 60.0


class PeerLost(SystemExit):
    """Another rank is gone. Whoever started the ranks says why, so this one ends without a word."""

    def __init__(self) -> None:
        super().__init__(EXIT_PEER_LOST)


class Meeting:
    """All ranks of a job; rank 0 listens, and the others are connected to it."""

    def __init__(self, name: str, rank: int, world: int) -> None:
        """Args:
        name: the job's, the same on all ranks and no other job's.

        Raises:
            PeerLost: no rank 0 within START_S seconds.
        """
        address = f"\0pangu-ms-{name}"
        if rank:
            self._peers = [_connect(address)]
        else:
            with Listener(address, "AF_UNIX", backlog=world) as listener:
                self._peers = [listener.accept() for _ in range(world - 1)]
        self._rank = rank

    def agree(self, word: str = "") -> str:
        """Wait until all ranks are here; returns the first word that any of them brought, the same on all of them.

        Raises:
            PeerLost: another rank is gone.
        """
        beat(WAIT)
        try:
            if self._rank:
                self._peers[0].send_bytes(word.encode())
                return self._peers[0].recv_bytes().decode()
            words = [word, *(peer.recv_bytes().decode() for peer in self._peers)]
            answer = next(filter(None, words), "")
            for peer in self._peers:
                peer.send_bytes(answer.encode())
            return answer
        except (EOFError, OSError):
            raise PeerLost from None


def _connect(address: str) -> Connection:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            return Client(address, "AF_UNIX")
        except OSError:
            time.sleep(0.02)
    raise PeerLost
