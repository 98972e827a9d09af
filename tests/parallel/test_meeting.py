"""Where ranks of one machine wait for each other."""

import os
import threading
import time

import pytest

from pangu_ms.parallel.meeting import Meeting, PeerLost
from pangu_run.exit_codes import EXIT_PEER_LOST


def test_ranks_meet_agree_on_the_first_word_and_notice_who_is_gone():
    words, meetings = {}, {}

    def rank(number):
        meetings[number] = Meeting(f"test-{os.getpid()}", number, 3)
        time.sleep(0.1 * number)
        words[number] = [meetings[number].agree(), meetings[number].agree("SIGTERM" if number == 1 else ""), meetings[number].agree()]

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert words == {number: ["", "SIGTERM", ""] for number in range(3)}
    for connection in meetings.pop(1)._peers:
        connection.close()
    with pytest.raises(PeerLost) as lost:
        meetings[0].agree()
    assert lost.value.code == EXIT_PEER_LOST
