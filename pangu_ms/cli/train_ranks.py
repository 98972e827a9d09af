"""Starts `pangu train` on several CPU processes. No mindspore import."""

from pathlib import Path

from pangu_ms.config.schema import RunConfig
from pangu_ms.core.run_directory import JOB
from pangu_ms.train.checks import describe_run
from pangu_run.launcher import run_ranks


def train_on_ranks(argv: list[str], config: RunConfig, output: Path) -> int:
    """Run `pangu train` with `argv` on every rank of a checked configuration.

    Returns:
        The exit code.
    """
    description = {"verb": "train", "words": argv, "device": config.runtime.device} | describe_run(config)
    command = ["-m", "pangu_ms", "train", *argv]
    return run_ranks(
        lambda rank: command, config.parallel.world, output / JOB, name="pangu train", description=description
    )
