"""Log-probabilities of given continuations: for choices between candidates, and for the perplexity of texts.

One slot of a Decoder holds the sequence that was scored last. Of the next sequence, what it has in common with that one
is not computed again: the slot is cut back to it. Items are scored in the order of their contexts, so that a prefix
which several of them share is computed once. numpy only, apart from the call of the graph.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.decoder import Decoder
from pangu_ms.infer.domains import Domains

Ids = Sequence[int]
SMALL, LARGE = 32, 256
"""Tokens of the two chunks for which graphs are compiled. Both are more than 8: attention over fewer rows is another
kernel, whose last bits differ."""


class Vocabulary(Protocol):
    """What a Scorer needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def eod_id(self) -> int:
        """The end of a document, which stands for an empty context."""


@dataclass(frozen=True)
class Item:
    """What is scored together.

    Attributes:
        pairs: (context, continuation) token ids. An empty context stands for the end of a document: the continuation
            is then scored as the beginning of a text. A context that the window has no room for is cut at its
            beginning.
        domain: index of its domain; None: the model's default.
        is_text: whether the pairs are the windows of a text, which have nothing in common.
    """

    pairs: tuple[tuple[Ids, Ids], ...]
    domain: int | None = None
    is_text: bool = False

    @classmethod
    def choice(cls, prefix: Ids, continuations: Iterable[Ids], domain: int | None = None) -> "Item":
        """Candidates that continue the same prefix."""
        return cls(tuple((prefix, continuation) for continuation in continuations), domain)

    @classmethod
    def text(cls, ids: Ids, window: int, domain: int | None = None, first: Ids = ()) -> "Item":
        """A text from its beginning, which has the context `first`: each token is scored once, in windows of `window`
        tokens, each with as much context as it has room for: one token, and more in the last window."""
        pairs: list[tuple[Ids, Ids]] = []
        whole, begin = [*first, *ids], len(first)
        end = begin + window + 1 - max(1, begin)
        while not pairs or begin < len(whole):
            end = min(end, len(whole))
            pairs.append((whole[max(0, end - window - 1) : begin], whole[begin:end]))
            begin, end = end, end + window
        return cls(tuple(pairs), domain, is_text=True)

    def longest(self) -> int:
        """Tokens of its longest pair that the model reads: all but the last one."""
        return max((max(1, len(context)) + len(continuation) - 1 for context, continuation in self.pairs), default=1)


@dataclass(frozen=True)
class ContinuationScore:
    """The score of one continuation.

    Attributes:
        logprobs: the natural log-probability of each token.
        greedy: whether each token is the likeliest one at its place.
        cut_tokens: tokens of the context that were cut off at its beginning, because the window has no room for them.
        error: what went wrong, "" if nothing; there are no log-probabilities then.
    """

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    cut_tokens: int = 0
    error: str = ""

    @property
    def total(self) -> float:
        """The log-probability of the continuation."""
        return float(np.sum(self.logprobs))

    @property
    def is_greedy(self) -> bool:
        """Whether greedy search would continue the context like this."""
        return all(self.greedy)


@dataclass(frozen=True)
class ScoredSequence:
    """A pair as a model reads it.

    Attributes:
        inputs: the context and all tokens of the continuation but the last one.
        targets: the token behind each of them.
        first: index of the first target that is scored, which is the first token of the continuation.
        cut: tokens of the context that were cut off.
    """

    inputs: list[int]
    targets: list[int]
    first: int
    cut: int

    @classmethod
    def of(cls, context: Ids, continuation: Ids, window: int, eod_id: int) -> "ScoredSequence":
        """A pair for a model that reads `window` tokens."""
        context = context if len(context) else (eod_id,)
        kept = min(len(context), window + 1 - len(continuation))
        tokens = [*context[len(context) - kept :], *continuation]
        return cls(tokens[:-1], tokens[1:], kept - 1, len(context) - kept)

    def score(self, logprobs: np.ndarray, best: np.ndarray) -> ContinuationScore:
        """Its score, from the log-probabilities of the targets that are scored, and the likeliest tokens there."""
        wrong = np.flatnonzero(~np.isfinite(logprobs))
        if wrong.size:
            return ContinuationScore(
                (),
                (),
                self.cut,
                f"the log-probability behind {wrong[0]} tokens of the continuation is {logprobs[wrong[0]]}; it must be"
                " a number; the weights are damaged or overflow: use another checkpoint, or float32"
                " (model.compute_dtype=float32)",
            )
        greedy = best == np.array(self.targets[self.first :])
        return ContinuationScore(tuple(logprobs.astype(np.float64).tolist()), tuple(greedy.tolist()), self.cut)


@dataclass
class ScoringCounts:
    """What a scorer has done."""

    calls: int = 0
    """Of the graph."""
    computed_tokens: int = 0
    reused_tokens: int = 0
    """Tokens of contexts that the slot held already."""
    cut_tokens: int = 0
    cut_contexts: int = 0

    def add_cut(self, cut: int) -> None:
        """Count the tokens that were cut off a context."""
        self.cut_tokens += cut
        self.cut_contexts += cut > 0


