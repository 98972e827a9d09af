"""Runs the graph of a CachedModel, or the one of a loaded MindIR: appends tokens to sequences in slots, each at a
position of its own. numpy only, apart from the call of the graph."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_ms.core.compiled_graph import repeated_call
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.domains import NO_DOMAINS, Domains


@dataclass(frozen=True)
class GraphShape:
    """The static shapes of the graph."""

    batch_size: int
    """Slots: sequences that are generated together."""
    chunk: int
    """Prompt tokens per call."""
    capacity: int
    """Positions of a slot."""
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
        return cls(batch_size, min(chunk, length), length, seq_length)

    @property
    def max_length(self) -> int:
        """Longest sequence, prompt and continuation, in tokens."""
        return min(self.capacity, self.seq_length)

    def require_room(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise GenerationError for a prompt that is empty or leaves no room for a new token."""
        for number, prompt in enumerate(prompts, 1):
            self.require_room_for(len(prompt), number)

    def require_room_for(self, length: int, number: int) -> None:
        """Raise GenerationError if a prompt of this many tokens is empty or leaves no room for a new token.

        Args:
            length: tokens of the prompt.
            number: of the prompt, for the message.
        """
        if not length:
            raise GenerationError(f"prompt {number}: is empty; at least one token is needed")
        if length >= self.max_length:
            raise GenerationError(
                f"prompt {number}: has {length} tokens; prompt and continuation must fit in {self.max_length}; shorten"
                " the prompt"
            )

    def require_beams(self, num_beams: int) -> None:
        """Raise GenerationError unless there are as many slots."""
        if num_beams > self.batch_size:
            raise GenerationError(f"num_beams={num_beams}: more than the batch of {self.batch_size}; use fewer")


