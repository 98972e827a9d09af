"""Time per token of cached decoding of several checkpoints, taken in turns in one process.

The batch size is 1, and the KV cache holds the model's whole context. In every round each checkpoint decodes some
tokens. The time is divided by the time of the first checkpoint in the same round, so that temporary slowdowns of the
machine cancel. The order of the checkpoints rotates from round to round.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.core.progress import progress_bar
from pangu_ms.research.study.compare import ratios

PROMPT_TOKENS, WARM_UP_TOKENS = 1, 4


def measure(paths: Sequence[Path], tokens: int, rounds: int, progress: bool = True) -> list[dict[str, Any]]:
    """Time decoding; all models are in memory at once.

    Returns:
        For each checkpoint: checkpoint (its path), ms_per_token (median), ratio to the first one (median over rounds),
            ratio_quartiles.

    Raises:
        GenerationError: `tokens` or `rounds` is below 1, or a context has no room for so many tokens.
        CheckpointError: a checkpoint cannot be used.
    """
    for name, value in (("tokens", tokens), ("rounds", rounds)):
        if value < 1:
            raise GenerationError(f"--{name} {value}: must be at least 1")
    from pangu_ms.checkpoint.store import open_checkpoint

    opened = [open_checkpoint(Path(path)) for path in paths]
    for checkpoint in opened:
        room = checkpoint.config().model.seq_length - PROMPT_TOKENS
        if tokens > room:
            raise GenerationError(
                f"--tokens {tokens}: {checkpoint.path} has room for {room} after a prompt of {PROMPT_TOKENS}; use at"
                f" most {room}"
            )
    decoders = [
        _decoder(checkpoint) for checkpoint in progress_bar(progress, iterable=opened, desc="compile", unit="model")
    ]
    seconds = np.zeros((rounds, len(decoders)))
    for round_number in progress_bar(progress, iterable=range(rounds), desc="measure", unit="round"):
        for i in np.roll(np.arange(len(decoders)), -round_number):
            seconds[round_number, i] = _decode(decoders[i], tokens) / tokens
    rows = ratios(seconds.tolist())
    return [{"checkpoint": str(path), "ms_per_token": 1e3 * row.pop("seconds")} | row for path, row in zip(paths, rows)]


def _decoder(checkpoint: Any) -> Any:
    """Load a decoder, compile both of its branches, and warm it up."""
    from pangu_ms.infer.decoder import GraphShape
    from pangu_ms.infer.load import load_decoder

    seq_length = checkpoint.config().model.seq_length
    decoder = load_decoder(checkpoint, GraphShape.fitting(seq_length, 1, seq_length))
    _decode(decoder, min(WARM_UP_TOKENS, seq_length - PROMPT_TOKENS))  # the first step compiles its branch
    return decoder


def _decode(decoder: Any, tokens: int) -> float:
    """Time the decoding steps after a new prompt, in seconds. The values of the tokens do not affect the time."""
    decoder.prefill([[0] * PROMPT_TOKENS])
    token = np.zeros(1, np.int32)
    began = time.perf_counter()
    for _ in range(tokens):
        decoder.step(token)
    return time.perf_counter() - began