@dataclass(frozen=True)
class _Piece:
    """Tokens begin to end - 1 of a sequence, which one call computes; with or without scores."""

    begin: int
    end: int
    width: int
    scored: bool


def require_scorable(item: Item, where: str, window: int, vocabulary: Vocabulary, domains: Domains) -> None:
    """Raise GenerationError, whose message begins with `where`, if an item cannot be scored by a model that reads
    `window` tokens."""
    for number, (context, continuation) in enumerate(item.pairs, 1):
        if not len(continuation):
            raise GenerationError(f"{where}: continuation {number} is empty; a score needs at least one token")
        if len(continuation) > window:
            raise GenerationError(
                f"{where}: continuation {number} has {len(continuation)} tokens; it must fit in {window}; shorten it,"
                " or score it as a text"
            )
        ids = np.array([*context, *continuation], np.int64)
        if (wrong := ids[(ids < 0) | (ids >= vocabulary.vocab_size)]).size:
            raise GenerationError(
                f"{where}: id {wrong[0]} is no token; ids must be 0 to {vocabulary.vocab_size - 1}; use the model's own"
                " tokenizer"
            )
    domains.require_index(item.domain, f"{where}: ")


def encode_pair(tokenizer: Tokenizer, prefix: str, continuation: str) -> tuple[Ids, Ids]:
    """Token ids of a text and of what continues it, divided as lm-eval does it: spaces at the end of the prefix belong
    to the continuation, whose tokens are those that the whole text has behind the number of tokens of the prefix."""
    spaces = len(prefix) - len(prefix.rstrip())
    if spaces:
        prefix, continuation = prefix[:-spaces], prefix[-spaces:] + continuation
    context = tokenizer.encode_prompt(prefix)
    return context, tokenizer.encode_prompt(prefix + continuation)[len(context) :]


Compiling = Callable[[int, int], AbstractContextManager[Any]]
"""The context for a call that compiles a graph of these two sizes."""


def not_compiling(*sizes: int) -> AbstractContextManager[Any]:
    """The Compiling without a compile cache."""
    return nullcontext()


