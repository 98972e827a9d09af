"""Learning rate as a function of the step. No mindspore import."""

import math

from pangu_ms.config.schema import RunConfig


def batch_factor(config: RunConfig) -> float:
    """The factor of optimizer.lr and min_lr: sqrt(batch_tokens / base_batch_tokens), or 1 if base_batch_tokens is 0.

    batch_tokens = global_batch_size * model.seq_length. Source: specification E2.5.
    """
    base = config.optimizer.base_batch_tokens
    return math.sqrt(config.global_batch_size * config.model.seq_length / base) if base else 1.0


def peak_learning_rate(config: RunConfig) -> float:
    """Learning rate at the end of the warm-up."""
    return batch_factor(config) * config.optimizer.lr


def decay_end(config: RunConfig) -> int | None:
    """Step at which min_lr is reached; None if the rate does not decay."""
    optimizer = config.optimizer
    return None if optimizer.schedule == "constant" else optimizer.decay_steps or config.train.steps


def learning_rate(config: RunConfig, step: int) -> float:
    """Learning rate of `step` (0 is the first).

    Linear warm-up to lr over warmup_steps, then a cosine or polynomial decay to min_lr, reached at decay_steps and kept
    after it. The decay is measured from the end of the warm-up, or from step zero as in the official schedule. All of
    it is scaled by `batch_factor`.
    Source: specification A3.1, E2.5.
    """
    optimizer, peak, lowest = (
        config.optimizer,
        peak_learning_rate(config),
        batch_factor(config) * config.optimizer.min_lr,
    )
    if step < optimizer.warmup_steps:
        return peak * (step + 1) / optimizer.warmup_steps
    end = decay_end(config)
    if end is None:
        return peak
    start = optimizer.warmup_steps if optimizer.decay_from == "warmup" else 0
    progress = min(1.0, (step - start) / max(1, end - start))
    share = (
        0.5 * (1 + math.cos(math.pi * progress))
        if optimizer.schedule == "cosine"
        else (1 - progress) ** optimizer.power
    )
    return lowest + (peak - lowest) * share
