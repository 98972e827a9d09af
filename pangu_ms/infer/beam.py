"""Beam search over a Decoder. numpy only."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.sampling import Sampler, SamplingConfig, log_softmax


@dataclass(frozen=True)
class Hypothesis:
    """A continuation and the sum of its log-probabilities (natural logarithm)."""

    tokens: tuple[int, ...]
    log_probability: float

    def score(self, length_penalty: float) -> float:
        """Length-normalised log-probability."""
        return self.log_probability / max(1, len(self.tokens)) ** length_penalty


def beam_search(
    decoder: Decoder,
    prompt: list[int],
    config: SamplingConfig,
    stop_ids: frozenset[int],
    index: int = 0,
    domain: int | None = None,
) -> list[Hypothesis]:
    """Find the best `num_beams` continuations of a prompt.

    A stop token ends a hypothesis and counts in its score and its length. Live beams are ranked by log-probability. The
    search ends at max_new_tokens, or when the worst of `num_beams` finished hypotheses has a better score than any live
    beam can still reach, since the log-probability of a live beam can only fall.

    Args:
        decoder: computes the model's logits.
        prompt: token ids.
        config: only num_beams, length_penalty, max_new_tokens and the penalties are used.
        stop_ids: tokens that end a continuation.
        index: number of the prompt, for error messages.
        domain: index of the prompt's domain; None: the default.

    Returns:
        The hypotheses, best first.
    """
    width = config.num_beams
    decoder.shape.require_beams(width)
    live, finished = [Hypothesis((), 0.0)], []
    max_steps = min(config.max_new_tokens, decoder.shape.max_length - len(prompt))
    logits = decoder.prefill([prompt], [] if domain is None else [domain])  # the search starts from one beam
    for step in range(max_steps):
        # Each live beam may yield one finished hypothesis per stop token. Enough candidates remain for `width` beams.
        candidates, parents = _candidates(
            live, logits, Sampler(config, prompt, index), width + len(stop_ids) * len(live)
        )
        kept: list[Hypothesis] = []
        rows: list[int] = []
        for candidate, parent in zip(candidates, parents):
            if candidate.tokens[-1] in stop_ids:
                finished.append(candidate)
            elif len(kept) < width:
                kept.append(candidate)
                rows.append(parent)
        finished = sorted(finished, key=lambda h: -h.score(config.length_penalty))[:width]
        live = kept
        if not live or step == max_steps - 1 or _is_settled(finished, live, config):
            break
        decoder.copy(rows, range(len(rows)), len(prompt) + step)
        logits = decoder.step(np.array([h.tokens[-1] for h in live], np.int32))
    return sorted(finished + live, key=lambda h: -h.score(config.length_penalty))[:width]


def _candidates(
    live: list[Hypothesis], logits: np.ndarray, sampler: Sampler, count: int
) -> tuple[list[Hypothesis], list[int]]:
    """The `count` best continuations of all live beams by one token, and the row of the beam that each continues."""
    penalized = [dataclasses.replace(sampler, generated=list(h.tokens)).penalized(row) for h, row in zip(live, logits)]
    scores = log_softmax(np.stack(penalized)) + np.array([[h.log_probability] for h in live])
    vocab_size = scores.shape[1]
    best = np.argsort(-scores, axis=None, kind="stable")[:count]
    found = [(int(i) // vocab_size, int(i) % vocab_size) for i in best]
    hypotheses = [Hypothesis((*live[row].tokens, token), float(scores[row, token])) for row, token in found]
    return hypotheses, [row for row, _ in found]


def _is_settled(finished: list[Hypothesis], live: list[Hypothesis], config: SamplingConfig) -> bool:
    """Whether no continuation of a live beam can still score better than the worst finished hypothesis."""
    if len(finished) < config.num_beams:
        return False
    # Log-probabilities are negative: a positive length penalty favours long continuations, any other short ones.
    best_length = config.max_new_tokens if config.length_penalty > 0 else len(live[0].tokens)
    reachable = max(h.log_probability for h in live) / best_length**config.length_penalty
    return finished[-1].score(config.length_penalty) >= reachable
