"""A chat: its turns. What answers them is a backend: an engine in this process, or a server. No imports of either."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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


class Backend(Protocol):
    """What answers."""

    name: str
    """Of the model."""
    context: int
    """Tokens of the longest chat; 0 if nobody says."""

    def answer(
        self, system: Sequence[Message], messages: Sequence[Message], on_text: OnText, stopped: Callable[[], bool]
    ) -> Answer:
        """Answer the last message.

        Args:
            system: the system message, if there is one; it is never left out.
            messages: the others. Of those before the last one, the oldest are left out where they do not fit.
            on_text: called while the answer is generated.
            stopped: whether it is to end; asked often.

        Raises:
            UserError: there is no answer.
        """


@dataclass
class Conversation:
    """A chat.

    Attributes:
        backend: answers.
        system: the system message, "" for none.
        messages: so far, with role and content, without the system message.
    """

    backend: Backend
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def all_messages(self) -> list[Message]:
        """The messages, with the system message before them."""
        return [*self._system(), *self.messages]

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str, on_text: OnText, stopped: Callable[[], bool] = lambda: False) -> Answer:
        """Add a message and the model's answer. If there is none, because of an error or because it is stopped before
        its first text, the chat is as before.

        Args:
            text: the message.
            on_text: called while the answer is generated.
            stopped: whether the answer is to end; asked often.

        Raises:
            UserError: the message does not fit into the context, is no Unicode, or the backend fails.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = self.backend.answer(self._system(), asked, on_text, stopped)
        if answer.text or answer.finish_reason != "cancelled":
            self.messages = [*asked[answer.dropped :], {"role": "assistant", "content": answer.text}]
        return answer
