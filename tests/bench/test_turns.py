"""Processes that are measured in turns."""

import sys

import pytest

from tests.bench.turns import WARM_UP, Worker, in_turns

COUNTS = """
import sys
from tests.bench.turns import serve

class Counts:
    done = 0

    def reset(self):
        self.done = 0

    def step(self):
        print("what a library prints is no answer")
        self.done += 1
        if self.done > 5 + {warm_up}:
            sys.exit("no more than 5")

serve(Counts(), {{"answer": 42}})
"""


@pytest.fixture
def worker(tmp_path):
    worker = Worker([sys.executable, "-c", COUNTS.format(warm_up=WARM_UP)], tmp_path / "log", {})
    yield worker
    worker.close()


def test_a_turn_begins_anew_and_counts_its_steps_without_those_that_warm_up(worker):
    assert worker.told() == {"answer": 42}
    turns = in_turns({"it": worker}, 3, 4)["it"]
    assert [len(turn) for turn in turns] == [4, 4, 4] and min(map(min, turns)) > 0


def test_a_process_that_ends_says_why(worker):
    worker.told()
    with pytest.raises(RuntimeError, match="no more than 5"):
        worker.measure(6)
