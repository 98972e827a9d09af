"""Prompts as token ids that fit into a model's window.

Where a text is divided: context and continuation are encoded together, as the model would read them in a text, and
divided behind the last token that the context alone begins with, too. A token of both (SentencePiece and jieba may join
characters across the border) belongs to the continuation, so that nothing of the continuation escapes the loss. Where
no token crosses the border, which is nearly always, this is what the paper's code and lm-eval do, who count the tokens
of the context alone; where one does, these score a text in which characters are missing or stand twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pangu_ms.core.errors import DataError
from pangu_ms.eval.tasks.model import TaskTokenizer
from pangu_ms.eval.tasks.prompts import Prompt
from pangu_ms.eval.tasks.task import ANSWER, Decoding, Task
from pangu_ms.eval.tasks.template import Template
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.scoring import Item

Pair = tuple[list[int], list[int]]
ANSWER_TOKENS = 32
"""Longest answer of an item without gold, where the gold answer says how long it is."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids.

    Attributes:
        item: what is scored; None for a generation task.
        request: what is continued; None for other tasks.
        shots: demonstrations that it has.
        dropped_shots: those that the window has no room for.
        cut_tokens: tokens that were cut, besides.
        joined: whether a token is of both context and continuation.
    """

    item: Item | None
    request: Request | None
    shots: int
    dropped_shots: int = 0
    cut_tokens: int = 0
    joined: bool = False


def encode_parts(tokenizer: TaskTokenizer, context: str, continuation: str) -> tuple[list[int], list[int], bool]:
    """Token ids of a text in two parts, divided as the module says, and whether a token is of both.

    Raises:
        DataError: the text has no token.
    """
    whole, begin = tokenizer.encode_prompt(context + continuation), tokenizer.encode_prompt(context)
    common = _common(whole, begin)
    if len(whole) <= common:  # the tokenizer drops the continuation: it leaves out a space at the end of a text, say
        common = len(whole) - 1
    if common < 0:
        raise DataError(f"the tokenizer makes no token of {continuation[:40]!r}; a score needs one")
    return whole[:common], whole[common:], common < len(begin)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are equal."""
    number = 0
    for first, second in zip(one, other):
        if first != second:
            break
        number += 1
    return number


def require_spelling(task: Task, tokenizer: TaskTokenizer) -> None:
    """Raise DataError if the tokenizer lacks a character of a task's templates or labels: all candidates would be read
    with the same unknown token."""
    choices = task.choices.labels.values() if task.choices else ()
    for template in (task.context, task.continuation, task.shots.template, *choices):
        for literal in Template(template).literals:
            for character in dict.fromkeys(literal):
                if tokenizer.unk_id in tokenizer.encode_prompt(character):
                    raise DataError(
                        f"{task.name}: the tokenizer cannot spell {character!r} of the template {template[:40]!r}: its"
                        " scores would say nothing; leave the task out, or write it in characters that the model knows"
                    )


