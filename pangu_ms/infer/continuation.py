"""What a request asks for, and the continuation that it has so far: tokens, text, stop strings, log-probabilities."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import StreamDecoder, Tokenizer
from pangu_ms.infer.sampling import Guide, GuideError, Sampler, SamplingConfig, log_softmax


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
        guide: makes what says which tokens may come; it is called when the continuation begins.
        prompt_logprobs: as `SamplingConfig.logprobs`, for the tokens of the prompt.
        prompt_only: whether it ends behind its prompt, without a new token.
    """

    prompt: tuple[int, ...]
    sampling: SamplingConfig
    index: int = 0
    sample: int = 0
    domain: int | None = None
    arrival: float = 0.0
    predicted_tokens: float | None = None
    template: str = ""
    guide: Callable[[], Guide] | None = None
    prompt_logprobs: int = -1
    prompt_only: bool = False


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log-probabilities at one position, of the model's own distribution: before penalties and temperature."""

    chosen: float
    """That of the chosen token."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and theirs, likeliest first; equal ones by ascending id."""


@dataclass(frozen=True)
class Piece:
    """What `Continuation.take` returns: the text that is new, and the tokens that it is made of.

    Attributes:
        begins: where in the whole text the text of each token begins.
        logprobs: one for each token, or none.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass
class Continuation:
    """A request while it is generated.

    Attributes:
        text: the generated text, without a stop string.
        shown: number of characters of `text` that `take_new` has returned.
        taken: number of tokens that `take` has returned.
        ids: the generated tokens.
        begins: for each of them, the length of the text before it.
        cached_tokens: tokens of the prompt that were copied instead of computed.
        logprobs: for each of them, if `sampling.logprobs` asks for them.
        prompt_logprobs: those of the tokens of the prompt but the first, if `request.prompt_logprobs` asks for them.
        finish_reason: "stop" (at a stop token or text), "length", "cancelled" or "error"; "" until it ends.
        error: what went wrong.
        of_request: whether the request is at fault.
    """

    request: Request
    tokenizer: Tokenizer
    text: str = ""
    shown: int = 0
    taken: int = 0
    ids: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""
    of_request: bool = False

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        self.stop_ids = frozenset((*self.tokenizer.stop_ids, *sampling.stop_token_ids))
        for token, _ in sampling.logit_bias:
            if not 0 <= token < self.tokenizer.vocab_size:
                raise GenerationError(
                    f"logit_bias: token {token}: is not in the vocabulary; must be 0 to {self.tokenizer.vocab_size - 1}"
                )
        self.begin()

    def begin(self) -> None:
        """Forget all tokens: a scheduler may let a request begin anew. What was shown stays shown, because the same
        tokens are generated again."""
        request = self.request
        self.decoder = StreamDecoder(self.tokenizer)
        self.sampler = Sampler(
            request.sampling,
            list(request.prompt),
            request.index,
            sample=request.sample,
            stop_ids=self.stop_ids,
            guide=request.guide() if request.guide else None,
        )
        self.text, self.ids, self.begins, self.logprobs, self.prompt_logprobs = "", [], [], [], []

    def read(self, logits: np.ndarray) -> None:
        """Take the logits float32 [n, V] behind the next n tokens of the prompt, in order."""
        first = len(self.prompt_logprobs) + 1
        for row, token in zip(logits, self.request.prompt[first : first + len(logits)]):
            self.prompt_logprobs.append(token_logprobs(row, token, self.request.prompt_logprobs))

    def choose(self, logits: np.ndarray, room: int) -> None:
        """Choose the next token from logits float32 [V], and add it; it is the last one if only `room` tokens fit in
        all. Logits that are no numbers end the continuation with an error."""
        try:
            if not self.ids and not all(math.isfinite(one.chosen) for one in self.prompt_logprobs):
                raise GenerationError(
                    f"prompt {self.request.index + 1}: the log-probabilities of its tokens must be numbers; the weights"
                    " are damaged or overflow: use another checkpoint, or float32 (model.compute_dtype=float32)"
                )
            if self.request.prompt_only:
                self.finish_reason = "length"
                return
            token = self.sampler.choose(logits)
        except GenerationError as error:
            self.finish_reason, self.error = "error", str(error)
            self.of_request = isinstance(error, GuideError)
            return
        if self.request.sampling.logprobs >= 0:
            self.logprobs.append(token_logprobs(logits, token, self.request.sampling.logprobs))
        self.add(token, room)

    def add(self, token: int, room: int) -> None:
        """Add a token."""
        self.ids.append(token)
        self.begins.append(len(self.text))
        ends = token in self.stop_ids
        self.text += self.decoder.flush() if ends else self.decoder.push(token)
        # One that ended before this token would have been found then.
        stops = self.request.sampling.stop
        found = (self.text.find(stop, max(0, self.begins[-1] - len(stop) + 1)) for stop in stops)
        at = min((i for i in found if i >= 0), default=-1)
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

    def take(self) -> Piece:
        """As `take_new`, with the tokens whose text has been returned as a whole. A stop token is none of them, nor are
        those of a stop string."""
        text, begin, end = self.take_new(), self.taken, self.taken
        if self.finish_reason:
            stopped = self.ids and self.ids[-1] in self.stop_ids
            end = max(end, len(self.ids) - 1 if stopped else len(self.ids))
            while end > begin and self.finish_reason == "stop" and self.begins[end - 1] >= len(self.text):
                end -= 1
        else:
            while end + 1 < len(self.begins) and self.begins[end + 1] <= self.shown:
                end += 1
            if end + 1 == len(self.begins) and len(self.text) <= self.shown:
                end += 1
        self.taken = end
        kept = slice(begin, end)
        return Piece(text, tuple(self.ids[kept]), tuple(self.begins[kept]), tuple(self.logprobs[kept]))


def token_logprobs(logits: np.ndarray, token: int, number: int) -> TokenLogprobs:
    """The log-probability of a token and those of the `number` likeliest, from logits [V]."""
    values = log_softmax(logits)
    number = min(number, values.size)
    best: np.ndarray | tuple[()] = ()
    if number:
        likely = np.flatnonzero(values >= np.partition(values, -number)[-number])
        best = likely[np.argsort(-values[likely], kind="stable")[:number]]
    return TokenLogprobs(float(values[token]), tuple((int(i), float(values[i])) for i in best))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    begin = max(0, len(text) - len(stop) + 1)
    while (begin := text.find(stop[:1], begin)) >= 0:
        if stop.startswith(text[begin:]):
            return len(text) - begin
        begin += 1
    return 0
