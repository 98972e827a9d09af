"""One chat with a model in this process: the turns, and what of them fits into the model's context."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.continuation import Continuation, Request
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.serve.forms import Reasoning
from pangu_ms.serve.models import ServedModel

Message = dict[str, str]
OnText = Callable[[str, str], None]
"""Takes new text: of the model's reasoning, and of its answer."""


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: without its reasoning.
        finish_reason: "stop", "length" or "cancelled".
        prompt_tokens: of the chat before it.
        reused_tokens: those of them that were not computed, because the cache held them.
        new_tokens: of the answer.
        dropped: messages that were left out, because the chat had become longer than the context.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    dropped: int = 0


@dataclass
class Conversation:
    """A chat.

    Attributes:
        model: that answers.
        engine: computes it.
        sampling: how tokens are chosen; of the new tokens as many as fit, if they are fewer.
        domain: index of its domain.
        system: the system message, "" for none.
        messages: so far, with role and content, without the system message.
    """

    model: ServedModel
    engine: Engine
    sampling: SamplingConfig
    domain: int = 0
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    _turns: int = 0

    def all_messages(self) -> list[Message]:
        """The messages, with the system message before them."""
        return [*([{"role": "system", "content": self.system}] if self.system else ()), *self.messages]

    def ask(self, text: str, on_text: OnText, stopped: Callable[[], bool] = lambda: False) -> Answer:
        """Add a message and the model's answer. If there is none, because of an error or because it is stopped before
        its first text, the chat is as before.

        Args:
            text: the message.
            on_text: called while the answer is generated.
            stopped: whether the answer is to end; asked after each step.

        Raises:
            UserError: the message does not fit into the context, is no Unicode, or the model's logits are no numbers.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self._prompt()
            answer = self._generate(ids, on_text, stopped)
        except BaseException:
            self.messages = before
            raise
        dropped = len(before) + 1 - len(self.messages)
        if answer.text or answer.finish_reason != "cancelled":
            self.messages.append({"role": "assistant", "content": answer.text})
        else:
            self.messages = before
        return dataclasses.replace(answer, dropped=dropped)

    def _prompt(self) -> tuple[int, ...]:
        """Ids of the chat, whose oldest turns are dropped if it leaves too little room for an answer."""
        most = self.model.shape.max_length
        wanted = min(self.sampling.max_new_tokens, most // 4)
        ids = self.model.template.encode(self.all_messages())
        if len(ids) + wanted > most:
            # Down to half of the context, so that the next turns find the rest in the cache: where each turn dropped
            # another one, all of it would be computed anew each time.
            while len(ids) > most // 2 and len(self.messages) > 1:
                del self.messages[:2]
                ids = self.model.template.encode(self.all_messages())
        if len(ids) >= most:
            raise GenerationError(
                f"the message and the system message have {len(ids)} tokens; the context has {most}; shorten them"
            )
        return ids

    def _generate(self, ids: tuple[int, ...], on_text: OnText, stopped: Callable[[], bool]) -> Answer:
        template, engine = self.model.template, self.engine
        room = self.model.shape.max_length - len(ids)
        sampling = dataclasses.replace(
            self.sampling,
            max_new_tokens=min(self.sampling.max_new_tokens, room),
            stop_token_ids=(*self.sampling.stop_token_ids, *template.stop_ids),
        )
        # The number of the turn is a part of the seed.
        request = Request(ids, sampling, sample=self._turns, domain=self.domain)
        self._turns += 1
        split = Reasoning(self.model, template.thinking)
        ended: list[Continuation] = []
        number = engine.submit(request, lambda one: on_text(*split.push(one.take())))
        while not ended:
            ended = [one for _, one in engine.step()]
            if not ended and stopped():
                ended = [engine.cancel(number)]
        (continuation,) = ended
        if continuation.error:
            raise GenerationError(continuation.error)
        return Answer(
            split.content,
            continuation.finish_reason,
            len(ids),
            continuation.cached_tokens,
            len(continuation.ids),
        )
