"""Runs a prefill-and-decode graph, either a CachedModel or a loaded MindIR. Prompts of different lengths are padded and
fed in chunks, so that all shapes are static."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.domains import NO_DOMAINS, Domains

NO_BEAMS = "a MindIR package holds no graph that reorders its cache; use 1, or the checkpoint"


@dataclass(frozen=True)
class GraphShape:
    """The static shapes of a prefill-and-decode graph."""

    batch_size: int
    """Sequences per call."""
    chunk: int
    """Prompt tokens per call."""
    capacity: int
    """Positions of the cache, a multiple of `chunk`."""
    seq_length: int
    """Longest context of the model, in tokens."""

    @classmethod
    def fitting(cls, seq_length: int, batch_size: int, max_length: int, chunk: int = 64) -> "GraphShape":
        """Shapes with room for `max_length` tokens (prompt and continuation) in each sequence, at most `seq_length`.

        Raises:
            GenerationError: a size is too small.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("chunk", chunk, 1), ("max_length", max_length, 2)):
            if value < least:
                raise GenerationError(f"{name}={value}: must be at least {least}")
        length = min(max_length, seq_length)
        chunk = min(chunk, seq_length)
        return cls(batch_size, chunk, -(-length // chunk) * chunk, seq_length)  # rounded up to whole chunks

    @property
    def max_length(self) -> int:
        """Longest sequence, prompt and continuation, in tokens."""
        return min(self.capacity, self.seq_length)

    def require_room(self, prompts: list[list[int]]) -> None:
        """Raise GenerationError for a prompt that is empty or leaves no room for a new token."""
        for number, prompt in enumerate(prompts, 1):
            if not prompt:
                raise GenerationError(f"prompt {number}: is empty; at least one token is needed")
            if len(prompt) >= self.max_length:
                found, limit = len(prompt), self.max_length
                raise GenerationError(
                    f"prompt {number}: has {found} tokens; prompt and continuation must fit in {limit}; shorten the"
                    " prompt"
                )


class Decoder:
    """Computes the logits of the next token for a batch of sequences of different lengths.

    The graph always gets a full batch; unused rows are fed zeros.
    """

    def __init__(
        self,
        graph: Callable[..., Any],
        shape: GraphShape,
        reorder: Callable[..., Any] | None = None,
        domains: Domains = NO_DOMAINS,
    ):
        """Wrap a graph.

        Args:
            graph: called as `graph(ids, start, last, prefill)`, like CachedModel; if the model has domains, with those
                of the sequences as a fifth argument.
            shape: the static shapes of `graph`.
            reorder: called as `reorder(rows)`, like ReorderCaches; only beam search needs it.
            domains: the domains that the model tells apart.
        """
        self.graph, self.shape, self._reorder, self.domains = graph, shape, reorder, domains
        self.lengths = np.zeros(shape.batch_size, np.int32)
        self._domain_of_row = np.zeros(shape.batch_size, np.int32)

    def prefill(self, prompts: list[list[int]], domains: Sequence[int] = ()) -> np.ndarray:
        """Start new sequences; returns the float32 logits [len(prompts), V] after each prompt.

        Args:
            prompts: token ids.
            domains: index of each prompt's domain; empty: all prompts are of the default domain.

        Raises:
            GenerationError: a prompt is empty or leaves no room for a new token.
        """
        shape = self.shape
        shape.require_room(prompts)
        self._domain_of_row[:] = self.domains.index()
        self._domain_of_row[: len(domains)] = domains
        lengths = np.array([len(p) for p in prompts] + [1] * (shape.batch_size - len(prompts)), np.int32)
        ids = np.zeros((shape.batch_size, shape.capacity), np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        # The zeros after a short prompt are written to the cache too. Attention masks those slots until a real token
        # overwrites them.
        logits = self._prefill_chunk(ids, lengths, 0)
        for start in range(shape.chunk, lengths.max(), shape.chunk):
            ends_here = (lengths > start) & (lengths <= start + shape.chunk)
            logits = np.where(ends_here[:, None], self._prefill_chunk(ids, lengths, start), logits)
        self.lengths = lengths
        return logits[: len(prompts)]

    def _prefill_chunk(self, ids: np.ndarray, lengths: np.ndarray, start: int) -> np.ndarray:
        """Logits [B, V] at the last token of each prompt within the chunk that begins at position `start`."""
        chunk = self.shape.chunk
        # Clipped for prompts that end in another chunk, whose logits here are not used.
        last = np.clip(lengths - 1 - start, 0, chunk - 1)
        return self._call(ids[:, start : start + chunk], np.full_like(lengths, start), last, True)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Append one token (int [n]) to each of the first n sequences; returns the float32 logits [n, V] after them."""
        ids = np.zeros((self.shape.batch_size, self.shape.chunk), np.int32)
        ids[: len(tokens), 0] = tokens
        # A sequence that fills its cache is finished: it overwrites its last position, and its logits are not used.
        start = np.minimum(self.lengths, self.shape.max_length - 1)
        logits = self._call(ids, start, np.zeros_like(start), False)
        self.lengths = self.lengths + 1
        return logits[: len(tokens)]

    def require_beams(self, num_beams: int) -> None:
        """Raise GenerationError unless the graph can run beam search with `num_beams` beams."""
        if self._reorder is None:
            raise GenerationError(f"num_beams={num_beams}: {NO_BEAMS}")
        if num_beams > self.shape.batch_size:
            raise GenerationError(f"num_beams={num_beams}: more than the batch of {self.shape.batch_size}; use fewer")

    def reorder(self, rows: np.ndarray) -> None:
        """Replace sequence i by a copy of sequence rows[i] (int [n]). The caller has called `require_beams` before."""
        from mindspore import Tensor

        assert self._reorder, "beam search calls require_beams first"
        full = np.arange(self.shape.batch_size, dtype=np.int32)
        full[: len(rows)] = rows
        self._reorder(Tensor(full))
        self.lengths, self._domain_of_row = self.lengths[full], self._domain_of_row[full]

    def _call(self, ids: np.ndarray, start: np.ndarray, last: np.ndarray, prefill: bool) -> np.ndarray:
        from mindspore import Tensor

        arrays = [np.ascontiguousarray(ids), start.astype(np.int32), last.astype(np.int32), np.bool_(prefill)]
        if self.domains.names:
            arrays.append(self._domain_of_row)
        return self.graph(*(Tensor(a) for a in arrays)).asnumpy()
