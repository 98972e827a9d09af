"""Log-probabilities of whole texts: windows as long as the model's context, several at a time, without a cache.

A batch of windows is one large product for each matrix; a Scorer, which computes a chunk of one sequence at a time,
takes a third more time for the same texts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pangu_ms.infer.domains import NO_DOMAINS, Domains
from pangu_ms.infer.scoring import (
    Compiling,
    ContinuationScore,
    Item,
    ScoredSequence,
    ScoringCounts,
    Vocabulary,
    not_compiling,
    require_scorable,
)

BATCH_TOKENS = 2048
"""Of a call; larger products are not faster."""
MOST_LOGITS = 1 << 27
"""Of a call: 512 MB, as many as those of 3,300 tokens of a vocabulary of 40,000."""


@dataclass
class WindowScorer:
    """Scores items, as Scorer does; what pairs of an item have in common is computed for each of them.

    Attributes:
        graph: called like TokenLogprobs.
        tokenizer: the model's.
        window: longest sequence that the model reads, in tokens: the length S of a row.
        domains: the domains that the model tells apart.
        compiling: see Scorer.
    """

    graph: Callable[..., Any]
    tokenizer: Vocabulary
    window: int
    domains: Domains = NO_DOMAINS
    compiling: Compiling = not_compiling
    counts: ScoringCounts = field(default_factory=ScoringCounts)

    @property
    def batch_size(self) -> int:
        """Rows B of a call."""
        return max(1, min(BATCH_TOKENS, MOST_LOGITS // self.tokenizer.vocab_size) // self.window)

    def score_all(
        self, items: Sequence[Item], on_scored: Callable[[int], None] = lambda number: None
    ) -> Iterator[tuple[int, list[ContinuationScore]]]:
        """See Scorer; items are yielded in their order."""
        for number, item in enumerate(items, 1):
            require_scorable(item, f"item {number}", self.window, self.tokenizer, self.domains)
        pairs = [(index, pair) for index, item in enumerate(items) for pair in item.pairs]
        scores: dict[int, list[ContinuationScore]] = {}
        for begin in range(0, len(pairs), self.batch_size):
            batch = pairs[begin : begin + self.batch_size]
            rows = [ScoredSequence.of(*pair, self.window, self.tokenizer.eod_id) for _, pair in batch]
            found = self._score(rows, [items[index].domain for index, _ in batch])
            for (index, _), score in zip(batch, found):
                scores.setdefault(index, []).append(score)
                on_scored(1)
                if len(scores[index]) == len(items[index].pairs):
                    yield index, scores.pop(index)

    def _score(self, rows: Sequence[ScoredSequence], domains: Sequence[int | None]) -> list[ContinuationScore]:
        """The scores of one batch."""
        shape = self.batch_size, self.window
        ids, targets, domain = np.zeros(shape, np.int32), np.full(shape, -1, np.int32), np.zeros(shape[0], np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row.inputs)] = row.inputs
            targets[i, row.first : len(row.inputs)] = row.targets[row.first :]
            domain[i] = own if (own := domains[i]) is not None else self.domains.index()
            self.counts.computed_tokens += len(row.inputs)
            self.counts.add_cut(row.cut)
        logprobs, best = self._call(ids, targets, domain)
        self.counts.calls += 1
        scores = []
        for i, row in enumerate(rows):
            wanted = slice(row.first, len(row.inputs))
            scores.append(row.score(logprobs[i, wanted], best[i, wanted]))
        return scores

    def _call(self, ids: np.ndarray, targets: np.ndarray, domain: np.ndarray) -> list[np.ndarray]:
        from mindspore import Tensor

        positions = np.tile(np.arange(self.window, dtype=np.int32), (len(ids), 1))
        extra = (domain,) if self.domains.names else ()
        arrays = (ids, positions, np.zeros_like(ids), targets, *extra, np.int32(0))
        with self.compiling(*ids.shape):
            found = self.graph(*(Tensor(array) for array in arrays))
        self.compiling = not_compiling
        return [value.asnumpy() for value in found]
