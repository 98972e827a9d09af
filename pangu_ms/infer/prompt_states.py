"""Hidden states of prompts, for the predictor of lengths that reads them. mindspore is imported with the first call."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pangu_ms.checkpoint.model import load_model
from pangu_ms.checkpoint.store import Checkpoint
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.core.compile_cache import cached_compile
from pangu_ms.core.errors import GenerationError
from pangu_ms.infer.domains import Domains

_SHORTEST = 64
"""Tokens of the shortest graph; longer ones have twice as many, so that few are compiled."""


class PromptStates:
    """Computes the last hidden state of the last token of prompts: a pass over whole prompts in batches, without a
    cache. It is computed beside what the engine computes, with weights of its own: the engine's graph has no output for
    states, and packages depend on that graph.

    Attributes:
        digest: of the checkpoint's manifest.
        size: E.
        passes: calls of the graph.
        tokens: tokens of prompts that were read.
        seconds: time of the passes; a graph's first one, which compiles it, does not count.
    """

    def __init__(self, checkpoint: Checkpoint, config: RunConfig | None = None, batch_size: int = 8):
        """Nothing is loaded yet.

        Args:
            checkpoint: the model.
            config: device and dtype; by default the checkpoint's own configuration.
            batch_size: prompts of a pass.
        """
        self.checkpoint, self.batch_size, self.config = checkpoint, batch_size, config or checkpoint.config()
        self.digest, self.size = files.sha256_json(checkpoint.manifest), self.config.model.hidden_size
        self.passes = self.tokens = 0
        self.seconds = 0.0
        self._graph: Callable[..., Any] | None = None
        self._compiled: set[int] = set()

    def __call__(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """The states of prompts, float32 [N, E].

        Raises:
            GenerationError: a prompt is empty or longer than the context.
            CheckpointError: names or shapes of the tensors are not those of the checkpoint's configuration.
        """
        longest = self.config.model.seq_length
        for number, prompt in enumerate(prompts, 1):
            if not 0 < len(prompt) <= longest:
                raise GenerationError(f"prompt {number}: has {len(prompt)} tokens; must have 1 to {longest}")
        states = np.zeros((len(prompts), self.size), np.float32)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # so that few short prompts are padded
        for first in range(0, len(order), self.batch_size):
            some = order[first : first + self.batch_size]
            states[some] = self._batch([prompts[i] for i in some])
        return states

    def _batch(self, prompts: list[Sequence[int]]) -> np.ndarray:
        """States of at most `batch_size` prompts. What stands behind a prompt does not reach it: attention is
        causal."""
        length = min(self._length(max(map(len, prompts))), self.config.model.seq_length)
        ids_BS = np.zeros((self.batch_size, length), np.int32)
        rows_B = np.arange(self.batch_size, dtype=np.int32) * length
        for row, prompt in enumerate(prompts):
            ids_BS[row, : len(prompt)] = prompt
            rows_B[row] += len(prompt) - 1
        positions_BS = np.tile(np.arange(length, dtype=np.int32), (self.batch_size, 1))
        arrays = [ids_BS, positions_BS, np.zeros_like(ids_BS), rows_B]
        if domains := self.config.model.domains:  # a predictor knows no domain of a prompt
            index = Domains(domains, self.config.model.default_domain).index()
            arrays.append(np.full(self.batch_size, index, np.int32))
        self.passes += 1
        self.tokens += sum(map(len, prompts))
        return self._call(length, arrays)[: len(prompts)]

    @staticmethod
    def _length(tokens: int) -> int:
        length = _SHORTEST
        while length < tokens:
            length *= 2
        return length

    def _call(self, length: int, arrays: list[np.ndarray]) -> np.ndarray:
        from mindspore import Tensor

        if self._graph is None:
            from pangu_ms.infer.state_model import LastStates

            self._graph = LastStates(load_model(self.checkpoint, self.config))
        tensors = [Tensor(array) for array in arrays]
        if length not in self._compiled:
            identity = {"graph": "states of prompts", "model": config_to_dict(self.config)["model"]}
            identity |= {"shape": [self.batch_size, length], "device": self.config.runtime.device}
            with cached_compile(self.config.runtime.compile_cache, identity):
                states = self._graph(*tensors).asnumpy()
            self._compiled.add(length)
            return states
        began = time.perf_counter()
        states = self._graph(*tensors).asnumpy()
        self.seconds += time.perf_counter() - began
        return states