class Decoder:
    """Computes the logits of the next token of sequences in slots."""

    def __init__(
        self,
        graph: Callable[..., Any],
        shape: GraphShape,
        domains: Domains = NO_DOMAINS,
        caches: Sequence[Any] = (),
        compiling: Callable[[], AbstractContextManager[Any]] | None = None,
    ):
        """Wrap a graph.

        Args:
            graph: called like CachedModel; if the model has domains, with those of the slots as a sixth argument.
            shape: the static shapes of `graph`.
            domains: the domains that the model tells apart.
            caches: the parameters of `graph` that hold keys and values, slot after slot.
            compiling: context for the first call of `append_with_all_logits`, which compiles a graph: of the compile
                cache. None: the shapes of the graph are fixed, as those of a MindIR are.
        """
        self.graph, self.shape, self.domains, self.caches = graph, shape, domains, caches
        self._compiling = compiling
        self._repeat: dict[int, Callable[..., Any]] = {}
        """What calls the compiled graphs, by their rows with logits."""
        self.with_kernels = False
        """Whether the graph is that of a package which calls the package's own kernels."""
        self.lengths = np.zeros(shape.batch_size, np.int32)
        self._domain_of_slot = np.zeros(shape.batch_size, np.int32)

    def start(self, slot: int, domain: int | None = None) -> None:
        """Begin a new sequence in a slot; `domain` is the index of its domain, by default that of the default one."""
        self.lengths[slot] = 0
        self._domain_of_slot[slot] = self.domains.index() if domain is None else domain

    def append(self, tokens: Mapping[int, int], chunk: tuple[int, Sequence[int]] | None = None) -> np.ndarray:
        """Append tokens to sequences. What it does not name does not change.

        Args:
            tokens: the next token of some slots.
            chunk: a slot that is not among them, and at most `shape.chunk` tokens.

        Returns:
            Logits [S, V] float32. Those of a slot in `tokens` or `chunk` are behind its last new token; all others mean
            nothing.
        """
        return self._append(tokens, chunk)

    @property
    def has_all_logits(self) -> bool:
        """Whether there is `append_with_all_logits`."""
        return self._compiling is not None

    def append_with_all_logits(
        self, tokens: Mapping[int, int], chunk: tuple[int, Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `append`, with the logits behind each token of the chunk. The first call compiles another graph.

        Returns:
            Logits [S, V] as those of `append`, and [tokens of the chunk, V], float32.
        """
        size, every = self.shape.batch_size, self.shape.batch_size + self.shape.chunk
        assert self._compiling, "has_all_logits"
        with nullcontext() if every in self._repeat else self._compiling():
            logits = self._append(tokens, chunk, range(size, every))
        return logits[:size], logits[size : size + len(chunk[1])]

    def _append(
        self,
        tokens: Mapping[int, int],
        chunk: tuple[int, Sequence[int]] | None,
        further_rows: Sequence[int] = (),
    ) -> np.ndarray:
        """`append`; behind the logits of the slots come those of `further_rows`."""
        size = self.shape.batch_size
        ids, positions = np.zeros(size + self.shape.chunk, np.int32), np.full(size + self.shape.chunk, -1, np.int32)
        last = np.arange(size, dtype=np.int32)
        slots = np.fromiter(tokens, np.int64, len(tokens))
        ids[slots], positions[slots] = list(tokens.values()), self.lengths[slots]
        chunk_slot, of_chunk = chunk or (0, ())
        if of_chunk:
            rows, begin = slice(size, size + len(of_chunk)), self.lengths[chunk_slot]
            ids[rows], positions[rows] = of_chunk, np.arange(begin, begin + len(of_chunk))
            last[chunk_slot] = rows.stop - 1
        rows_of_logits = np.concatenate([last, np.asarray(further_rows, np.int32)])
        logits = self._call(
            ids, positions, rows_of_logits, np.array([chunk_slot], np.int32), np.array(len(of_chunk) > 0)
        )
        self.lengths[slots] += 1
        self.lengths[chunk_slot] += len(of_chunk)
        return logits

    def prefill(self, prompts: list[list[int]], domains: Sequence[int] = ()) -> np.ndarray:
        """Start new sequences in the first slots; returns the float32 logits [len(prompts), V] after each prompt.

        Args:
            prompts: token ids.
            domains: index of each prompt's domain; empty: all prompts are of the default domain.

        Raises:
            GenerationError: a prompt is empty or leaves no room for a new token.
        """
        self.shape.require_room(prompts)
        rows = []
        for slot, prompt in enumerate(prompts):
            self.start(slot, domains[slot] if len(domains) else None)
            for begin in range(0, len(prompt), self.shape.chunk):
                logits = self.append({}, (slot, prompt[begin : begin + self.shape.chunk]))
            rows.append(logits[slot])
        return np.stack(rows)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Append one token (int [n]) to each of the first n sequences; returns the float32 logits [n, V] after them.
        Those of a sequence that was full mean nothing."""
        return self.append({i: t for i, t in enumerate(tokens) if self.lengths[i] < self.shape.max_length})[
            : len(tokens)
        ]

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Make the sequence of each slot in `targets` the first `length` tokens that the slot of the same index in
        `sources` had before the call."""
        sources, targets = list(sources), list(targets)
        with self._cached_rows() as caches:
            for rows_SCW in caches:
                rows_SCW[targets, :length] = rows_SCW[sources, :length]  # the right side is a copy
        self.lengths[targets], self._domain_of_slot[targets] = length, self._domain_of_slot[sources]

    def save(self, slot: int) -> list[np.ndarray]:
        """A copy of what the caches hold of a slot's sequence, for `restore`."""
        with self._cached_rows() as caches:
            return [rows_SCW[slot, : self.lengths[slot]].copy() for rows_SCW in caches]

    def restore(self, slot: int, saved: list[np.ndarray]) -> None:
        """Give a slot a sequence that was saved, perhaps in another slot, behind `start`."""
        with self._cached_rows() as caches:
            for rows_SCW, rows in zip(caches, saved):
                rows_SCW[slot, : len(rows)] = rows
        self.lengths[slot] = len(saved[0])

    def clear(self, slot: int) -> None:
        """Set all rows of a slot to zero: those that are not numbers would reach later sequences of the slot, since
        attention multiplies the rows that it masks by 0."""
        with self._cached_rows() as caches:
            for rows_SCW in caches:
                rows_SCW[slot] = 0

    @contextmanager
    def _cached_rows(self) -> Iterator[list[np.ndarray]]:
        """The caches as arrays [S, C + 1, W] whose changes the graph sees.

        On a CPU they are the memory that the graph uses; elsewhere they are read, and set in the end, which is untested
        on hardware.
        """
        arrays = [cache.asnumpy() for cache in self.caches]
        yield [values.reshape(self.shape.batch_size, -1, values.shape[-1]) for values in arrays]
        for cache, values in zip(self.caches, arrays):
            if not np.shares_memory(values, cache.asnumpy()):
                from mindspore import Tensor

                cache.set_data(Tensor(values))

    def extra_inputs(self) -> tuple[np.ndarray, ...]:
        """The family's further inputs of the graph: the domain of each slot, if the model has domains."""
        return (self._domain_of_slot,) if self.domains.names else ()

    def _call(self, *arrays: np.ndarray) -> np.ndarray:
        from mindspore import Tensor

        if self.domains.names:
            arrays += (self._domain_of_slot,)
        inputs, rows = tuple(Tensor(a) for a in arrays), len(arrays[2])
        if rows in self._repeat:
            return self._repeat[rows](*inputs).asnumpy()
        logits = self.graph(*inputs)
        self._repeat[rows] = repeated_call(self.graph)
        return logits.asnumpy()
