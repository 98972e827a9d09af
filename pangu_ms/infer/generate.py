"""Continues texts: prompts in, continuations out."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.beam import beam_search
from pangu_ms.infer.continuation import Continuation, Request, TokenLogprobs
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.questions import Questions
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scheduling.length_predictors import LengthPredictor, OwnAnswer
from pangu_ms.infer.scheduling.length_predictors import Prompt as KnownPrompt
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


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        text: of at least one token.
        sampling: how tokens are chosen, and when the continuation ends.
        domain: name of its domain, "" for the model's default.
        template: what it was made from, for predictors of lengths.
        id: the user's own, which answers carry.
    """

    text: str
    sampling: SamplingConfig
    domain: str = ""
    template: str = ""
    id: str | int | None = None

    @classmethod
    def each_of(cls, texts: Sequence[str], sampling: SamplingConfig, domains: Sequence[str] = ()) -> "list[Prompt]":
        """Prompts with the same settings; `domains` are theirs, if there are any."""
        return [cls(text, sampling, domain) for text, domain in zip(texts, domains or [""] * len(texts))]


class Generator:
    """Continues texts with a Decoder and a tokenizer."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        scheduler: Scheduler | None = None,
        predictor: LengthPredictor | None = None,
        prefix_cache: bool = True,
    ):
        """Make a generator.

        Args:
            decoder: computes the model.
            tokenizer: the model's.
            scheduler: which prompt gets a slot; by default first come, first served.
            predictor: says how long continuations will be, for the scheduler. An `OwnAnswer` asks this decoder.
            prefix_cache: whether beginnings of prompts that a slot holds are copied instead of computed.
        """
        if isinstance(predictor, OwnAnswer):
            predictor = dataclasses.replace(predictor, ask=Questions(decoder, tokenizer))
        self.decoder, self.tokenizer = decoder, tokenizer
        self.scheduler, self.predictor, self.prefix_cache = scheduler, predictor, prefix_cache

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
            `config.num_samples` continuations for each prompt, in the order of the prompts.

        Raises:
            GenerationError: see `each`.
        """
        self.decoder.domains.indices(domains, len(prompts))  # there is one for each prompt
        found = self.each(Prompt.each_of(prompts, config, domains), on_text)
        return [generation for _, _, generation in sorted(found, key=lambda one: one[:2])]

    def each(
        self, prompts: Sequence[Prompt], on_text: OnText | None = None, only: Container[tuple[int, ...]] | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Continue prompts; yields (index of the prompt, number of the sample, continuation) as soon as one has ended.

        Args:
            prompts: what to continue.
            on_text: called as `on_text(index of the prompt, new text)` whenever there is new text.
            only: the pairs (index, sample) to generate; None: all.

        Raises:
            GenerationError: a prompt is empty or longer than the context, the model lacks a domain, or there are fewer
                slots than beams; nothing was generated then. Or logits are not finite; the other continuations have
                then been yielded.
        """
        domains = self.decoder.domains.indices([prompt.domain for prompt in prompts], len(prompts))
        ids = [tuple(self.tokenizer.encode_prompt(prompt.text)) for prompt in prompts]
        self.decoder.shape.require_room(ids)
        self.decoder.shape.require_beams(max((prompt.sampling.num_beams for prompt in prompts), default=1))
        requests = [
            Request(ids[i], prompt.sampling, i, sample, domains[i], template=prompt.template)
            for i, prompt in enumerate(prompts)
            for sample in range(prompt.sampling.num_samples)
            if only is None or (i, sample) in only
        ]
        error = ""
        for request, one in itertools.chain(self._sampled(requests, on_text), self._searched(requests, on_text)):
            if one.error:
                error = error or one.error
                continue
            self._warn_if_full(one)
            made = Generation(
                prompts[request.index].text, one.text, tuple(one.ids), one.finish_reason, tuple(one.logprobs)
            )
            yield request.index, request.sample, made
        if error:
            raise GenerationError(error)

    def _warn_if_full(self, one: Continuation) -> None:
        made, wanted = len(one.ids), one.request.sampling.max_new_tokens
        if one.finish_reason == "length" and made < wanted:
            context = self.decoder.shape.max_length
            log.warning(
                "prompt %d: ends after %d of max_new_tokens=%d, where the context of %d tokens is full",
                one.request.index + 1,
                made,
                wanted,
                context,
            )

    def _sampled(self, requests: list[Request], on_text: OnText | None) -> Iterator[tuple[Request, Continuation]]:
        """Continue all requests without beams, as many at a time as there are slots."""
        engine = Engine(self.decoder, self.tokenizer, self.scheduler, self.prefix_cache)
        requests = [request for request in requests if request.sampling.num_beams == 1]
        for request, length in zip(requests, self._predicted(requests)):
            engine.submit(dataclasses.replace(request, predicted_tokens=length), _of_prompt(on_text, request.index))
        for _, one in engine.run():
            yield one.request, one

    def _predicted(self, requests: list[Request]) -> Sequence[float | None]:
        """How many tokens each request is expected to have."""
        if not self.predictor:
            return [None] * len(requests)
        return self.predictor.predict([KnownPrompt(one.prompt, one.template, i) for i, one in enumerate(requests)])

    def _searched(self, requests: list[Request], on_text: OnText | None) -> Iterator[tuple[Request, Continuation]]:
        """Continue requests one after the other by beam search."""
        for request in requests:
            if request.sampling.num_beams == 1:
                continue
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
            yield request, one


def _of_prompt(on_text: OnText | None, index: int) -> Callable[[Continuation], None] | None:
    if not on_text:
        return None

    def on_token(continuation: Continuation) -> None:
        if new := continuation.take_new():
            on_text(index, new)

    return on_token
