"""Memory of a model that generates: weights, and slots of the KV cache. No mindspore import."""

import math
from dataclasses import dataclass

from ascend_ops.packing import INPUTS, LINE_BYTES, OUTPUTS, packed_shape
from pangu_ms.core.errors import GenerationError
from pangu_ms.core.size_text import size_text
from pangu_ms.models.common.config import ModelConfig
from pangu_ms.planner.memory import DTYPE_BYTES, Line


@dataclass(frozen=True)
class ServingMemory:
    """What generating with a model keeps in memory.

    Weights and cache are exact. The step is an upper bound of the largest tensors of one step.

    Attributes:
        model: the model.
        slots: sequences at a time.
        capacity: the most tokens of a sequence.
        chunk: prompt tokens of a step.
        weights: dtype of packed matrices (infer/packed_model.py); empty: they are not packed.
        cache_dtype: of cached keys and values; empty: the compute dtype.
        searches_beams: whether every slot is a beam, whose scores the host computes in float64.
    """

    model: ModelConfig
    slots: int
    capacity: int
    chunk: int
    weights: str = ""
    searches_beams: bool = False
    cache_dtype: str = ""

    @property
    def weights_bytes(self) -> int:
        """Parameters have 4 bytes each (float32, int32); packed matrices those of their lines and scales."""
        shapes = self.model.parameter_shapes()
        packed = self.model.packed_matrices() if self.weights else []
        total = 0
        for name in packed:
            outputs, inputs = shapes.pop(name)
            total += LINE_BYTES * math.prod(packed_shape(outputs, inputs, self.weights)[:2]) + 4 * outputs
        return total + 4 * sum(math.prod(shape) for shape in shapes.values())

    @property
    def _weights_formula(self) -> str:
        if not self.weights:
            return "4 * parameters"
        size = LINE_BYTES // OUTPUTS // INPUTS[self.weights]
        return f"{size} * matrices, packed, with their scales, + 4 * other parameters"

    @property
    def _cache_element_bytes(self) -> int:
        return DTYPE_BYTES[self.cache_dtype or self.model.compute_dtype]

    @property
    def slot_bytes(self) -> int:
        """Keys and values of all layers for the tokens of one sequence, and a row that nobody reads."""
        width = self.model.num_kv_heads * self.model.head_dim
        return 2 * self.model.num_layers * (self.capacity + 1) * width * self._cache_element_bytes

    @property
    def step_bytes(self) -> int:
        """The logits twice, for each new row the inner activations of a feed-forward network twice, and for each beam
        up to five arrays of scores."""
        return self.slots * self._step_bytes_of_slot + 8 * self.chunk * self.model.ffn_hidden_size

    @property
    def _step_bytes_of_slot(self) -> int:
        scores = 5 * 8 * self.model.vocab_size if self.searches_beams else 0
        return 8 * (self.model.vocab_size + self.model.ffn_hidden_size) + scores

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.slots * self.slot_bytes + self.step_bytes

    def slots_in(self, memory: int) -> int:
        """How many slots fit in this many bytes; 0 if not even the weights do."""
        without = self.total_bytes - self.slots * (self.slot_bytes + self._step_bytes_of_slot)
        return max(0, (memory - without) // (self.slot_bytes + self._step_bytes_of_slot))

    def lines(self) -> list[Line]:
        """The items, with their formulas."""
        return [
            Line("weights", self.weights_bytes, self._weights_formula),
            Line(
                f"cache of {self.slots} slots",
                self.slots * self.slot_bytes,
                f"{self.slots} * 2 * {self.model.num_layers} layers * ({self.capacity} + 1) *"
                f" {self.model.num_kv_heads} heads * {self.model.head_dim} * {self._cache_element_bytes}",
            ),
            Line("a step, at most", self.step_bytes, "8 * (slots * V + (slots + chunk) * F)"),
        ]

    def require_fitting(self, free: int) -> None:
        """Refuse what does not fit.

        Args:
            free: bytes.

        Raises:
            GenerationError: says what to lower, and to what.
        """
        if self.total_bytes <= free:
            return
        cache = size_text(self.slots * self.slot_bytes)
        needed = f"{self.slots} slots of {self.capacity} tokens need {cache} beside {size_text(self.weights_bytes)} of"
        room = self.slots_in(free)
        smaller = ", or a cache of float16 (--cache-dtype)" if self._cache_element_bytes == 4 else ""
        advice = (
            f"use at most {room} slots (--batch-size or --slots) or beams, or shorter sequences{smaller}"
            if room
            else "use a smaller model, or free some memory"
        )
        raise GenerationError(f"{needed} weights; {size_text(free)} of memory are free; {advice}")