class Encoder:
    """Encodes the prompts of one task for one model."""

    def __init__(self, task: Task, tokenizer: TaskTokenizer, window: int, seed: int = 0):
        """Keep what all prompts share.

        Args:
            task: theirs.
            tokenizer: the model's.
            window: longest sequence that the model reads, in tokens.
            seed: of sampled answers.
        """
        self.task, self.tokenizer, self.window, self.seed = task, tokenizer, window, seed
        self._lengths: dict[str, int] = {}

    def encode(self, prompt: Prompt) -> Encoded:
        """A prompt. Demonstrations for which the window has no room are left out, the last ones first, and then the
        text itself is cut.

        Raises:
            DataError: it makes no token; the message names the item.
        """
        try:
            return self._generated(prompt) if self.task.type == "generation" else self._scored(prompt)
        except DataError as error:
            raise DataError(f"{prompt.place}: {error}") from None

    def _scored(self, prompt: Prompt) -> Encoded:
        alone = self._pairs(prompt, 0)
        pairs, joined = alone
        shots = self._fitting(prompt, self.window + 1 - _longest(pairs))
        while shots:
            pairs, joined = self._pairs(prompt, shots)
            if _longest(pairs) <= self.window + 1:
                break
            shots -= 1
        else:
            pairs, joined = alone
        cut = max(0, _longest(pairs) - self.window - 1)
        if cut:
            pairs = _cut_ends(pairs, self.window) if self.task.cut_end else _cut_beginnings(pairs, cut)
        item = Item(tuple((tuple(context), tuple(continuation)) for context, continuation in pairs))
        return Encoded(item, None, shots, len(prompt.demonstrations) - shots, cut, joined)

    def _pairs(self, prompt: Prompt, shots: int) -> tuple[list[Pair], bool]:
        """The candidates behind some demonstrations, and whether a token of one is of both parts."""
        shown = "".join(prompt.demonstrations[:shots])
        found = [encode_parts(self.tokenizer, shown + one.context, one.continuation) for one in prompt.candidates]
        return [(context, continuation) for context, continuation, _ in found], any(joined for _, _, joined in found)

    def _generated(self, prompt: Prompt) -> Encoded:
        decoding = self.task.decoding
        most = min(self._most_new_tokens(prompt, decoding), self.window - 1)
        room = self.window - most
        ids = self._prompt_ids(prompt, 0)
        shots = self._fitting(prompt, room - len(ids))
        while shots and len(ids := self._prompt_ids(prompt, shots)) > room:
            shots -= 1
        ids = ids if shots else self._prompt_ids(prompt, 0)
        cut = 0
        if len(ids) > room:
            cut = len(ids) - min(decoding.keep_tokens or room, room)
        sampling = decoding.sampling(most, self.seed)
        request = Request(tuple(ids[cut:]), sampling, prompt.index)
        return Encoded(None, request, shots, len(prompt.demonstrations) - shots, cut)

    def _most_new_tokens(self, prompt: Prompt, decoding: Decoding) -> int:
        if decoding.max_new_tokens != ANSWER:
            return int(decoding.max_new_tokens)
        if prompt.gold is None:
            return ANSWER_TOKENS
        return max(1, len(self.tokenizer.encode_batch([prompt.gold.answers[0]])[0]))

    def _prompt_ids(self, prompt: Prompt, shots: int) -> list[int]:
        text = "".join(prompt.demonstrations[:shots]) + prompt.candidates[0].context
        return self.tokenizer.encode_prompt(text) or [self.tokenizer.eod_id]

    def _fitting(self, prompt: Prompt, room: int) -> int:
        """How many demonstrations have room, counted one by one: tokens that join two of them make it a little less or
        more."""
        for number, text in enumerate(prompt.demonstrations):
            if text not in self._lengths:
                self._lengths[text] = len(self.tokenizer.encode_batch([text])[0])
            room -= self._lengths[text]
            if room < 0:
                return number
        return len(prompt.demonstrations)


def _longest(pairs: Sequence[Pair]) -> int:
    """Tokens of the longest pair; an empty context stands for one token, the end of a document."""
    return max(max(1, len(context)) + len(continuation) for context, continuation in pairs)


def _cut_ends(pairs: Sequence[Pair], window: int) -> list[Pair]:
    """Pairs whose continuations are cut at their ends, all of them to the same length, so that their sums compare. At
    least half of the window is left to them; the Scorer cuts the beginnings of contexts that then do not fit."""
    room = window + 1 - max(1, *(len(context) for context, _ in pairs))
    kept = max(room, (window + 1) // 2)
    return [(context, continuation[:kept]) for context, continuation in pairs]


def _cut_beginnings(pairs: Sequence[Pair], cut: int) -> list[Pair]:
    """Pairs without their first `cut` tokens, so that all lose the same text. What is left of a continuation that is
    cut itself has its first token as context."""
    found = []
    for context, continuation in pairs:
        whole, begin = [*context, *continuation], len(context)
        start = min(cut - (not context), len(whole) - 2)
        begin = max(begin, start + 1)
        found.append((whole[start:begin], whole[begin:]))
    return found
