"""The tasks of lm-eval (EleutherAI's lm-evaluation-harness) with models of ours. Needs the extra [eval].

lm-eval asks a model for three things: the log-likelihood of a continuation, that of a whole text, and a continuation up
to a stop string. `HarnessModel` answers them with an EvaluatedModel, so that a task of lm-eval and the same task of
ours (tasks/) get the same numbers: texts are divided into tokens by the same functions, an empty context stands for the
end of a document, and a context that the window has no room for is cut at its beginning.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from lm_eval.api.model import LM

from pangu_ms.core.errors import DataError, GenerationError
from pangu_ms.core.progress import progress_bar
from pangu_ms.eval.tasks.encoding import encode_parts
from pangu_ms.eval.tasks.model import EvaluatedModel
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.infer.scoring import ContinuationScore, Item

MAX_NEW_TOKENS = 256
"""Longest continuation of a task that names none: lm-eval's own default."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the longest continuation, in the order of precedence."""
_SAMPLING = {"top_k": int, "top_p": float, "repetition_penalty": float, "seed": int}
_KNOWN = (*_LENGTHS, "until", "do_sample", "temperature", *_SAMPLING)
_HARMLESS = {"num_beams": 1, "num_return_sequences": 1, "min_new_tokens": 0}
"""Further settings of continuations, with the value that asks for nothing."""


class LogLikelihood(float):
    """A log-likelihood that knows how many tokens it is of, for means over tokens."""

    num_tokens: int

    def __new__(cls, value: float, num_tokens: int) -> "LogLikelihood":
        """A number of nats, of so many tokens."""
        self = super().__new__(cls, value)
        self.num_tokens = num_tokens
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """For lm-eval's cache of answers, which pickles them."""
        return type(self), (float(self), self.num_tokens)


