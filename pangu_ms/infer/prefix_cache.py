"""Finds slots whose sequences begin like a prompt, so that this beginning need not be computed again."""

from collections.abc import Sequence


class PrefixCache:
    """The tokens that each slot holds, also after its request has ended, until another one begins there.

    Prompts are computed in chunks that begin at multiples of the chunk's size. Only whole chunks are reused: the tokens
    behind them are then computed in the same chunks as without reuse. What chunks of another prompt computed has the
    same bits; keys and values of tokens that were generated one by one may differ in the last bits.
    """

    def __init__(self, num_slots: int, chunk: int):
        self._chunk = chunk
        self._tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self._left: list[list[int]] = [[] for _ in range(num_slots)]
        """What a slot whose sequence has no tokens yet still holds of the one before."""
        self._domains: list[int | None] = [None] * num_slots
        self.prompt_tokens = 0
        """Tokens of all prompts that were looked up."""
        self.reused_tokens = 0
        """Those of them that were not computed."""

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were not computed."""
        return self.reused_tokens / max(1, self.prompt_tokens)

    def start(self, slot: int, domain: int | None) -> None:
        """A sequence begins in a slot."""
        left = self._tokens[slot] or self._left[slot]
        self._left[slot] = left if self._domains[slot] == domain else []
        self._tokens[slot], self._domains[slot] = [], domain

    def forget(self, slot: int) -> None:
        """What a slot holds is not to be used."""
        self._tokens[slot], self._left[slot] = [], []

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Tokens were appended to it."""
        self._tokens[slot].extend(tokens)
        self._left[slot] = []

    def find(self, prompt: Sequence[int], domain: int | None, own: int | None = None) -> tuple[int, int]:
        """(slot, number of tokens): the slot that holds most of the prompt, and how much of it: whole chunks, and not
        the whole prompt, since the logits behind its last token are wanted. (0, 0) if there is none. `own` is the slot
        in which the prompt begins: there, what is left of the sequence before is found, too, as the last turn of a
        chat."""
        best = (0, 0) if own is None else (own, self._common(self._left[own], prompt))
        for slot, held in enumerate(self._tokens):
            if self._domains[slot] == domain and (length := self._common(held, prompt)) > best[1]:
                best = slot, length
        return best

    def _common(self, held: list[int], prompt: Sequence[int]) -> int:
        """Tokens of the whole chunks in which both are equal."""
        chunk, length = self._chunk, 0
        while length + chunk < len(prompt) and held[length : length + chunk] == list(prompt[length : length + chunk]):
            length += chunk
        return length

    def copied(self, source: int, target: int, length: int) -> None:
        """A slot took over the beginning of another slot's sequence."""
        held = self._left[source] if source == target else self._tokens[source]
        self._tokens[target], self._left[target] = held[:length], []
