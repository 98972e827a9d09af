"""Answers the turns of a chat with an engine in this process."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.continuation import Continuation, Request
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.sampling import SamplingConfig
from pangu_ms.serve.conversation import Answer, Message, OnText
from pangu_ms.serve.forms import Speech
from pangu_ms.serve.models import ServedModel


@dataclass
class EngineBackend:
    """See Backend.

    Attributes:
        model: that answers.
        engine: computes it.
        sampling: how tokens are chosen; of the new tokens as many as fit, if they are fewer.
        domain: index of its domain.
    """

    model: ServedModel
    engine: Engine
    sampling: SamplingConfig
    domain: int = 0
    _turns: int = 0

    def __post_init__(self) -> None:
        self.name, self.context = self.model.name, self.model.shape.max_length

    def answer(
        self, system: Sequence[Message], messages: Sequence[Message], on_text: OnText, stopped: Callable[[], bool]
    ) -> Answer:
        """See Backend."""
        ids, dropped = self._prompt(system, messages)
        return dataclasses.replace(self._generate(ids, on_text, stopped), dropped=dropped)

    def _prompt(self, system: Sequence[Message], messages: Sequence[Message]) -> tuple[tuple[int, ...], int]:
        """Ids of the chat, and how many of its oldest messages are left out, because they leave too little room for an
        answer."""
        most, dropped = self.model.shape.max_length, 0
        wanted = min(self.sampling.max_new_tokens, most // 4)
        ids = self.model.template.encode([*system, *messages])
        if len(ids) + wanted > most:
            # Down to half of the context, so that the next turns find the rest in the cache: where each turn dropped
            # another one, all of it would be computed anew each time.
            while len(ids) > most // 2 and len(messages) - dropped > 1:
                dropped += 2
                ids = self.model.template.encode([*system, *messages[dropped:]])
        if len(ids) >= most:
            raise GenerationError(
                f"the message and the system message have {len(ids)} tokens; the context has {most}; shorten them"
            )
        return ids, dropped

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
        speech = Speech(self.model)
        ended: list[Continuation] = []
        number = engine.submit(request, lambda one: on_text(*speech.push(one.take())[:2]))
        while not ended:
            ended = [one for _, one in engine.step()]
            if not ended and stopped():
                ended = [engine.cancel(number)]
        (continuation,) = ended
        if continuation.error:
            raise GenerationError(continuation.error)
        return Answer(
            speech.content,
            continuation.finish_reason,
            len(ids),
            continuation.cached_tokens,
            len(continuation.ids),
        )
