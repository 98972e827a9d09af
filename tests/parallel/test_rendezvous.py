"""Where ranks of one machine wait for each other."""

import itertools
import os
import threading
import time

import pytest

from pangu_ms.core.exit_codes import EXIT_PEER_LOST
from pangu_ms.parallel.rendezvous import PeerLost, Rendezvous

COUNTER = itertools.count()


def met(world, late=()):
    """The meetings of `world` ranks, one thread each; ranks in `late` come after the others, in that order."""
    name, meetings = f"test-{os.getpid()}-{next(COUNTER)}", {}

    def rank(number):
        time.sleep(0.05 * (late.index(number) + 1) if number in late else 0)
        meetings[number] = Rendezvous(name, number, world)

    together([lambda number=number: rank(number) for number in range(world)])
    return meetings


def together(deeds):
    threads = [threading.Thread(target=deed, daemon=True) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def leave(meeting):
    for connection in meeting._peers:
        connection.close()


def test_ranks_meet_and_agree_on_the_first_word():
    meetings, words = met(3), {}

    def rank(number):
        time.sleep(0.1 * number)
        words[number] = [meetings[number].barrier(word) for word in ("", "SIGTERM" if number == 1 else "", "")]

    together([lambda number=number: rank(number) for number in range(3)])
    assert words == {number: ["", "SIGTERM", ""] for number in range(3)}


@pytest.mark.parametrize("late", [(1, 2, 3), (3, 2, 1), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("spoken", [False, True], ids=["silent", "spoken"])
def test_a_lost_rank_is_noticed_whoever_is_silent(late, spoken):
    """Rank 2 is gone, before or after its word; 1 and 3 say nothing, accepted before it or after it."""
    meetings, lost = met(4, late), []

    def lead():
        with pytest.raises(PeerLost) as error:
            meetings[0].barrier()
        lost.append(error.value.code)

    def go():
        if spoken:
            meetings[2]._peers[0].send_bytes(b"word")
            time.sleep(0.05)
        leave(meetings[2])

    together([lead, go])
    assert lost == [EXIT_PEER_LOST]


def test_a_rank_that_never_comes_ends_the_meeting(monkeypatch):
    monkeypatch.setattr("pangu_ms.parallel.rendezvous.START_S", 0.3)
    with pytest.raises(PeerLost):
        Rendezvous(f"test-{os.getpid()}-alone", 0, 2)
    with pytest.raises(PeerLost):
        Rendezvous(f"test-{os.getpid()}-alone", 1, 2)


def test_another_user_of_the_machine_takes_no_rank(monkeypatch):
    """The first to come is told to be somebody else; the rank behind it is taken."""
    users = iter([os.getuid() + 1, os.getuid()])
    monkeypatch.setattr("pangu_ms.parallel.rendezvous._user", lambda peer: next(users))
    name, words = f"test-{os.getpid()}-stranger", []
    lead = threading.Thread(target=lambda: words.append(Rendezvous(name, 0, 2).barrier()), daemon=True)
    lead.start()
    stranger = Rendezvous(name, 1, 2)
    with pytest.raises(PeerLost):
        stranger.barrier("mine")
    assert Rendezvous(name, 1, 2).barrier("ours") == "ours"
    lead.join(timeout=20)
    assert words == ["ours"]
