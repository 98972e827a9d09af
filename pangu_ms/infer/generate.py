"""Continues texts: prompts in, continuations out, in the order of the prompts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.beam import beam_search
from pangu_ms.infer.continuation import Continuation, Request, TokenLogprobs
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.state import Scheduler

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
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, if `SamplingConfig.logprobs` asks for them."""


class Generator:
    """Continues texts with a Decoder and a tokenizer."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Scheduler | None = None):
        self.decoder, self.tokenizer, self.scheduler = decoder, tokenizer, scheduler

    def generate(
        self,
        prompts: list[str],
        config: SamplingConfig,
        on_text: OnText | None = None,
        domains: Sequence[str] = (),
    ) -> list[Generation]:
        """Continue every prompt.

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
        ids = [tuple(self.tokenizer.encode_prompt(prompt)) for prompt in prompts]
        requests = [Request(ids[i], config, i, indices[i]) for i in range(len(prompts))]
        continuations = self._beams(requests, on_text) if config.num_beams > 1 else self._engine(requests, on_text)
        for number, one in enumerate(continuations, 1):
            if one.error:
                raise GenerationError(one.error)
            if one.finish_reason == "length" and (made := len(one.ids)) < config.max_new_tokens:
                context = self.decoder.shape.max_length
                log.warning(
                    "prompt %d: ends after %d of max_new_tokens=%d, where the context of %d tokens is full",
                    number,
                    made,
                    config.max_new_tokens,
                    context,
                )
        return [
            Generation(prompt, one.text, tuple(one.ids), one.finish_reason, tuple(one.logprobs))
            for prompt, one in zip(prompts, continuations)
        ]

    def _engine(self, requests: list[Request], on_text: OnText | None) -> list[Continuation]:
        """Continue all requests, as many at a time as there are slots."""
        self.decoder.shape.require_room([request.prompt for request in requests])
        engine = Engine(self.decoder, self.tokenizer, self.scheduler)
        for request in requests:
            engine.submit(request, _of_prompt(on_text, request.index))
        ended = dict(engine.run())
        return [ended[number] for number in range(len(requests))]

    def _beams(self, requests: list[Request], on_text: OnText | None) -> list[Continuation]:
        """Continue one request after the other by beam search."""
        continuations = []
        for request in requests:
            best = beam_search(
                self.decoder,
                list(request.prompt),
                request.sampling,
                frozenset(self.tokenizer.stop_ids),
                request.index,
                request.domain,
            )[0]
            one = Continuation(request, self.tokenizer)
            for token in best.tokens:  # one by one, so that what follows a stop string is cut off, as when sampling
                one.add(token, len(best.tokens))
                if one.finish_reason:
                    break
            if on_text:
                on_text(request.index, one.text)
            continuations.append(one)
        return continuations


def _of_prompt(on_text: OnText | None, index: int) -> Callable[[str], None] | None:
    return (lambda text: on_text(index, text)) if on_text else None
