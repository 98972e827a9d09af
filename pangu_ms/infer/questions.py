"""Asks a model questions: short greedy continuations, for the predictor that asks how long an answer will be."""

import time
from collections.abc import Sequence

from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.length_predictors import LengthPredictor, OwnAnswer

ANSWER_TOKENS = 8
"""Tokens of an answer; as the published program (spec G1.1)."""


def asked_tokens(predictor: LengthPredictor | None) -> int:
    """Tokens that a slot holds behind a prompt while a predictor asks: those of the question and of its answer."""
    return len(predictor.encode(predictor.question)) + ANSWER_TOKENS if isinstance(predictor, OwnAnswer) else 0


class Questions:
    """Continues prompts by a few of the likeliest tokens, in an engine of its own on the same decoder, before the
    requests themselves are admitted.

    Attributes:
        steps: steps that it took.
        seconds: their time.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer):
        self.decoder, self.tokenizer = decoder, tokenizer
        self.steps, self.seconds = 0, 0.0

    def __call__(self, prompts: Sequence[tuple[int, ...]]) -> list[str]:
        """The continuation of each prompt; "" if a slot has no room for it."""
        began = time.perf_counter()
        engine = Engine(self.decoder, self.tokenizer)
        sampling = SamplingConfig(max_new_tokens=ANSWER_TOKENS, temperature=0.0)
        texts = [""] * len(prompts)
        for index, prompt in enumerate(prompts):
            if len(prompt) + ANSWER_TOKENS <= self.decoder.shape.max_length:
                engine.submit(Request(prompt, sampling, index))
        for _, continuation in engine.run():
            texts[continuation.request.index] = continuation.text
        self.steps += engine.counts.steps
        self.seconds += time.perf_counter() - began
        return texts
