"""Stages that make a tokenizer and records of a text. No mindspore import."""

from collections.abc import Sequence
from pathlib import Path

from pangu_ms.config.schema import RunConfig
from pangu_ms.research.study.runs import Stage


def tokenizer_stage(directory: Path, config: RunConfig, corpus: Sequence[str]) -> Stage:
    """Train DIRECTORY/tokenizer with as many pieces as the model has."""
    product = directory / "tokenizer"
    shape = "--vocab-size", str(config.model.vocab_size), "--segmenter", config.tokenizer.segmenter
    return Stage(
        directory, ("tokenizer", "train", *shape, "--output", str(product), "--corpus", *corpus), product=product
    )


def records_stage(directory: Path, config: RunConfig, corpus: Sequence[str], tokenizer: Path) -> Stage:
    """Prepare DIRECTORY/records in the model's length; what a killed process had finished is kept beside it."""
    product = directory / "records"
    shape = (
        "--tokenizer",
        str(tokenizer),
        "--seq-length",
        str(config.model.seq_length),
        "--held-out",
        str(config.data.held_out),
    )
    return Stage(directory, ("data", "prepare", *shape, "--output", str(product), "--corpus", *corpus), product=product)
