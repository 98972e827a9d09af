"""What a request asks for, and the continuation that it has so far: tokens, text, stop strings, log-probabilities."""

from dataclasses import dataclass, field

import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import StreamDecoder, Tokenizer
from pangu_ms.infer.sampling import Sampler, SamplingConfig, log_softmax


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        prompt: token ids.
        sampling: how tokens are chosen, and when the continuation ends.
        index: number of the prompt among those that are given together, from 0. Tokens are drawn with the seed
            (sampling.seed, index), so that they do not depend on what else is generated, or when.
        sample: number of the continuation among those of the prompt, from 0; a part of the seed too.
        domain: index of its domain; None: the model's default.
        arrival: when it came, on the engine's clock.
        predicted_tokens: how many tokens the continuation is expected to have, for the scheduler.
        template: what the prompt was made from, for predictors of lengths.
    """

    prompt: tuple[int, ...]
    sampling: SamplingConfig
    index: int = 0
    sample: int = 0
    domain: int | None = None
    arrival: float = 0.0
    predicted_tokens: float | None = None
    template: str = ""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, of the model's own distribution: before penalties and temperature."""

    chosen: float
    """That of the chosen token."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs, likeliest first; equal ones by ascending id."""


@dataclass
class Continuation:
    """A request while it is generated.

    Attributes:
        text: the generated text, without a stop string.
        shown: number of characters of `text` that `take_new` has returned.
        ids: the generated tokens.
        logprobs: for each of them, if `sampling.logprobs` asks for them.
        finish_reason: "stop" (at a stop token or text), "length", "cancelled" or "error"; "" until it ends.
        error: what went wrong.
    """

    request: Request
    tokenizer: Tokenizer
    text: str = ""
    shown: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget all tokens: a scheduler may let a request begin anew. What was shown stays shown, because the same
        tokens are generated again."""
        request = self.request
        self.decoder = StreamDecoder(self.tokenizer)
        self.sampler = Sampler(request.sampling, list(request.prompt), request.index, sample=request.sample)
        self.text, self.ids, self.logprobs = "", [], []

    def choose(self, logits: np.ndarray, room: int) -> int:
        """Choose the next token from logits float32 [V], and add it; it is the last one if only `room` tokens fit in
        all. Logits that are no numbers end the continuation with an error."""
        try:
            token = self.sampler.choose(logits)
        except GenerationError as error:
            self.finish_reason, self.error = "error", str(error)
            return 0
        if self.request.sampling.logprobs >= 0:
            self.logprobs.append(token_logprobs(logits, token, self.request.sampling.logprobs))
        self.add(token, room)
        return token

    def add(self, token: int, room: int) -> None:
        """Add a token."""
        self.ids.append(token)
        ends = token in self.tokenizer.stop_ids
        self.text += self.decoder.flush() if ends else self.decoder.push(token)
        stop = self.request.sampling.stop
        at = min((i for i in (self.text.find(s) for s in stop) if i >= 0), default=-1)
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
            end -= max((_overlap(self.text, stop) for stop in self.request.sampling.stop), default=0)
        new, self.shown = self.text[self.shown : end], max(end, self.shown)
        return new


def token_logprobs(logits: np.ndarray, token: int, number: int) -> TokenLogprobs:
    """The log-probability of a token and those of the `number` likeliest, from logits [V]."""
    values = log_softmax(logits)
    number = min(number, values.size)
    best = np.argsort(-values, kind="stable")[:number] if number else ()
    return TokenLogprobs(float(values[token]), tuple((int(i), float(values[i])) for i in best))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return max((n for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
