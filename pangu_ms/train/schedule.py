"""Learning rate as a function of the step. No mindspore import."""

import math

from pangu_ms.config.schema import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Learning rate of `step` (0 is the first) in a run of `steps`.

    Linear warm-up to lr over warmup_steps, then a cosine or polynomial decay to min_lr, reached at decay_steps and kept after it. The decay is
    measured from the end of the warm-up, or from step zero as in the official schedule. Source: specification A3.1.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    start = config.warmup_steps if config.decay_from == "warmup" else 0
    end = config.decay_steps or steps
    progress = min(1.0, (step - start) / max(1, end - start))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else (1 - progress) ** config.power
    return config.min_lr + (config.lr - config.min_lr) * share