class Chat(Protocol):
    """A template of chats."""

    @property
    def where(self) -> str:
        """What messages call it."""

    def render(self, messages: Sequence[Mapping[str, Any]], generate: bool = True) -> str:
        """The text of a chat; `generate`: an answer follows."""

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of such a text, in which special pieces are spelt out."""


class HarnessModel(LM):
    """An EvaluatedModel as lm-eval's LM.

    Attributes:
        model: computes.
        chat: the template of chats; without it lm-eval's `apply_chat_template` is refused.
        asked: whether lm-eval has asked for anything yet: its tasks are loaded then.
        cut_contexts: contexts that were longer than the window.
        cut_tokens: tokens that were cut off at their beginnings.
    """

    def __init__(self, model: EvaluatedModel, chat: Chat | None = None, seed: int = 0, progress: bool = True):
        """Wrap a model.

        Args:
            model: computes.
            chat: the template of chats, which then encodes all contexts.
            seed: of sampled continuations.
            progress: show bars.
        """
        super().__init__()
        self.model, self.chat, self.seed, self.progress = model, chat, seed, progress
        self._encoder: Any = chat or model.tokenizer
        self.asked, self.cut_contexts, self.cut_tokens = False, 0, 0

    @property
    def tokenizer_name(self) -> str:
        """Names lm-eval's cache of requests that are made with a chat template."""
        return f"pangu-{self.model.digest[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results."""
        return {"model": self.model.name, "model_digest": self.model.digest, "model_window": self.model.window}

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The name of the template, for lm-eval's record of what was run."""
        return self.chat.where if self.chat else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """See LM."""
        if self.chat is None:
            raise GenerationError("--apply-chat-template: the model has no chat template here; leave the option out")
        return self.chat.render(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[LogLikelihood, bool]]:
        """See LM."""
        items, answers = [self._item(request) for request in requests], dict[int, tuple[LogLikelihood, bool]]()
        for index, (score,) in self._scores(items, requests, "score", disable_tqdm):
            answers[index] = LogLikelihood(score.total, len(score.logprobs)), score.is_greedy
            self.cache_hook.add_partial("loglikelihood", requests[index].args, answers[index])
        return [answers[index] for index in range(len(items))]

    def _item(self, request: Any) -> Item:
        context, continuation = request.args
        try:
            before, scored, _ = encode_parts(self._encoder, context, continuation)
        except DataError as error:
            raise DataError(f"{_place(request)}: {error}") from None
        if len(scored) > self.model.window:
            raise GenerationError(
                f"{_place(request)}: a continuation has {len(scored)} tokens; the model reads {self.model.window};"
                " leave the task out, or use a model with a longer context"
            )
        return Item(((tuple(before), tuple(scored)),))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """See LM: each token of a text is scored once, the first one behind the end of a document."""
        tokenizer, window = self.model.tokenizer, self.model.window
        first, texts = tokenizer.encode_prompt(""), tokenizer.encode_batch([request.args[0] for request in requests])
        answers = {index: LogLikelihood(0.0, 0) for index, ids in enumerate(texts) if not ids}
        scored = [index for index in range(len(texts)) if index not in answers]
        items = [Item.text(texts[index], window, first=first) for index in scored]
        of_scored = [requests[index] for index in scored]
        for position, scores in self._scores(items, of_scored, "score texts", disable_tqdm):
            total = math.fsum(score.total for score in scores)
            answer = LogLikelihood(total, sum(len(score.logprobs) for score in scores))
            answers[scored[position]] = answer
            self.cache_hook.add_partial("loglikelihood_rolling", of_scored[position].args, answer)
        return [answers[index] for index in range(len(texts))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """See LM."""
        wanted, answers = [self._generation(request) for request in requests], dict[int, str]()
        self.asked = True
        with self._bar(len(wanted), "generate", disable_tqdm) as bar:
            for index, answer in self.model.generate(wanted):
                if answer.error:
                    raise GenerationError(f"{_place(requests[index])}: {answer.error}")
                answers[index] = answer.text
                self.cache_hook.add_partial("generate_until", requests[index].args, answer.text)
                bar.update()
        return [answers[index] for index in range(len(wanted))]

    def _scores(
        self, items: Sequence[Item], requests: Sequence[Any], title: str, silent: bool
    ) -> Iterator[tuple[int, list[ContinuationScore]]]:
        self.asked = True
        with self._bar(sum(len(item.pairs) for item in items), title, silent) as bar:
            for index, scores in self.model.score(items, bar.update):
                for score in scores:
                    if score.error:
                        raise GenerationError(f"{_place(requests[index])}: {score.error}")
                    self._count_cut(score.cut_tokens)
                yield index, scores

    def _count_cut(self, tokens: int) -> None:
        self.cut_contexts += tokens > 0
        self.cut_tokens += tokens

    def _bar(self, number: int, title: str, silent: bool) -> Any:
        return progress_bar(self.progress and not silent, total=number, desc=title, unit="text", leave=False)

    def _generation(self, request: Any) -> Request:
        """A request of lm-eval as one of ours."""
        (text, given), place = request.args, _place(request)
        settings = {name: value for name, value in given.items() if value is not None}
        if unknown := [name for name in settings if name not in _KNOWN and settings[name] != _HARMLESS.get(name)]:
            raise GenerationError(
                f"{place}: generation_kwargs has {unknown[0]}={settings[unknown[0]]!r:.40}; known are"
                f" {', '.join(_KNOWN)}; change the task's file"
            )
        length = next((int(settings[name]) for name in _LENGTHS if name in settings), MAX_NEW_TOKENS)
        until = settings.get("until", ())
        sampling: dict[str, Any] = {"seed": self.seed}
        sampling |= {name: kind(settings[name]) for name, kind in _SAMPLING.items() if name in settings}
        try:
            config = SamplingConfig(
                max_new_tokens=length,
                temperature=_temperature(settings),
                stop=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
                **sampling,
            )
        except GenerationError as error:
            raise GenerationError(f"{place}: generation_kwargs: {error}") from None
        return Request(self._prompt(text, length, place), config, index=request.doc_id or 0)

    def _prompt(self, text: str, length: int, place: str) -> tuple[int, ...]:
        """Ids of a context, which is cut so that there is room for `length` new tokens."""
        ids, room = self._encoder.encode_prompt(text) or [self.model.tokenizer.eod_id], self.model.window - length
        if room < 1:
            raise GenerationError(
                f"{place}: asks for {length} new tokens; the model reads {self.model.window} tokens in all; ask for"
                " fewer with --gen-kwargs max_gen_toks=N"
            )
        self._count_cut(max(0, len(ids) - room))
        return tuple(ids[-room:])


def _temperature(settings: dict[str, Any]) -> float:
    """0, greedy, unless a task samples."""
    given = settings.get("temperature")
    if settings.get("do_sample") is False or given is None and not settings.get("do_sample"):
        return 0.0
    return 1.0 if given is None else float(given)


def _place(request: Any) -> str:
    """What messages call a request."""
    return f"{request.task_name or 'task'}, item {request.doc_id}"
