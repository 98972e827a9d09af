"""The guard of a run: dynamic loss scale, the limit above which a loss is a spike, and when to stop a diverged run. No
mindspore import."""

import math
from dataclasses import asdict, dataclass

from pangu_ms.config.schema import RunConfig
from pangu_ms.core.errors import TrainingDiverged

NONSENSE = 4.0
"""A loss above this multiple of ln(vocab_size), which is the loss of guessing uniformly, means that the weights are
broken: the loss of a model that is merely bad stays near that of guessing."""


@dataclass
class Guard:
    """Gives the loss scale and the loss limit of each step, and records the step's outcome. Its state is part of a
    checkpoint."""

    scale: float = 1.0
    good_steps: int = 0
    mean_loss: float = 0.0
    seen: int = 0
    skipped: int = 0
    skipped_in_row: int = 0

    @classmethod
    def create(cls, config: RunConfig) -> "Guard":
        """The guard of a new run; only float16 needs a loss scale other than 1."""
        return cls(scale=config.loss_scale.initial if config.model.compute_dtype == "float16" else 1.0)

    def state(self) -> dict[str, float]:
        """Plain values for a checkpoint."""
        return asdict(self)

    def loss_limit(self, config: RunConfig) -> float:
        """Mean loss above which the next step is skipped."""
        if config.guard.spike_factor <= 0 or self.seen < config.guard.spike_window:
            return math.inf
        return config.guard.spike_factor * self.mean_loss

    def is_good(self, config: RunConfig, loss: float) -> bool:
        """Whether a mean loss is good enough for a checkpoint of the weights that it was computed with."""
        return math.isfinite(loss) and loss <= min(
            self.loss_limit(config), NONSENSE * math.log(config.model.vocab_size)
        )

    def record(self, config: RunConfig, step: int, loss: float, grad_norm: float, applied: bool) -> None:
        """Record a step's outcome.

        Raises:
            TrainingDiverged: guard.max_skipped steps in a row were skipped.
        """
        if applied:
            self.skipped_in_row = 0
            weight = 1 / min(self.seen + 1, config.guard.spike_window)
            self.mean_loss += weight * (loss - self.mean_loss)
            self.seen += 1
        else:
            self.skipped += 1
            self.skipped_in_row += 1
        if config.model.compute_dtype == "float16":
            self._rescale(config, overflow=not math.isfinite(grad_norm))
        if self.skipped_in_row >= config.guard.max_skipped:
            raise TrainingDiverged(
                f"step {step}: {self.skipped_in_row} steps in a row were skipped (loss {loss:.4g}, gradient norm"
                f" {grad_norm:.4g}, loss scale {self.scale:g}, running mean {self.mean_loss:.4g}); the limit is"
                f" guard.max_skipped={config.guard.max_skipped}"
            )

    def _rescale(self, config: RunConfig, overflow: bool) -> None:
        if overflow:
            self.scale, self.good_steps = max(1.0, self.scale / config.loss_scale.factor), 0
            return
        self.good_steps += 1
        if self.good_steps >= config.loss_scale.window:
            self.scale, self.good_steps = self.scale * config.loss_scale.factor, 0