@dataclass
class Scorer:
    """Scores continuations with a Decoder whose graph is a CachedModel.

    A score does not depend on what else is scored, nor on its order. With packed float32 weights this holds for every
    bit; else MindSpore's products differ in the last bits with the number of rows.

    Attributes:
        decoder: its weights, and the cache of one of its slots.
        tokenizer: the model's.
        slot: which slot of the decoder. Nothing else may use it between two calls, unless `forget` is called.
        compiling: context for the first call with N rows and Q logits, which compiles a graph: of the compile cache.
    """

    decoder: Decoder
    tokenizer: Vocabulary
    slot: int = 0
    compiling: Compiling = not_compiling
    counts: ScoringCounts = field(default_factory=ScoringCounts)

    def __post_init__(self) -> None:
        self._graph: Callable[..., Any] | None = None
        self._compiled: set[tuple[int, int]] = set()
        self.forget()

    @property
    def window(self) -> int:
        """Longest sequence that the model reads, in tokens."""
        return self.decoder.shape.max_length

    def forget(self, slot: int | None = None) -> None:
        """Take it that the slot holds nothing of use; or take another slot."""
        self.slot = self.slot if slot is None else slot
        self.hold((), None)

    def hold(self, tokens: Ids, domain: int | None) -> None:
        """Take it that the slot holds these tokens of a sequence of this domain."""
        self._held, self._domain = list(tokens), domain

    @property
    def held(self) -> list[int]:
        """What the slot holds."""
        return self._held

    def score(self, prefix: Ids, continuations: Iterable[Ids], domain: int | None = None) -> list[ContinuationScore]:
        """The score of each continuation of one prefix; see `score_all`."""
        ((_, scores),) = self.score_all([Item.choice(prefix, continuations, domain)])
        return scores

    def score_all(
        self, items: Sequence[Item], on_scored: Callable[[int], None] = lambda number: None
    ) -> Iterator[tuple[int, list[ContinuationScore]]]:
        """Score items; yields (index of the item, a score for each of its pairs) as soon as an item is complete, items
        with a common prefix one after the other.

        Args:
            items: what to score.
            on_scored: called with 1 after each continuation.

        Raises:
            GenerationError: a continuation is empty or longer than the window, an id is no token, or there is no such
                domain; nothing was computed then. Logits that are no numbers make an error of one continuation; see
                ContinuationScore.
        """
        for number, item in enumerate(items, 1):
            require_scorable(item, f"item {number}", self.window, self.tokenizer, self.decoder.domains)
        for index in sorted(range(len(items)), key=lambda i: _order(items[i])):
            scores = []
            for context, continuation in items[index].pairs:
                scores.append(self._score(context, continuation, items[index].domain))
                on_scored(1)
            yield index, scores

    def _score(self, context: Ids, continuation: Ids, domain: int | None) -> ContinuationScore:
        sequence = ScoredSequence.of(context, continuation, self.window, self.tokenizer.eod_id)
        self.counts.add_cut(sequence.cut)
        score = sequence.score(*self._compute(sequence, domain))
        if score.error:
            self._clear()
        return score

    def _compute(self, sequence: ScoredSequence, domain: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the targets that are scored, and the likeliest tokens in their places."""
        inputs, first = sequence.inputs, sequence.first
        begin = self._common(inputs, first, domain)
        if begin == 0:
            self.decoder.start(self.slot, domain)
        self.decoder.lengths[self.slot] = begin
        self.hold(inputs, domain)
        self.counts.reused_tokens += begin
        logprobs, best = [], []
        for piece in _pieces(begin, first, len(inputs)):
            of_piece = self._append(inputs, sequence.targets, piece)
            if piece.scored:
                wanted = slice(max(first - piece.begin, 0), piece.end - piece.begin)
                logprobs.append(of_piece[0][wanted])
                best.append(of_piece[1][wanted])
        return np.concatenate(logprobs), np.concatenate(best)

    def _common(self, inputs: list[int], most: int, domain: int | None) -> int:
        """How many tokens the slot holds of a sequence, at most `most`."""
        if domain != self._domain:
            return 0
        most = min(most, len(self._held))
        differ = np.array(inputs[:most]) != np.array(self._held[:most])
        return int(np.argmax(differ)) if differ.any() else most

    def _append(self, inputs: list[int], targets: list[int], piece: _Piece) -> tuple[np.ndarray, np.ndarray]:
        """Append tokens to the slot; log-probabilities and likeliest tokens of its rows, if it is scored."""
        slots, number = self.decoder.shape.batch_size, piece.end - piece.begin
        ids, positions = np.zeros(slots + piece.width, np.int32), np.full(slots + piece.width, -1, np.int32)
        rows, of_chunk = np.arange(slots + piece.scored * piece.width, dtype=np.int32), slice(slots, slots + number)
        wanted = np.full(len(rows), -1, np.int32)
        ids[of_chunk], positions[of_chunk] = inputs[piece.begin : piece.end], np.arange(piece.begin, piece.end)
        if piece.scored:
            wanted[of_chunk] = targets[piece.begin : piece.end]
        found = self._call(ids, positions, rows, wanted, np.array([self.slot], np.int32))
        self.decoder.lengths[self.slot] = piece.end
        self.counts.calls += 1
        self.counts.computed_tokens += number
        return found[0][of_chunk], found[1][of_chunk]

    def _call(self, *arrays: np.ndarray) -> list[np.ndarray]:
        from mindspore import Tensor

        if self._graph is None:
            self._graph = self._scoring_model()
        key = len(arrays[0]), len(arrays[2])
        with nullcontext() if key in self._compiled else self.compiling(*key):
            found = self._graph(*(Tensor(array) for array in (*arrays, *self.decoder.extra_inputs())))
        self._compiled.add(key)
        return [value.asnumpy() for value in found]

    def _scoring_model(self) -> Callable[..., Any]:
        from pangu_ms.infer.cached_model import CachedModel
        from pangu_ms.infer.scoring_model import ScoringModel

        if not isinstance(self.decoder.graph, CachedModel):
            raise GenerationError(
                "the graph of a MindIR package computes the logits of last tokens alone; score with the checkpoint that"
                " the package was made from"
            )
        return ScoringModel(self.decoder.graph)

    def _clear(self) -> None:
        """Remove rows that are no numbers."""
        self.decoder.clear(self.slot)
        self.forget()


def _order(item: Item) -> tuple[int, bytes]:
    """Items in this order have the longest common prefixes with their neighbours: big-endian bytes compare as ids
    do."""
    domain = -1 if item.domain is None else item.domain
    return domain, np.array(item.pairs[0][0] if item.pairs else (), ">u4").tobytes()


def _pieces(begin: int, first: int, end: int) -> list[_Piece]:
    """The calls that compute tokens begin to end - 1 of a sequence, of which those from `first` on are scored. Where
    the chunks of the scored tokens have room, the last tokens before them are computed with them."""
    lead = (first - begin) % SMALL
    if sum(_widths(end - first + lead)) <= sum(_widths(end - first)):
        first -= lead
    pieces = []
    for start, stop, scored in ((begin, first, False), (first, end, True)):
        for width in _widths(stop - start):
            pieces.append(_Piece(start, min(start + width, stop), width, scored))
            start += width
    return pieces


def _widths(number: int) -> list[int]:
    """The chunks for a number of tokens."""
    widths = []
    while number > 0:
        widths.append(LARGE if number > LARGE // 2 else SMALL)
        number -= widths[-1]
    return widths
