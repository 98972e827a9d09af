"""The load generator with a clock that only moves when somebody waits or works."""

import threading

import numpy as np
import pytest

from tests.bench.load import Served, offer, poisson_arrivals, summary

pytestmark = pytest.mark.fast


class OneAtATime:
    """A server that gives a token of its oldest request a second."""

    def __init__(self, tokens: int):
        self.now, self.tokens, self.queue = 0.0, tokens, []

    def submit(self, number, on_token, on_end):
        self.queue.append([self.tokens, on_token, on_end])

    def work(self):
        if not self.queue:
            return False
        self.now += 1.0
        self.queue[0][0] -= 1
        left, on_token, on_end = self.queue[0]
        on_token()
        if not left:
            self.queue.pop(0)
            on_end()
        return True

    def sleep(self, seconds):
        self.now += seconds


def test_a_request_waits_for_those_before_it_and_not_for_its_own_sending():
    server = OneAtATime(2)
    served = offer([0.5, 1.0, 9.0], server.submit, server.work, lambda: server.now, server.sleep)
    # The second arrives while a step runs, and is sent behind it; its delay counts from its arrival.
    assert served == [Served(0.5, [1.5, 2.5]), Served(1.0, [3.5, 4.5]), Served(9.0, [10.0, 11.0])]
    found = summary(served)
    assert found["tokens_per_s"] == 6 / 10.5 and found["token_p50_s"] == 1.0
    assert found["first_p50_s"] == 1.0 and found["first_p99_s"] == pytest.approx(2.5, abs=0.05)


def test_a_server_calls_back_from_other_threads():
    threads = []

    def submit(number, on_token, on_end):
        def serve():
            for _ in range(number + 1):
                on_token()
            on_end()

        threads.append(threading.Thread(target=serve))
        threads[-1].start()

    served = offer([0.0, 0.0, 0.001], submit)
    for thread in threads:
        thread.join()
    assert [len(one.tokens) for one in served] == [1, 2, 3]


def test_arrivals_have_the_rate_and_no_memory():
    gaps = np.diff(poisson_arrivals(20_000, 4.0, 0))
    assert gaps.mean() == pytest.approx(0.25, rel=0.03) and gaps.std() == pytest.approx(0.25, rel=0.03)
    assert (poisson_arrivals(5, 4.0, 0) == poisson_arrivals(5, 4.0, 0)).all()
