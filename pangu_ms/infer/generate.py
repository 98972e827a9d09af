"""The generation loop: it batches prompts of different lengths, handles stop tokens and stop strings, and streams text.

It needs numpy only; a Decoder runs the graph.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pangu_ms.data.tokenizer import StreamDecoder, Tokenizer
from pangu_ms.infer.beam import beam_search
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.sampling import Sampler, SamplingConfig

log = logging.getLogger(__name__)
OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    """The generated tokens, including the stop token, or those that complete the stop string."""
    finish_reason: str
    """"stop" (at a stop token or text) or "length"."""


@dataclass
class _Sequence:
    """The continuation of one prompt so far.

    Attributes:
        text: the generated text, without a stop string.
        shown: number of characters of `text` that were already passed to `on_text`.
        ids: the generated tokens.
    """

    decoder: StreamDecoder
    stop: tuple[str, ...]
    text: str = ""
    shown: int = 0
    finish_reason: str = ""
    ids: list[int] = field(default_factory=list)

    def add(self, token: int, stop_ids: frozenset[int], room: int) -> None:
        self.ids.append(token)
        ends = token in stop_ids
        self.text += self.decoder.flush() if ends else self.decoder.push(token)
        at = min((i for i in (self.text.find(s) for s in self.stop) if i >= 0), default=-1)
        if at >= 0:
            self.text, ends = self.text[:at], True
        if ends:
            self.finish_reason = "stop"
        elif len(self.ids) >= room:
            self.finish_reason = "length"
            self.text += self.decoder.flush()

    def take_new(self) -> str:
        """Return the text that was not shown yet. An end that may still grow into a stop string is held back."""
        end = len(self.text)
        if not self.finish_reason:
            end -= max((_overlap(self.text, stop) for stop in self.stop), default=0)
        new, self.shown = self.text[self.shown : end], max(end, self.shown)
        return new


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return max((n for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


class Generator:
    """Continues texts with a Decoder and a tokenizer."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer):
        self.decoder, self.tokenizer = decoder, tokenizer

    def generate(
        self,
        prompts: list[str],
        config: SamplingConfig,
        on_text: OnText | None = None,
        domains: Sequence[str] = (),
    ) -> list[Generation]:
        """Continue every prompt, a batch at a time.

        Args:
            prompts: texts.
            config: how tokens are chosen, and when a continuation ends.
            on_text: called as `on_text(index of the prompt, new text)` whenever there is new text.
            domains: name of each prompt's domain, "" for the model's default; empty: all are of the default domain.

        Returns:
            One continuation for each prompt.

        Raises:
            GenerationError: a prompt is empty or longer than the context; the model lacks a domain; or its logits are
                not finite.
        """
        indices = self.decoder.domains.indices(domains, len(prompts))
        ids = [self.tokenizer.encode_prompt(prompt) for prompt in prompts]
        if config.num_beams > 1:
            results = [self._beams(prompt, ids[i], config, i, on_text, indices[i]) for i, prompt in enumerate(prompts)]
        else:
            size, results = self.decoder.shape.batch_size, []
            for first in range(0, len(prompts), size):
                batch = slice(first, first + size)
                sequences = self._batch(ids[batch], config, first, on_text, indices[batch])
                for prompt, sequence in zip(prompts[first : first + size], sequences):
                    results.append(Generation(prompt, sequence.text, tuple(sequence.ids), sequence.finish_reason))
        for number, result in enumerate(results, 1):
            if result.finish_reason == "length" and (made := len(result.token_ids)) < config.max_new_tokens:
                context = self.decoder.shape.max_length
                log.warning(
                    "prompt %d: ends after %d of max_new_tokens=%d, where the context of %d tokens is full",
                    number,
                    made,
                    config.max_new_tokens,
                    context,
                )
        return results

    def _batch(
        self,
        prompts: list[list[int]],
        config: SamplingConfig,
        first: int,
        on_text: OnText | None,
        domains: list[int],
    ) -> list[_Sequence]:
        """Continue one batch of prompts (token ids); `first` is the index of the first one among all prompts."""
        stop_ids = frozenset(self.tokenizer.stop_ids)
        samplers = [Sampler(config, ids, first + i) for i, ids in enumerate(prompts)]
        sequences = [_Sequence(StreamDecoder(self.tokenizer), config.stop) for _ in prompts]
        rooms = [min(config.max_new_tokens, self.decoder.shape.max_length - len(ids)) for ids in prompts]
        logits = self.decoder.prefill(prompts, domains)
        tokens = np.zeros(len(prompts), np.int32)
        while True:
            for row, sequence in enumerate(sequences):
                if sequence.finish_reason:
                    continue
                tokens[row] = samplers[row].choose(logits[row])
                sequence.add(int(tokens[row]), stop_ids, rooms[row])
                if on_text and (new := sequence.take_new()):
                    on_text(first + row, new)
            if all(sequence.finish_reason for sequence in sequences):
                return sequences
            logits = self.decoder.step(tokens)

    def _beams(
        self, prompt: str, ids: list[int], config: SamplingConfig, index: int, on_text: OnText | None, domain: int
    ) -> Generation:
        stop_ids = frozenset(self.tokenizer.stop_ids)
        best = beam_search(self.decoder, ids, config, stop_ids, index, domain)[0]
        sequence = _Sequence(StreamDecoder(self.tokenizer), config.stop)
        for token in best.tokens:  # one by one, so that what follows a stop string is cut off, as when sampling
            sequence.add(token, stop_ids, len(best.tokens))
            if sequence.finish_reason:
                break
        if on_text:
            on_text(index, sequence.text)
        return Generation(prompt, sequence.text, tuple(sequence.ids), sequence.finish_reason)
