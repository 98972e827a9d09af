"""The cost of steps: measured with a clock that is known, fitted, written, and used by the simulator."""

import json

import numpy as np
import pytest

from pangu_ms.cli.main import main
from pangu_ms.core.errors import DataError, GenerationError
from pangu_ms.data.tokenizer import Tokenizer, train_tokenizer
from pangu_ms.infer.calibration import measure_steps, serve
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling import step_costs
from pangu_ms.infer.scheduling.policies import POLICIES, Settings
from pangu_ms.infer.scheduling.simulator import GraphCost, Work
from pangu_ms.infer.scheduling.step_costs import MeasuredStep, StepCosts, fit

COST = GraphCost({4: 2.0, 8: 3.0}, {4: 5.0, 8: 7.0}, row=0.25, cached_token=0.001)
GREEDY = SamplingConfig(temperature=0.0)


class TimedDecoder(Decoder):
    """A decoder without a graph, whose steps take the time of a cost on a clock of its own."""

    def __init__(self, slots, cost, noise=0.0):
        super().__init__(None, GraphShape.fitting(100, slots, 100, 16))
        graphs = {slots: cost.decode[slots]}, {slots: cost.with_chunk[slots]}
        self.cost = GraphCost(*graphs, cost.row, cost.cached_token)
        self.time, self.noise, self.rng = 0.0, noise, np.random.default_rng(0)

    def append(self, tokens, chunk=None):
        cached = sum(int(self.lengths[slot]) for slot in tokens)
        rows = len(tokens)
        seconds = self.cost(Work(rows, len(chunk[1]) if chunk else 0, rows, cached + rows))
        self.time += seconds * self.rng.uniform(1 - self.noise, 1 + self.noise)
        for slot in tokens:
            self.lengths[slot] += 1
        if chunk:
            self.lengths[chunk[0]] += len(chunk[1])
        return np.zeros((self.shape.batch_size, 290), np.float32)

    def clock(self):
        return self.time


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def class import name0: name1: name2:\n" * 50], 290, "none")


def measured(tokenizer, slots, noise=0.0):
    decoder = TimedDecoder(slots, COST, noise)
    return measure_steps(decoder, tokenizer, GREEDY, clock=decoder.clock)


def test_known_costs_are_found_again(tokenizer: Tokenizer):
    found = fit(measured(tokenizer, 4) + measured(tokenizer, 8))
    for wanted, value in ((COST.decode, found.decode), (COST.with_chunk, found.with_chunk)):
        assert value == pytest.approx(wanted)
    assert (found.row, found.cached_token) == pytest.approx((COST.row, COST.cached_token))


@pytest.mark.parametrize("policy", ["static", "fcfs", "ljf"])
def test_the_predicted_time_of_a_run_is_the_measured_one(tokenizer, policy):
    """On a machine whose steps take up to a fifth more or less than they should."""
    cost = fit(measured(tokenizer, 8, noise=0.2))
    decoder = TimedDecoder(8, COST, noise=0.2)
    scheduler = POLICIES[policy].make(Settings())
    served = serve(decoder, tokenizer, GREEDY, cost, scheduler=scheduler, clock=decoder.clock)
    assert served.steps == served.simulated.steps > 90 and served.seconds == decoder.time
    assert served.seconds == pytest.approx(served.simulated.seconds, rel=0.05)


def test_stalls_say_nothing_and_nothing_costs_less_than_nothing():
    steps = [MeasuredStep(4, rows, prompt, 10 * rows, 2.0) for rows in (1, 2, 3, 4) for prompt in (0, 9)]
    steps += [MeasuredStep(4, 1, 0, 10, 500.0)]
    assert fit(steps) == GraphCost({4: pytest.approx(2.0)}, {4: pytest.approx(2.0)}, pytest.approx(0), pytest.approx(0))
    falling = fit([MeasuredStep(4, rows, prompt, 0, 5.0 - rows) for rows in (1, 2, 3) for prompt in (0, 9)])
    assert falling.row == falling.cached_token == 0 and falling.decode[4] == pytest.approx(3.0)
    with pytest.raises(ValueError, match="some with a chunk and some without"):
        fit(steps[:1])


def test_no_graph_is_large_enough():
    assert COST(Work(8, 0, 6, 1000)) == 3.0 + 6 * 0.25 + 1.0 and COST(Work(3, 5, 3)) == 5.0 + 0.75
    with pytest.raises(GenerationError, match="a step of 9 rows: the largest graph that was measured has 8"):
        COST(Work(9))


def test_costs_are_written_and_damaged_ones_refused(tmp_path):
    path, costs = tmp_path / "costs.json", StepCosts(COST, 16, "a" * 64)
    step_costs.save(path, costs)
    assert step_costs.load(path) == costs
    good = json.loads(path.read_text())
    changes = [{"slots": []}, {"slots": [0, 8]}, {"decode": [1.0]}, {"decode": [-1.0, 1.0]}, {"decode": [0.0, 1.0]}]
    for change in [*changes, {"row": -1}, {"chunk": 0}, {"format_version": 2}, {"slots": None}, {"with_chunk": ["x"]}]:
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match="costs.json: .+; .+") as error:
            step_costs.load(path)
        assert "\n" not in str(error.value), change


def test_the_simulator_takes_measured_costs(tmp_path, capsys):
    path = tmp_path / "costs.json"
    step_costs.save(path, StepCosts(COST, 16, "a" * 64))
    words = ["schedule", "simulate", "--requests", "40", "--max-new-tokens", "60", "--cost", str(path), "--json"]
    assert main([*words, "--slots", "4", "--prompt-tokens", "20"]) == 0
    rows = json.loads(capsys.readouterr().out)["policies"]
    assert list(rows) == list(POLICIES)
    for row in rows.values():
        assert row["seconds"] > 2.0 * row["steps"], "the fastest step takes 2 s"
        assert row["first_token"]["p50"] <= row["latency"]["p50"] and 2 < row["per_token"]["mean"] < 20
    for more, says in (
        (["--slots", "9"], "--slots 9: the largest graph in"),
        (["--slots", "4", "--max-rows", "16"], "--max-rows 16: the largest graph in"),
        (["--slots", "4", "--chunk", "64"], "was measured with 16; leave it out"),
    ):
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    words[words.index(str(path))] = str(tmp_path / "none.json")
    assert main(words) == 2 and "none.json: No such file" in capsys.readouterr().err
