"""A model that knows what is right: n-grams of characters over the gold texts of a task."""

import math
from collections import defaultdict

from pangu_ms.eval.tasks.encoding import Encoder
from pangu_ms.eval.tasks.metrics import METRICS
from pangu_ms.eval.tasks.model import Answer
from pangu_ms.eval.tasks.prediction import Estimate
from pangu_ms.eval.tasks.scorers import ask
from pangu_ms.infer.scoring import ContinuationScore

ORDERS = (24, 16, 8, 4, 2, 1, 0)
"""Characters before a character, the longest known context counts."""
BACK_OFF = 5.0
"""Nats that a character costs for each order that does not know it."""


class CharacterTokenizer:
    """A token for each character; 0 is the end of a document."""

    vocab_size, eod_id, unk_id = 0x110000, 0, 0x10FFFF
    first_ids = ()

    def encode_prompt(self, text):
        return [ord(sign) for sign in text]

    def encode_batch(self, texts):
        return [self.encode_prompt(text) for text in texts]


class PlantedModel:
    """Implements EvaluatedModel."""

    name = digest = "planted"
    window = 2048

    def __init__(self, texts):
        self.tokenizer = CharacterTokenizer()
        self._next = defaultdict(lambda: defaultdict(int))
        self._total = defaultdict(int)
        for text in texts:
            text = "\0" + text + "\0"
            for at in range(1, len(text)):
                for order in ORDERS:
                    if order <= at:
                        before = text[at - order : at]
                        self._next[before][text[at]] += 1
                        self._total[before] += 1

    def logprob(self, before, sign):
        """Of a character behind a text."""
        cost = 0.0
        for order in ORDERS:
            if order <= len(before):
                known = before[len(before) - order :]
                if sign in self._next.get(known, ()):
                    return math.log(self._next[known][sign] / self._total[known]) - cost
                cost += BACK_OFF
        return -20.0 - cost

    def score(self, items, on_scored=lambda number: None):
        for index, item in enumerate(items):
            scores = []
            for context, continuation in item.pairs:
                text = "".join(map(chr, context)) or "\0"
                logprobs = []
                for token in continuation:
                    logprobs.append(self.logprob(text[-ORDERS[0] :], chr(token)))
                    text += chr(token)
                scores.append(ContinuationScore(tuple(logprobs), (False,) * len(logprobs)))
            yield index, scores

    def generate(self, requests):
        for index, request in enumerate(requests):
            text, begin = "".join(map(chr, request.prompt)), len(request.prompt)
            reason = "length"
            for _ in range(request.sampling.max_new_tokens):
                known = [
                    text[len(text) - n :] for n in ORDERS if n <= len(text) and text[len(text) - n :] in self._next
                ]
                followers = self._next[known[0]]
                sign = max(followers, key=followers.get)
                text += "" if sign == "\0" else sign
                stop = next((one for one in request.sampling.stop if text[begin:].endswith(one)), None)
                if stop or sign == "\0":
                    text, reason = text[: len(text) - len(stop or "")], "stop"
                    break
            yield index, Answer(text[begin:], len(text) - begin, reason)


def estimate(model, section):
    """The first metric of a task."""
    metric = METRICS[section.task.metrics[0]]
    encoder = Encoder(section.task, model.tokenizer, model.window)
    asked = list(ask(model, encoder, section.prompts))
    assert len(asked) == len(section.prompts)
    return Estimate.of(*zip(*(metric.item(one.prediction, one.prompt.gold) for one in asked)))


def gold_texts(section):
    """What a model reads where the right answer stands in its place."""
    for prompt in section.prompts:
        if section.task.type == "generation":
            yield prompt.candidates[0].context + prompt.gold.answers[0] + "\n"
        elif section.task.type == "assignment":
            choices = len(prompt.candidates) // prompt.blanks
            for blank, choice in enumerate(prompt.gold.assignment):
                right = prompt.candidates[blank * choices + choice]
                yield right.context + right.continuation
        else:
            right = prompt.candidates[max(prompt.gold.choice, 0)]
            yield right.context + right.continuation
