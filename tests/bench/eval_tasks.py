"""`python -m tests.bench.eval_tasks CHECKPOINT --task-data DIR`: items of benchmark tasks a second.

Three ways take turns, item after item: as `pangu tasks run` scores them (what candidates and prompts have in common
is computed once), the same without this, and one candidate at a time as a whole row of the model's window, as the
official scripts do it. Ratios hold on a busy machine; seconds do not.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from pangu_ms.core import runtime


class Timed:
    """A scorer, of which the time of each item and that inside the graph is kept."""

    def __init__(self, scorer, forgets=False):
        self.scorer, self.forgets, self.seconds, self.in_graph = scorer, forgets, [], 0.0
        call = scorer._call

        def timed(*arrays):
            began = time.perf_counter()
            try:
                return call(*arrays)
            finally:
                self.in_graph += time.perf_counter() - began

        scorer._call = timed

    def score(self, item):
        began = time.perf_counter()
        if self.forgets:
            totals = []
            for pair in item.pairs:
                self.scorer.forget()
                ((_, (score,)),) = self.scorer.score_all([type(item)((pair,))])
                totals.append(score.total)
        else:
            ((_, scores),) = self.scorer.score_all([item])
            totals = [score.total for score in scores]
        self.seconds.append(time.perf_counter() - began)
        return totals


def measure(checkpoint, items, window, tokenizer, warm_up):
    """Items a second and the share of time in the graph of each way."""
    from pangu_ms.infer import load
    from pangu_ms.infer.scoring import _order
    from pangu_ms.infer.window_scorer import WindowScorer

    class Rows(WindowScorer):
        batch_size = 1

    config = checkpoint.config()
    graph = load._whole_windows(checkpoint, config, load.weights_of(checkpoint, config))
    ways = {
        "shared prefixes": Timed(load.load_scorer(checkpoint, items, tokenizer, config)),
        "each candidate anew": Timed(load.load_scorer(checkpoint, items, tokenizer, config), forgets=True),
        "whole rows of the window": Timed(Rows(graph, tokenizer, window)),
    }
    ordered = sorted(items, key=_order)
    for item in [*ordered[:warm_up], *ordered]:
        if item is ordered[0]:
            for way in ways.values():
                way.seconds, way.in_graph = [], 0.0
        totals = [way.score(item) for way in ways.values()]
        for other in totals[1:]:
            np.testing.assert_allclose(other, totals[0], atol=1e-2)
    found = {}
    for name, way in ways.items():
        total = sum(way.seconds)
        found[name] = {
            "items_per_s": len(way.seconds) / total,
            "median_ms": 1e3 * statistics.median(way.seconds),
            "in_graph": way.in_graph / total,
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task-data", type=Path, required=True)
    parser.add_argument("--tasks", default="tnews@fewclue,c3@mixed_self")
    parser.add_argument("--shots", default="0")
    parser.add_argument("--limit", type=int, default=40)
    args = parser.parse_args()
    runtime.quiet()

    from pangu_ms.checkpoint.store import open_checkpoint
    from pangu_ms.eval.tasks.catalog import find_tasks
    from pangu_ms.eval.tasks.encoding import Encoder
    from pangu_ms.eval.tasks.run import Settings, prepare

    checkpoint = open_checkpoint(args.checkpoint)
    tokenizer, window = checkpoint.tokenizer(), checkpoint.config().model.seq_length
    settings = Settings(
        tuple(int(word) if word.isdecimal() else word for word in args.shots.split(",")), (0,), args.limit
    )
    sections, _ = prepare(find_tasks(args.tasks.split(",")), settings, args.task_data, tolerant=True)
    for section in sections:
        encoder = Encoder(section.task, tokenizer, window)
        items = [encoder.encode(prompt).item for prompt in section.prompts]
        for way, found in measure(checkpoint, items, window, tokenizer, 2).items():
            print(json.dumps({"section": section.name, "items": len(items), "way": way} | found))


if __name__ == "__main__":
    main()
