"""A model for tasks that is no more than a table: numpy alone, in no time."""

import functools

import numpy as np

from pangu_ms.eval.tasks.model import Answer
from pangu_ms.infer.continuation import Continuation
from pangu_ms.infer.sampling import log_softmax
from pangu_ms.infer.scoring import ScoredSequence


class Toy:
    """Its logits are random, by the last two tokens."""

    def __init__(self, tokenizer, window=64):
        self.tokenizer, self.window, self.name, self.digest = tokenizer, window, "toy", "0" * 64
        self.asked = 0

    @functools.cache  # noqa: B019
    def logits(self, *last):
        values = 3 * np.random.default_rng(last).standard_normal(self.tokenizer.vocab_size)
        values[:7] = -30  # control pieces
        return values

    def score(self, items, on_scored=lambda number: None):
        for index in reversed(range(len(items))):
            scores = []
            for pair in items[index].pairs:
                sequence = ScoredSequence.of(*pair, self.window, self.tokenizer.eod_id)
                rows = [log_softmax(self.logits(*sequence.inputs[: i + 1][-2:])) for i in range(len(sequence.inputs))]
                scored = range(sequence.first, len(rows))
                logprobs = np.array([rows[i][sequence.targets[i]] for i in scored])
                scores.append(sequence.score(logprobs, np.array([rows[i].argmax() for i in scored])))
                on_scored(1)
            self.asked += 1
            yield index, scores

    def generate(self, requests):
        for index, request in enumerate(requests):
            continuation = Continuation(request, self.tokenizer)
            ids = list(request.prompt)
            while not continuation.finish_reason:
                continuation.choose(self.logits(*ids[-2:]), request.sampling.max_new_tokens)
                ids = [*request.prompt, *continuation.ids]
            self.asked += 1
            yield index, Answer(continuation.text, len(continuation.ids), continuation.finish_reason)
